"""Publishing and verifying against the embedded hub, through the real client."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest

from hub.client import HubClient
from hub.codec import from_json, to_json
from hub.domain import Artifact, ArtifactFile, Failure, Job, JobResult
from hub.errors import BadCheckpoint, GateRefusal, HubConflict, HubRefused, PolicyRefusal
from hub.history import Release, VariantRecord
from hub.local.process import LocalHub
from hub.protocol import Memory, Protocol, Quality, Speed, Text
from hub.scheduling import Plan
from hub.settings import Settings
from hub.store import Store
from leaderboard import gate
from leaderboard.publish import Publisher
from leaderboard.supplements import is_supplement
from leaderboard.verify import verify
from modelpress import publishing
from modelpress.progress import Reporter
from modelpress.session import Session

pytestmark = pytest.mark.integration
AT = "2026-11-20T10:00:00+00:00"
PROTOCOL = Protocol(
    name="stdlib-heldout@512",
    text=Text(name="stdlib-heldout", sha256="e" * 64),
    quality=Quality(sequence_length=512, windows=96),
    speed=Speed(batches=(1,), contexts=(128,), modes=("eager",), new_tokens=64, repeats=5, seconds=0.0, warmup=1),
    memory=Memory(contexts=(), loads=3),
)


def packed(seed: str) -> bytes:
    """A linear layer of 256 x 512 weights in 4 bits, groups of 128, as GPTQ lays it out; the weights' bytes tell of the seed."""
    layer = "model.layers.0.self_attn.q_proj"
    shapes = {"qweight": ("I32", [32, 512]), "qzeros": ("I32", [2, 64]), "scales": ("F16", [2, 512]), "g_idx": ("I32", [256])}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in shapes.items():
        size = prod(shape) * (2 if dtype == "F16" else 4)
        header[f"{layer}.{name}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + (hashlib.sha256(seed.encode()).digest() * (at // 32 + 1))[:at]


class ReadingFarm:
    """Inspects by reading the bytes: the "generated" tokens are the first bytes of the weights' checksum."""

    def __init__(self, make: SimpleNamespace) -> None:
        self._make = make
        self.folders: list[Path] = []
        self.failure: Failure | None = None

    def run(self, job: Job, *, folder: Path | None = None) -> JobResult | Failure:
        assert folder is not None
        self.folders.append(folder)
        if self.failure:
            return self.failure
        ids = tuple(hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()[:8])
        manifest = from_json(Artifact, (folder / "modelpress.json").read_bytes())
        known = {file.path for file in manifest.files} | {"modelpress.json"}
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        facts = self._make.facts(
            generated_ids=ids,
            unexpected_files=tuple(f"{name}: not in the manifest" for name in sorted(found - known)),
            missing_files=tuple(sorted(known - found)),
        )
        return result(self._make, job, facts=facts)


def result(make: SimpleNamespace, job: Job, **parts: object) -> JobResult:
    common = {"environment": make.machine, "started_at": AT, "seconds": 3.0, "stages": {}, "peak_memory_bytes": 10**9}
    return JobResult(job_id=job.id, **common, **parts)  # type: ignore[arg-type]


class World:
    """A work folder with a store, a client, a farm, and one base model that lies on the hub."""

    def __init__(
        self, hub: LocalHub, folder: Path, make: SimpleNamespace, *, licence: str = "apache-2.0", files: tuple[str, ...] = ()
    ) -> None:
        self.hub, self.folder, self.make = hub, folder, make
        self.client = self.new_client(hub.write_token)
        self.namespace = self.client.account().name
        self.settings = Settings()
        self.farm = ReadingFarm(make)
        self.artifacts = folder / "artifacts"
        name = f"{self.namespace}/tiny-{uuid4().hex[:8]}"
        self.client.create(name)
        head = f"---\nlicense: {licence}\npipeline_tag: text-generation\nlanguage: [en]\n---\n# Tiny\n"
        there = {"README.md": head.encode(), "config.json": b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'}
        self.client.commit(name, {**there, **{path: f"text of {path}".encode() for path in files}}, message="base", parent=None)
        self.base = self.client.candidate(name)
        self.store = self.new_store("first")

    def new_client(self, token: str) -> HubClient:
        return HubClient(endpoint=self.hub.endpoint, token=token, cache_dir=self.folder / "cache", patience_s=5)

    def new_store(self, name: str) -> Store:
        store = Store(f"sqlite:///{self.folder / name}.db")
        store.record_models([self.base], AT)
        return store

    def press(
        self,
        recipe: str = "gptq-w4a16-g128",
        *,
        store: Store | None = None,
        seed: str = "one",
        params: int = 128,
        source: Path | None = None,
    ) -> VariantRecord:
        """Press a variant for the store: bytes, measurements and the artifact's verdict."""
        store = store or self.store
        wanted = self.make.recipe(recipe)
        wanted = replace(wanted, steps=(replace(wanted.steps[0], params={"group_size": params}),))
        model = Job(kind="measure", base=self.base.ref, protocol=PROTOCOL)
        jobs = [
            Job(kind=kind, base=self.base.ref, recipe=wanted, protocol=protocol)
            for kind, protocol in (("press", None), ("measure", PROTOCOL))
        ]
        store.record_plan(Plan(jobs=(model, *jobs), refusals=(), done=0))
        artifact = self.write(jobs[0], seed, source)
        measured = self.make.variant().measurements, self.make.base().measurements
        outcomes = (
            (model, {"measurements": measured[1]}),
            (jobs[0], {"artifact": artifact}),
            (jobs[1], {"measurements": measured[0]}),
        )
        for job, parts in outcomes:
            store.start(job)
            store.finish(job, result(self.make, job, **parts))
        record = store.variant(artifact.variant_id)
        assert record is not None
        inspected = self.farm.run(
            Job(kind="inspect", base=record.base, recipe=record.recipe, subject=artifact.digest), folder=self.home(record)
        )
        assert isinstance(inspected, JobResult)
        assert inspected.facts is not None
        base = store.bases()[0]
        store.record_verdict(gate.judge(record, inspected.facts, base=base, stage="artifact", subject=artifact.digest, at=AT))
        return self.read(record, store)

    def write(self, job: Job, seed: str, source: Path | None) -> Artifact:
        folder = self.artifacts / str(job.variant_id)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if source:
            for path in source.iterdir():
                if path.is_file() and path.name != "README.md":
                    shutil.copyfile(path, folder / path.name)
        else:
            step = job.recipe.steps[0] if job.recipe else None
            quantized = {"quant_method": "gptq", "bits": 4, "group_size": step.params["group_size"] if step else 0, "desc_act": False}
            (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": quantized}))
            (folder / "tokenizer.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(packed(seed))
        files = tuple(
            ArtifactFile(path=path.name, size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(folder.iterdir())
        )
        assert job.recipe is not None
        assert job.variant_id is not None
        libraries = {"gptqmodel": "7.6.0"}
        artifact = Artifact(
            variant_id=job.variant_id, base=job.base, recipe=job.recipe, files=files, parameters=256 * 512, made_at=AT, libraries=libraries
        )
        (folder / "modelpress.json").write_text(to_json(artifact, indent=1))
        return artifact

    def home(self, record: VariantRecord) -> Path:
        return self.artifacts / record.variant_id

    def read(self, record: VariantRecord | Release, store: Store | None = None) -> VariantRecord:
        found = (store or self.store).variant(record.variant_id)
        assert found is not None
        return found

    def publisher(self, *, store: Store | None = None, client: HubClient | None = None) -> Publisher:
        return Publisher(store=store or self.store, client=client or self.client, settings=self.settings, artifacts_dir=self.artifacts)

    def publish(self, record: VariantRecord, *, store: Store | None = None, client: HubClient | None = None) -> Release:
        return self.publisher(store=store, client=client).publish(record)

    def session(self, settings: Settings | None = None) -> Session:
        """What a stage of the press wants of a session."""
        parts = {"store": self.store, "publisher": self.client, "client": self.client, "artifacts": self.artifacts, "report": Reporter()}
        return SimpleNamespace(settings=settings or self.settings, **parts)  # type: ignore[return-value]

    def verify(self, record: VariantRecord):
        record = self.read(record)
        assert record.release is not None
        return verify(
            record.release,
            record,
            store=self.store,
            client=self.client,
            farm=self.farm,
            scratch=self.folder / "scratch" / record.variant_id,
        )

    def commits(self, repo_id: str) -> list[str]:
        with urllib.request.urlopen(f"{self.hub.endpoint}/api/models/{repo_id}/commits/main") as answer:
            return [commit["title"] for commit in json.load(answer)]

    def fault(self, **rule: object) -> None:
        body = json.dumps(rule).encode()
        request = urllib.request.Request(f"{self.hub.endpoint}/api/_faults", data=body, method="POST")
        request.add_header("Authorization", f"Bearer {self.hub.write_token}")
        urllib.request.urlopen(request).close()

    def published(self, repo_id: str) -> list[str]:
        return [title for title in self.commits(repo_id) if title.startswith(("Publish", "Replace"))]


def parts(done: publishing.Publication) -> list[list]:
    return [done.released, done.cards, done.refused, done.left]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub"), port=0, samples=False, faults=True) as running:
        yield running


@pytest.fixture
def world(hub: LocalHub, tmp_path: Path, make: SimpleNamespace) -> Iterator[World]:
    yield World(hub, tmp_path, make)
    request = urllib.request.Request(f"{hub.endpoint}/api/_faults", method="DELETE")
    request.add_header("Authorization", f"Bearer {hub.write_token}")
    urllib.request.urlopen(request).close()


def test_a_release_is_one_commit_with_card_and_manifest(world: World) -> None:
    record = world.press()
    release = world.publish(record)
    assert release.repo_id == f"{world.base.ref.repo_id}-gptq-w4a16-g128"
    assert world.client.head(release.repo_id) == release.sha
    assert len(world.published(release.repo_id)) == 1
    paths = {file.path for file in world.client.files(release.repo_id, release.sha)}
    beside = {path for path in paths if is_supplement(path)}
    assert "bench.json" in beside
    assert paths - beside - {".gitattributes"} == {"README.md", "config.json", "model.safetensors", "modelpress.json", "tokenizer.json"}
    card = world.client.read_text(release.repo_id, release.sha, "README.md")
    assert card is not None
    assert world.client.validate_card(card) == []
    assert f"export HF_ENDPOINT={world.hub.endpoint}" in card
    assert "non-overlapping windows of 512 tokens" in card
    assert world.read(record).release == release
    listed = world.client.candidate(release.repo_id)
    assert (listed.license, listed.base_models, listed.library_name) == ("apache-2.0", (world.base.ref.repo_id,), "transformers")
    assert {"base_model:quantized:" + world.base.ref.repo_id, "gptq", "4-bit"} <= set(listed.tags)


def test_the_card_names_siblings_that_passed(world: World) -> None:
    first = world.press()
    second = world.press("gptq-w4a16-g64", params=64)
    release = world.publish(first)
    card = world.client.read_text(release.repo_id, release.sha, "README.md") or ""
    assert f"[gptq-w4a16-g64]({world.hub.endpoint}/{world.base.ref.repo_id}-gptq-w4a16-g64)" in card
    assert world.publish(second).repo_id == f"{world.base.ref.repo_id}-gptq-w4a16-g64"


def test_publishing_again_changes_nothing(world: World) -> None:
    record = world.press()
    release = world.publish(record)
    assert world.publish(record) == release
    assert world.publish(world.read(record)) == release
    assert len(world.published(release.repo_id)) == 1


def test_what_is_sent_to_the_hub_is_written_down(world: World) -> None:
    record = world.press()
    release = world.publish(record)
    world.publish(world.read(record))
    assert record.artifact is not None
    made, sent = world.store.hub_writes(0)
    assert (made.action, made.repo_id, made.bytes) == ("repo", release.repo_id, 0)
    assert (sent.action, sent.repo_id) == ("commit", release.repo_id)
    assert sent.bytes > record.artifact.bytes, "card and manifest go with it"


def test_publishing_stops_at_the_hubs_limits_and_goes_on_later(world: World) -> None:
    world.press()
    world.press("gptq-w4a16-g64", params=64)

    def publish_with(**limits: float) -> publishing.Publication:
        budget = world.settings.budget.model_copy(update=limits)
        return publishing.publish(world.session(world.settings.model_copy(update={"budget": budget})))

    assert [len(part) for part in parts(publish_with(storage_gib=1e-9))] == [0, 0, 0, 2]
    done = publish_with(repos_per_day=1)
    assert [len(part) for part in parts(done)] == [1, 0, 0, 1]
    assert done.left[0].reason == "it is left for a later run: 1 repositories were made on the Hub in the last 24 hours, and 1 are allowed"
    assert [len(part) for part in parts(publish_with(repos_per_day=2, commits_per_day=2))] == [1, 0, 0, 0]
    assert len(world.store.releases()) == 2
    assert not any(parts(publish_with(commits_per_day=2))), "nothing is left to do, so no limit is in the way"


def test_a_release_whose_record_was_lost_is_found_again_and_its_card_says_so(world: World) -> None:
    first = world.publish(world.press())
    other = world.new_store("second")
    again = world.publish(world.press(store=other), store=other)
    assert (again.repo_id, again.artifact_digest) == (first.repo_id, first.artifact_digest)
    assert len(world.published(first.repo_id)) == 1
    assert other.releases() == [again]
    card = world.client.read_text(again.repo_id, again.sha, "README.md") or ""
    assert f"found at commit {first.sha[:8]}; the record of its release was lost" in card
    before = len(world.commits(again.repo_id))
    assert world.publish(world.read(again, other), store=other) == again
    assert len(world.commits(again.repo_id)) == before


def test_a_repository_made_but_never_filled_is_filled(world: World) -> None:
    record = world.press()
    world.client.create(f"{world.base.ref.repo_id}-gptq-w4a16-g128")
    release = world.publish(record)
    assert len(world.published(release.repo_id)) == 1


def test_a_lost_answer_makes_no_second_commit(world: World) -> None:
    record = world.press()
    world.fault(kind="lost", method="POST", path=r"/commit/", status=503)
    release = world.publish(record)
    assert len(world.published(release.repo_id)) == 1
    assert world.client.head(release.repo_id) == release.sha


def test_a_hub_that_moved_on_is_looked_at_again(world: World) -> None:
    record = world.press()
    world.fault(kind="status", method="POST", path=r"/commit/", status=412)
    release = world.publish(record)
    assert len(world.published(release.repo_id)) == 1


def test_a_hub_that_keeps_moving_on_is_an_error(world: World) -> None:
    record = world.press()
    world.fault(kind="status", method="POST", path=r"/commit/", status=412, times=0)
    with pytest.raises(HubConflict):
        world.publish(record)
    assert world.read(record).release is None


def test_a_token_that_may_only_read_is_refused(world: World) -> None:
    record = world.press()
    with pytest.raises(HubRefused):
        world.publish(record, client=world.new_client(world.hub.read_token))
    assert world.client.head(f"{world.base.ref.repo_id}-gptq-w4a16-g128") is None
    assert world.store.releases() == []


def test_different_bytes_under_a_name_are_replaced_in_the_open(world: World) -> None:
    first = world.publish(world.press())
    other = world.new_store("second")
    record = world.press(store=other, seed="two", params=64)
    release = world.publish(record, store=other)
    assert release.repo_id == first.repo_id
    assert release.sha != first.sha
    assert world.published(first.repo_id)[0].startswith(f"Replace artifact {first.artifact_digest} -> {release.artifact_digest}: ")
    card = world.client.read_text(release.repo_id, release.sha, "README.md") or ""
    assert f"artifact {release.artifact_digest} replaces {first.artifact_digest} (commit {first.sha[:8]})" in card


def test_a_repository_of_somebody_else_is_left_alone(world: World) -> None:
    record = world.press()
    name = f"{world.base.ref.repo_id}-gptq-w4a16-g128"
    world.client.create(name)
    theirs = world.client.commit(name, {"thesis.md": b"three years of work"}, message="mine", parent=None)
    with pytest.raises(PolicyRefusal, match=r"holds files that ModelPress did not publish \(thesis.md\)"):
        world.publish(record)
    assert world.client.head(name) == theirs


def test_a_variant_of_another_base_of_the_same_name_is_left_alone(world: World) -> None:
    record = world.press()
    assert record.artifact is not None
    namesake = replace(record.artifact, base=replace(record.base, repo_id=f"elsewhere/{record.base.name}"))
    name = f"{world.base.ref.repo_id}-gptq-w4a16-g128"
    world.client.create(name)
    theirs = world.client.commit(name, {"modelpress.json": to_json(namesake).encode()}, message="theirs", parent=None)
    with pytest.raises(PolicyRefusal, match=f"holds a variant of elsewhere/{record.base.name}"):
        world.publish(record)
    assert world.client.head(name) == theirs


def test_a_repository_that_somebody_else_makes_meanwhile_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record = world.press()
    create = world.client.create

    def made_by_another(repo_id: str, *, gated: str | None = None) -> None:
        create(repo_id, gated=gated)
        world.client.commit(repo_id, {"notes.txt": b"mine"}, message="mine", parent=None)

    monkeypatch.setattr(world.client, "create", made_by_another)
    with pytest.raises(PolicyRefusal, match=r"notes\.txt"):
        world.publish(record)


def test_what_has_not_passed_is_not_published(world: World, make: SimpleNamespace) -> None:
    record = world.press()
    with pytest.raises(GateRefusal, match="has not been judged"):
        world.publish(replace(record, verdicts=()))
    failed = gate.judge(
        record,
        make.facts(loads=False, load_error="boom"),
        base=world.store.bases()[0],
        stage="artifact",
        subject=record.artifact.digest,
        at=AT,
    )
    with pytest.raises(GateRefusal, match="The checkpoint does not load: boom"):
        world.publish(replace(record, verdicts=(failed,)))
    assert world.client.head(f"{world.base.ref.repo_id}-gptq-w4a16-g128") is None


def test_bytes_changed_after_the_verdict_are_not_published(world: World) -> None:
    record = world.press()
    weights = world.home(record) / "model.safetensors"
    weights.write_bytes(b"x" * weights.stat().st_size)
    with pytest.raises(BadCheckpoint, match=r"model.safetensors of variant .* is not the file that was judged"):
        world.publish(record)
    assert world.client.head(f"{world.base.ref.repo_id}-gptq-w4a16-g128") is None


def test_a_link_is_not_followed(world: World, tmp_path: Path) -> None:
    record = world.press()
    weights = world.home(record) / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadCheckpoint):
        world.publish(record)


def test_a_licence_with_demands_gets_what_it_demands(hub: LocalHub, tmp_path: Path, make: SimpleNamespace) -> None:
    world = World(hub, tmp_path, make, licence="llama3.1", files=("LICENSE", "USE_POLICY.md"))
    record = world.press()
    release = world.publish(record)
    assert release.repo_id.split("/")[1].startswith("Llama")
    files = {file.path for file in world.client.files(release.repo_id, release.sha)}
    assert {"LICENSE", "USE_POLICY.md", "NOTICE"} <= files
    assert world.client.read_text(release.repo_id, release.sha, "LICENSE") == "text of LICENSE"
    assert "Community License" in (world.client.read_text(release.repo_id, release.sha, "NOTICE") or "")
    assert "Built with Llama" in (world.client.read_text(release.repo_id, release.sha, "README.md") or "")
    assert world.verify(record).passed


def test_a_licence_that_must_be_passed_on_and_is_not_there_refuses(hub: LocalHub, tmp_path: Path, make: SimpleNamespace) -> None:
    world = World(hub, tmp_path, make, licence="gemma")
    record = world.press()
    with pytest.raises(PolicyRefusal, match="licence gemma must be passed on as a copy"):
        world.publish(record)


def test_published_bytes_are_verified_from_an_empty_cache(world: World) -> None:
    record = world.press()
    release = world.publish(record)
    verdict = world.verify(record)
    assert verdict.passed, [check for check in verdict.checks if not check.passed]
    assert (verdict.stage, verdict.subject) == ("release", release.sha)
    found = world.read(record)
    assert found.release is not None
    assert found.release.verified_at == verdict.judged_at
    assert verdict in found.verdicts
    assert world.farm.folders[-1].is_relative_to(world.folder / "scratch")
    assert not (world.folder / "scratch" / record.variant_id).exists()


def test_published_bytes_that_are_not_the_artifacts_do_not_verify(world: World) -> None:
    record = world.press()
    release = world.publish(record)
    # Someone with the token swaps the weights and writes a manifest that agrees with them.
    swapped = b"y" * 4096
    files = tuple(
        replace(file, size=4096, sha256=hashlib.sha256(swapped).hexdigest()) if file.path == "model.safetensors" else file
        for file in record.artifact.files
    )
    manifest = to_json(replace(record.artifact, files=files)).encode()
    sha = world.client.commit(
        release.repo_id, {"model.safetensors": swapped, "modelpress.json": manifest}, message="swap", parent=release.sha
    )
    store, scratch = world.store, world.folder / "scratch"
    verdict = verify(replace(release, sha=sha), world.read(record), store=store, client=world.client, farm=world.farm, scratch=scratch)
    assert {check.name for check in verdict.checks if not check.passed} == {"same_tokens", "checksums", "card_files"}
    assert world.read(record).release == release


def test_an_inspection_that_fails_leaves_the_release_unverified(world: World) -> None:
    record = world.press()
    world.publish(record)
    world.farm.failure = Failure(
        job_id="x", error="JobDied", reason="it was killed", hint="try again", log_tail="", seconds=1.0, retryable=True
    )
    with pytest.raises(GateRefusal, match=re.escape("could not be inspected: it was killed")):
        world.verify(record)
    found = world.read(record).release
    assert found is not None
    assert found.verified_at is None
    assert not (world.folder / "scratch" / record.variant_id).exists()
