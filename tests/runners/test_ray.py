"""The Ray farm on a real cluster of several nodes on this machine: results, limits, lost nodes, hostile depots, nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from hub.client import HubClient
from hub.codec import to_json
from hub.domain import Failure, Job, JobResult, ModelRef, Workspace
from hub.errors import Unavailable
from hub.local.process import LocalHub
from hub.protocol import Quality, Speed
from hub.settings import FarmSettings
from runners import checkpoint, protocols, recipes
from runners.farm.demand import Demand, resources, slots
from runners.farm.local import LocalFarm
from runners.farm.ray import RayFarm

pytestmark = pytest.mark.integration

RECIPE = recipes.load("torchao-w8a16")
SHORT = replace(
    protocols.load(protocols.QUICK),
    quality=Quality(sequence_length=64, windows=2),
    speed=None,
    memory=None,
)
ENDLESS = replace(
    SHORT, speed=Speed(batches=(1,), contexts=(16,), modes=("eager",), new_tokens=2, repeats=10**9, seconds=0.0, warmup=10**9)
)
BASE = ModelRef(repo_id="owner/name", sha="0" * 40)
PLAIN = FarmSettings(kind="ray", threads=1)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A running cluster beside a hub; its head takes no jobs, each other node has a temporary folder of its own."""

    cluster: Any
    folder: Path
    hub: LocalHub
    base: ModelRef
    logs: Path
    nodes: dict[str, Any] = field(default_factory=dict)

    @property
    def depot(self) -> str:
        return f"file://{self.folder}/depot"

    def workspace(self, folder: Path) -> Workspace:
        return Workspace(
            endpoint=self.hub.endpoint,
            cache_dir=str(folder / "cache"),
            artifacts_dir=str(folder / "artifacts"),
            threads=1,
            timeout_s=300.0,
            memory_bytes=0,
        )

    def farm(self, folder: Path, settings: FarmSettings = PLAIN, **options: Any) -> RayFarm:
        joined = settings.model_copy(update={"ray_address": self.cluster.address, "artifacts": self.depot})
        return RayFarm(self.workspace(folder), folder / "logs", joined, **options)

    def start(self, name: str, environment: dict[str, str] | None = None, **options: Any) -> None:
        """Add a node."""
        own = self.folder / name
        own.mkdir(exist_ok=True)
        plain: dict[str, Any] = {"num_cpus": 2, "memory": 8 * 2**30, "object_store_memory": 80 * 2**20}
        self.nodes[name] = self.cluster.add_node(**{**plain, **options}, env_vars={"TMPDIR": str(own), **(environment or {})})

    def kill(self, name: str) -> None:
        """Lose a node."""
        self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)

    def node_of(self, job: Job) -> str:
        """Wait until a job's process runs; return the name of its node."""
        for _ in range(3000):
            for log in self.folder.glob(f"node-*/modelpress-*/*/jobs/{job.id}-*/{job.id}.log"):
                return log.relative_to(self.folder).parts[0]
            time.sleep(0.1)
        raise AssertionError("the job was not started")

    def left(self) -> list[str]:
        """Wait for what farms leave on the nodes to go; return what is still there: files, processes."""
        for _ in range(1200):
            found = [str(path) for path in self.folder.glob("node-*/modelpress-*/*")]
            found += [" ".join(process.cmdline()) for process in self.processes() if process.is_running()]
            if not found:
                break
            time.sleep(0.1)
        return found

    def processes(self) -> list[psutil.Process]:
        """Everything of ours that lives on the nodes."""
        found = []
        for process in psutil.process_iter():
            try:
                if "runners.farm" in " ".join(process.cmdline()) and str(self.folder) in process.environ().get("TMPDIR", ""):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    folder = tmp_path_factory.mktemp("site")
    own = Path(tempfile.mkdtemp(prefix="mp-ray-", dir="/tmp"))  # short: Ray puts sockets there
    before = dict(os.environ)
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0", RAY_health_check_period_ms="1000")
    os.environ.update(RAY_memory_monitor_refresh_ms="0")  # else it ends jobs for what others take of this machine
    with LocalHub(folder / "hub", port=0) as hub:
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20, "temp_dir": str(own)}
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        client = HubClient(endpoint=hub.endpoint, token=hub.read_token, cache_dir=folder / "cache")
        base = ModelRef(repo_id="modelpress-samples/sample-llama", sha=client.head("modelpress-samples/sample-llama") or "")
        site = Site(cluster=cluster, folder=folder, hub=hub, base=base, logs=own)
        try:
            for name in ("node-a", "node-b"):
                site.start(name)
            yield site
        finally:
            cluster.shutdown()
            os.environ.clear()
            os.environ.update(before)
            shutil.rmtree(own, ignore_errors=True)


@pytest.fixture(scope="module")
def farm(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayFarm]:
    with site.farm(tmp_path_factory.mktemp("dispatcher")) as farm:
        yield farm


def press(site: Site) -> Job:
    return Job(kind="press", base=site.base, recipe=RECIPE)


def endless(site: Site, name: str) -> Job:
    return Job(kind="measure", base=site.base, protocol=replace(ENDLESS, name=name))


def in_background(farm: RayFarm, job: Job, **options: Any) -> tuple[threading.Thread, list[JobResult | Failure]]:
    found: list[JobResult | Failure] = []
    thread = threading.Thread(target=lambda: found.append(farm.run(job, **options)))
    thread.start()
    return thread, found


def done(outcome: JobResult | Failure) -> JobResult:
    assert isinstance(outcome, JobResult), outcome
    return outcome


def failed(outcome: JobResult | Failure) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


def quality(result: JobResult) -> dict[str, float]:
    """All numbers: a protocol of quality alone has none that depend on how fast a machine is."""
    assert not {"load_time", "peak_memory"} & {m.metric for m in result.measurements}
    return {m.metric: m.value for m in result.measurements}


def test_the_same_jobs_give_the_same_results_on_the_cluster_and_here(site: Site, farm: RayFarm, tmp_path: Path) -> None:
    assert (farm.slots, farm.exclusive_measures) == (4, False)
    pressed = done(farm.run(press(site))).artifact
    assert pressed
    folder = Path(site.workspace(farm._log_dir.parent).artifacts_dir) / pressed.variant_id
    assert checkpoint.read_manifest(folder) == pressed
    measuring = Job(kind="measure", base=site.base, recipe=RECIPE, protocol=SHORT)
    inspecting = Job(kind="inspect", base=site.base, recipe=RECIPE, subject=pressed.digest)
    measured, inspected = done(farm.run(measuring)), done(farm.run(inspecting, folder=folder))
    assert inspected.facts
    assert (inspected.facts.loads, inspected.facts.checksum_errors) == (True, ())
    with LocalFarm(site.workspace(tmp_path), tmp_path / "logs", cold=True) as local:
        here = done(local.run(press(site))).artifact
        assert here
        assert (here.digest, here.files) == (pressed.digest, pressed.files)
        numbers = quality(measured)
        assert {"perplexity", "kl_divergence"} <= set(numbers)
        assert quality(done(local.run(measuring))) == numbers
        again = done(local.run(inspecting, folder=tmp_path / "artifacts" / here.variant_id))
        assert again.facts == inspected.facts


def test_a_shared_work_folder_needs_no_depot_and_one_that_is_not_shared_is_told(site: Site, farm: RayFarm) -> None:
    settings = PLAIN.model_copy(update={"ray_address": site.cluster.address})
    with RayFarm(farm._workspace, farm._log_dir, settings) as shared:
        again = done(shared.run(press(site))).artifact  # pressed before: found where the first test left it
        assert again == checkpoint.read_manifest(Path(farm._workspace.artifacts_dir) / str(press(site).variant_id))
        shared._marker.unlink()
        alone = failed(shared.run(press(site)))
    assert (alone.error, alone.retryable) == ("SettingsError", False)
    assert "farm.artifacts" in alone.hint


def test_a_folder_that_only_the_dispatcher_has_travels_to_the_node_and_is_removed(site: Site, farm: RayFarm, samples: Path) -> None:
    base = checkpoint.folder_ref(samples / "sample-gpt2")
    refused = failed(farm.run(Job(kind="press", base=base, recipe=RECIPE), folder=samples / "sample-gpt2"))
    assert (refused.error, refused.retryable) == ("UnfitModel", False)  # it was read: torchao has no use for its layers
    assert "Traceback" in refused.log_tail
    assert not [*(site.folder / "depot" / "inputs").iterdir()]


def test_a_node_lost_in_the_middle_of_a_job_is_a_failure_and_the_job_runs_on_the_other(
    site: Site, farm: RayFarm, request: pytest.FixtureRequest
) -> None:
    job = endless(site, "lost")
    thread, found = in_background(farm, job)
    first = site.node_of(job)
    site.kill(first)
    request.addfinalizer(lambda: site.start(first))  # for the tests that follow, whatever comes of this one
    thread.join(300)
    assert (failed(found[0]).category, failed(found[0]).retryable) == ("killed", True)
    assert "lost" in failed(found[0]).reason
    until = time.monotonic() + 120
    while [*site.folder.glob(f"{first}/modelpress-*/*/jobs/{job.id}-*")] and time.monotonic() < until:
        time.sleep(0.1)  # the dead node's process cleans up by itself
    thread, found = in_background(farm, job, timeout_s=600)
    assert site.node_of(job) != first
    farm.cancel(job.id)
    thread.join(300)
    assert "on request" in failed(found[0]).reason
    short = Job(kind="measure", base=site.base, protocol=SHORT)
    outcome = farm.run(short)
    if isinstance(outcome, Failure) and outcome.retryable:  # given to the worker that was being ended: a dispatcher tries it again
        outcome = farm.run(short)
    done(outcome)


def test_limits_hold_on_the_nodes(site: Site, farm: RayFarm, tmp_path: Path) -> None:
    late = failed(farm.run(endless(site, "late"), timeout_s=1.0))
    assert (late.category, late.retryable) == ("timed_out", True)
    with site.farm(tmp_path, PLAIN.model_copy(update={"memory_gib": 0.05})) as tight:
        fat = failed(tight.run(endless(site, "fat")))
    assert (fat.category, fat.error) == ("out_of_memory", "OutOfMemory")
    assert "0.05 GiB" in fat.reason


def test_what_no_node_can_hold_is_refused_and_what_none_can_hold_now_is_waited_for(site: Site, farm: RayFarm, tmp_path: Path) -> None:
    with site.farm(tmp_path / "large", PLAIN.model_copy(update={"memory_gib": 9000.0, "gpus": 1.0})) as large:
        refused = failed(large.run(press(site)))
    assert (refused.category, refused.retryable) == ("unsupported", False)
    assert "1 GPUs, 9000.00 GiB" in refused.reason
    assert "2 CPUs, 0 GPUs, 8.00 GiB" in refused.reason
    jobs = [endless(site, "one"), endless(site, "two")]
    runs = [in_background(farm, job) for job in jobs]
    assert {site.node_of(job) for job in jobs} == {"node-a", "node-b"}  # each has a node of its own
    with site.farm(tmp_path / "hasty", start_s=1.0) as hasty:
        waited = failed(hasty.run(press(site)))
    for job, (thread, _) in zip(jobs, runs, strict=True):
        farm.cancel(job.id)
        thread.join(300)
    assert (waited.category, waited.retryable) == ("timed_out", True)
    assert "within 1 s" in waited.reason
    assert [failed(found[0]).category for _, found in runs] == ["killed", "killed"]


def test_a_job_that_ray_ends_for_want_of_memory_is_out_of_memory(site: Site, tmp_path: Path) -> None:
    site.start("node-c", {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "250"}, num_gpus=1)
    with site.farm(tmp_path, PLAIN.model_copy(update={"gpus": 1.0})) as farm:
        ended = failed(farm.run(endless(site, "monitored")))
    site.kill("node-c")
    assert ended.category == "out_of_memory", ended


SCRIPT = """
import sys
from pathlib import Path
from hub.codec import from_json
from hub.domain import Job, Workspace
from hub.settings import FarmSettings
from runners.farm.ray import RayFarm
space, job, settings, logs = sys.argv[1:]
with RayFarm(from_json(Workspace, space), Path(logs), FarmSettings.model_validate_json(settings)) as farm:
    farm.run(from_json(Job, job))
"""


def test_nothing_is_left_on_the_nodes_when_the_dispatcher_is_killed(site: Site, tmp_path: Path) -> None:
    job = endless(site, "orphan")
    settings = PLAIN.model_copy(update={"ray_address": site.cluster.address, "artifacts": site.depot})
    words = (to_json(site.workspace(tmp_path)), to_json(job), settings.model_dump_json(), str(tmp_path / "logs"))
    owner = subprocess.Popen([sys.executable, "-c", SCRIPT, *words])
    site.node_of(job)
    assert site.processes()
    owner.kill()
    owner.wait()
    names = [*site.folder.glob(f"node-*/modelpress-*/*/jobs/{job.id}-*")]
    until = time.monotonic() + 120
    while any(name.exists() for name in names) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [name for name in names if name.exists()]


def test_a_closed_farm_leaves_nothing_and_runs_nothing(site: Site, farm: RayFarm) -> None:
    """The last of those that share the farm: it ends it."""
    thread, found = in_background(farm, endless(site, "closing"))
    site.node_of(endless(site, "closing"))
    farm.__exit__(None, None, None)
    thread.join(300)
    assert failed(found[0]).category == "killed"
    assert failed(farm.run(press(site))).reason == "The farm is closed."
    assert not site.left()


def test_a_cluster_that_is_not_there_is_told_at_once(site: Site, tmp_path: Path) -> None:
    lost = FarmSettings(kind="ray", ray_address="127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"no Ray cluster at 127\.0\.0\.1:1"), RayFarm(site.workspace(tmp_path), tmp_path, lost):
        pass


def test_without_ray_the_install_command_is_told(tmp_path: Path) -> None:
    script = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from hub.errors import Unavailable
from runners.farm.ray import require_ray
try:
    require_ray()
except Unavailable as error:
    print(error.message, error.hint)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "needs the library ray" in said
    assert "pip install 'modelpress[ray]'" in said


def test_no_token_but_the_readers_leaves_the_dispatcher_and_that_one_reaches_the_job_alone(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "MODELPRESS_HUB__TOKEN", "modelpress_hub__token", "MODELPRESS_WRITE_TOKEN"):
        monkeypatch.setenv(name, "writer-of-all")
    with site.farm(tmp_path, read_token=site.hub.read_token) as farm:
        assert farm._link
        assert "writer-of-all" not in psutil.Process(farm._link._process.pid).environ().values()
        job = endless(site, "reads")
        thread, _ = in_background(farm, job)
        site.node_of(job)
        knowing = [words for values, words in map(environment_and_command, psutil.process_iter()) if site.hub.read_token in values]
        farm.cancel(job.id)
        thread.join(300)
    assert knowing
    assert all("runners.farm.zygote" in words for words in knowing), "no process of Ray knows it"
    assert [*site.logs.rglob("*.log")]
    for folder in (site.logs, farm._log_dir, *site.folder.glob("node-*"), site.folder / "depot"):  # what Ray writes down, and what we do
        for path in folder.rglob("*"):
            assert not (path.is_file() and site.hub.read_token.encode() in path.read_bytes()), path


def environment_and_command(process: psutil.Process) -> tuple[list[str], str]:
    try:
        return list(process.environ().values()), " ".join(process.cmdline())
    except psutil.Error:
        return [], ""


def test_what_jobs_ask_for_fits_the_nodes() -> None:
    gib = 2**30
    nodes = [{"CPU": 16.0, "memory": 64.0 * gib}, {"CPU": 8.0, "memory": 32.0 * gib, "GPU": 2.0}, {"memory": 8.0 * gib}]
    plain = Demand(farm="f", address="", threads=0, workers=2, memory_bytes=0, gpus=0.0, start_s=1.0)
    pressing, measuring = Job(kind="press", base=BASE, recipe=RECIPE), Job(kind="measure", base=BASE, protocol=SHORT)
    assert resources(plain, pressing, nodes) == {"CPU": 8.0, "GPU": 0.0, "memory": 0.0}  # the largest node's CPUs / workers
    assert resources(plain, measuring, nodes)["CPU"] == 16.0
    assert slots(plain, nodes) == 3
    on_gpus = replace(plain, gpus=1.0)
    assert resources(on_gpus, measuring, nodes)["CPU"] == 8.0  # the largest of those that have the rest
    assert slots(on_gpus, nodes) == 2
    assert slots(replace(plain, threads=4, memory_bytes=20 * gib), nodes) == 3 + 1
    assert slots(replace(plain, threads=32), nodes) == 1  # it is sent, and refused with the reason
