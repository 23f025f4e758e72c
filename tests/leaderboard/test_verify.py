"""A variant that is really pressed, really published, and tampered with in each way: before and after publishing it is refused by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub.client import HubClient
from hub.domain import Failure, Job, JobOrder, JobResult, Workspace
from hub.errors import GateRefusal, HubUnreachable, ModelPressError, OutOfMemory, Unavailable
from hub.history import Check, VariantRecord, Verdict
from hub.local.process import LocalHub
from hub.scheduling import Plan
from hub.settings import Settings
from hub.store import Store
from leaderboard import foreign, gate
from leaderboard.findings import Finding
from leaderboard.publish import Publisher
from leaderboard.verify import Commands, Verifier, inspected, served
from runners import checkpoint, recipes, work

from .conftest import make_base, make_variant
from .world import AT, PROTOCOL, result

pytestmark = pytest.mark.integration
BASE = "modelpress-samples/sample-llama"
LAYER = "model.layers.1.mlp.up_proj"
TOKEN = "hf_" + "aB3dE6fG9hJ2kL5mN8pQ1rS4tU7vW0xYzA"


class Here:
    """Does jobs in this process, as a farm's child does them in its own."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def run(self, job: Job, *, folder: Path | None = None) -> JobResult | Failure:
        try:
            return work.execute(JobOrder(job=job, workspace=self.workspace, folder=str(folder) if folder else None))
        except ModelPressError as error:
            told = {"error": error.name, "reason": error.message, "hint": error.hint, "log_tail": "", "seconds": 0.0, "retryable": False}
            return Failure(job_id=job.id, **told)  # type: ignore[arg-type]


@dataclass
class Pressed:
    """A release on an embedded hub, with all that it was made from."""

    store: Store
    client: HubClient
    farm: Here
    folder: Path
    scratch: Path
    variant_id: str

    @property
    def record(self) -> VariantRecord:
        found = self.store.variant(self.variant_id)
        assert found is not None
        return found

    def copy(self, name: str) -> Path:
        return shutil.copytree(self.folder, self.scratch / name)

    def before(self, folder: Path) -> Verdict:
        """What the gate says of a folder before publishing, under the manifest that lies in it."""
        try:
            manifest = checkpoint.read_manifest(folder)
        except ModelPressError:
            manifest = None
        record = replace(self.record, artifact=manifest or self.record.artifact)
        job = Job(kind="inspect", base=record.base, recipe=record.recipe, subject="tampered")
        outcome = self.farm.run(job, folder=folder)
        assert isinstance(outcome, JobResult), outcome
        assert outcome.facts is not None
        return gate.judge(record, outcome.facts, base=self.store.bases()[0], stage="artifact", subject="tampered", at=AT)

    def after(self, folder: Path) -> Verdict:
        """What the second gate says once somebody with the token has put a folder's files over the release."""
        release = self.record.release
        assert release is not None
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
        kept = {file.path for file in self.client.files(release.repo_id, release.sha)}
        kept -= {file.path for file in self.record.artifact.files} if self.record.artifact else set()
        there = {file.path for file in self.client.files(release.repo_id, self.client.head(release.repo_id) or "")}
        gone = there - kept - set(files)
        sha = self.client.commit(release.repo_id, dict(files), message="tamper", parent=None, deleted=gone)
        return self.verify(sha)

    def verify(self, sha: str | None = None, *, commands: Commands | None = None) -> Verdict:
        verifier = Verifier(store=self.store, client=self.client, farm=self.farm)  # type: ignore[arg-type]
        return verifier.verify(self.record, scratch=self.scratch / "verify", sha=sha, commands=commands)

    def look(self, repo_id: str) -> dict[str, Finding]:
        """What is found on anybody's repository."""
        sha = self.client.head(repo_id)
        assert sha
        with served(self.client, repo_id, sha, self.scratch / "look") as there:
            promised = foreign.with_base(there, foreign.manifest_of(there), lambda name, at: self.client.candidate(name, at))
            manifest, ref = promised.manifest, replace(self.record.base, repo_id=repo_id, sha=sha)
            job = Job(kind="inspect", base=manifest.base if manifest else ref, recipe=manifest.recipe if manifest else None, subject=sha)
            facts = inspected(self.farm, job, there)
            return {one.name: one for one in foreign.judge(there, facts, promised, at=AT)}


@pytest.fixture(scope="module")
def pressed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pressed]:
    root = tmp_path_factory.mktemp("pressed")
    make = SimpleNamespace(machine=make_base().environment)
    with LocalHub(root / "hub", port=0) as hub, Store(f"sqlite:///{root / 'press.db'}") as store:
        client = HubClient(endpoint=hub.endpoint, token=hub.write_token, cache_dir=root / "cache", patience_s=5)
        places = {"cache_dir": str(root / "cache"), "artifacts_dir": str(root / "artifacts")}
        farm = Here(Workspace(endpoint=hub.endpoint, threads=1, timeout_s=600, memory_bytes=8 << 30, **places))
        base = client.candidate(BASE)
        store.record_models([base], AT)
        recipe = recipes.load("bnb-nf4")
        jobs = [Job(kind="measure", base=base.ref, protocol=PROTOCOL), Job(kind="press", base=base.ref, recipe=recipe)]
        jobs.append(Job(kind="measure", base=base.ref, recipe=recipe, protocol=PROTOCOL))
        store.record_plan(Plan(jobs=tuple(jobs), refusals=(), done=0))
        made = farm.run(jobs[1])
        assert isinstance(made, JobResult), made
        outcomes = [result(make, jobs[0], measurements=make_base().measurements), made]
        outcomes.append(result(make, jobs[2], measurements=make_variant().measurements))
        for job, outcome in zip(jobs, outcomes, strict=True):
            store.start(job)
            store.finish(job, outcome)
        assert made.artifact is not None
        variant_id = made.artifact.variant_id
        found = Pressed(store, client, farm, root / "artifacts" / variant_id, root / "scratch", variant_id)
        verdict = found.before(found.folder)
        assert verdict.passed, [check for check in verdict.checks if not check.passed]
        store.record_verdict(replace(verdict, subject=made.artifact.digest))
        publisher = Publisher(store=store, client=client, settings=Settings(), artifacts_dir=root / "artifacts")
        publisher.publish(found.record)
        yield found


def rewrite_tensors(folder: Path, change: Callable[[dict], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def dense_layer(folder: Path) -> None:
    import torch

    def change(tensors: dict) -> None:
        shape = tensors["model.layers.1.mlp.down_proj.weight"].numel() * 2  # two weights a byte
        hidden = tensors["model.norm.weight"].numel()
        for name in [name for name in tensors if name.startswith(f"{LAYER}.")]:
            del tensors[name]
        tensors[f"{LAYER}.weight"] = torch.zeros(shape // hidden, hidden, dtype=torch.bfloat16)

    rewrite_tensors(folder, change)


def not_a_number(folder: Path) -> None:
    rewrite_tensors(folder, lambda tensors: tensors["model.layers.0.input_layernorm.weight"].__setitem__(0, float("nan")))


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def wrong_bits(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= {"load_in_4bit": False, "_load_in_4bit": False, "load_in_8bit": True, "_load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text() + "\n")


def pickled(folder: Path) -> None:
    (folder / "extra.pkl").write_bytes(b"\x80\x04N.")


def linked(folder: Path) -> None:
    (folder / "generation_config.json").rename(folder.parent / "elsewhere.json")
    (folder / "generation_config.json").symlink_to(folder.parent / "elsewhere.json")


def secret(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_from": f"https://user:{TOKEN}@hub/model"}, indent=1))


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "packed": (dense_layer, f"41 of 42 layers|27 of 28 layers|{LAYER}"),
    "finite": (not_a_number, "1 of|model.layers.0.input_layernorm.weight"),
    "loads": (truncated, "truncated or corrupt"),
    "config": (wrong_bits, "Quantization_config says 8 bits, the recipe 4 (NF4)"),
    "files": (no_tokenizer, "Missing: tokenizer.json."),
    "like_base": (other_tokenizer, "tokenizer_config.json"),
    "no_code": (pickled, "extra.pkl"),
    "no_secrets": (secret, "config.json: Hugging Face token, line"),
}


def failed(verdict: Verdict) -> dict[str, Check]:
    return {check.name: check for check in verdict.checks if not check.passed}


def trying(tried: list[str]) -> Commands:
    def run(_: bytes, expected: str) -> Check:
        tried.append(expected)
        return Check(name="commands", passed=True, detail="1 command ran.")

    return run


def test_what_was_published_passes_both_gates(pressed: Pressed) -> None:
    release = pressed.record.release
    assert release is not None
    tried: list[str] = []
    verdict = pressed.verify(commands=trying(tried))
    assert verdict.passed, failed(verdict)
    assert tried == [release.card_sha256]
    names = [check.name for check in verdict.checks]
    assert {"same_tokens", "commit", "card_unchanged", "card_bits", "card_files", "card_licence", "card_parameters"} <= set(names)
    assert "They lie in 4 decoder layers, 7 each." in next(check.detail for check in verdict.checks if check.name == "packed")
    assert pressed.record.release is not None
    assert pressed.record.release.verified_at == verdict.judged_at
    # The same repository, looked at by somebody who has only the hub: nothing fails, and what he cannot know is not told as passed.
    found = pressed.look(release.repo_id)
    assert {one.state for one in found.values()} == {"passed", "not checked"}, found
    assert found["packed"].detail == next(check.detail for check in verdict.checks if check.name == "packed")
    assert {name for name, one in found.items() if one.state == "not checked"} == {
        "same_tokens", "measured", "kl_divergence", "perplexity_ratio", "same_top_token", "commands"
    }  # fmt: skip


@dataclass
class Lacking:
    """A farm on a machine that lacks something: jobs end as they end there."""

    farm: Here
    failure: Failure | None = None
    load_error: str = ""

    def run(self, job: Job, *, folder: Path | None = None) -> JobResult | Failure:
        if self.failure:
            return self.failure
        done = self.farm.run(job, folder=folder)
        assert isinstance(done, JobResult)
        assert done.facts
        return replace(done, facts=replace(done.facts, loads=False, load_error=self.load_error, generated_ids=()))


@pytest.mark.parametrize(
    ("category", "error", "load_error", "raised"),
    [
        ("out_of_memory", "OutOfMemory", "", OutOfMemory),
        ("hub", "HubUnreachable", "", HubUnreachable),
        ("unsupported", "Unavailable", "", Unavailable),
        ("bug", "KeyError", "", GateRefusal),
        ("", "", "Unavailable: bitsandbytes is not installed", Unavailable),
    ],
)
def test_what_the_machine_lacks_is_not_recorded_against_a_release(
    pressed: Pressed, category: str, error: str, load_error: str, raised: type[ModelPressError]
) -> None:
    told = {"reason": "no", "hint": "", "log_tail": "", "seconds": 0.0, "retryable": False}
    failure = Failure(job_id="x", error=error, category=category, **told) if error else None  # type: ignore[arg-type]
    before = pressed.record
    verifier = Verifier(store=pressed.store, client=pressed.client, farm=Lacking(pressed.farm, failure, load_error))
    with pytest.raises(raised) as caught:
        verifier.verify(before, scratch=pressed.scratch / "verify")
    if raised is not GateRefusal:
        assert pressed.record == before
        return
    assert pressed.record.release == replace(before.release, verified_at=None)  # type: ignore[type-var]
    told = [check.detail for verdict in pressed.record.verdicts for check in verdict.checks if check.name == "examined"]
    assert told == [caught.value.message]


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_artifact_is_refused_by_name_before_and_after_publishing(pressed: Pressed, name: str) -> None:
    """The manifest is written anew each time, as a faulty press would, or somebody who covers up: it agrees with the bytes."""
    change, words = TAMPERED[name]
    folder = pressed.copy(name)
    change(folder)
    (folder / checkpoint.MANIFEST).unlink()
    record = pressed.record
    assert record.artifact is not None
    kept = {"parameters": record.artifact.parameters, "libraries": record.artifact.libraries, "steps": record.artifact.steps}
    checkpoint.write(folder, base=record.base, recipe=record.recipe, **kept)  # type: ignore[arg-type]
    for verdict in (pressed.before(folder), pressed.after(folder)):
        wrong = failed(verdict)
        assert name in wrong, verdict.checks
        assert any(part in wrong[name].detail for part in words.split("|")), wrong[name]
    assert {"checksums", "card_files", "commit"} <= set(wrong) or name == "no_code", wrong


def test_a_link_is_refused_before_publishing(pressed: Pressed) -> None:
    folder = pressed.copy("linked")
    linked(folder)
    assert failed(pressed.before(folder))["no_links"].detail == "1 files are symbolic links; 0 may be. They are: generation_config.json."


def test_a_swapped_card_is_refused_and_its_lies_are_named(pressed: Pressed) -> None:
    record = pressed.record
    assert record.release is not None
    repo_id = record.release.repo_id
    pressed.after(pressed.folder)
    card = pressed.client.read_text(repo_id, record.release.sha, "README.md") or ""
    assert "license: other\nlicense_name: psf-2.0\n" in card
    lies = card.replace("- nf4", "- nf4\n- 8-bit\n- awq").replace("license_name: psf", "license_name: mit")
    lies = lies.replace("quantized_by: ", "quantized_by: x").replace("library_name: transformers", "library_name: gguf")
    digest = hashlib.sha256((pressed.folder / "model.safetensors").read_bytes()).hexdigest()
    lies = lies.replace(digest, "0" * 64).replace(f"# {repo_id.split('/')[1]}\n", "# sample-llama-gptq-w4a16-g128\n")
    assert lies.count("\n") == card.count("\n") + 2
    sha = pressed.client.commit(repo_id, {"README.md": lies.encode()}, message="swap", parent=None)
    tried: list[str] = []
    wrong = failed(pressed.verify(commands=trying(tried)))
    named = {"card_bits", "card_format", "card_library", "card_licence", "card_quantized_by", "card_files", "card_name"}
    assert set(wrong) == {"commit", "card_unchanged"} | named, wrong
    assert "'8-bit' is not so" in wrong["card_bits"].detail
    # The released commit is as good as ever, but it is not what those get who run the card's commands: nothing is run, nothing marked.
    good, before = pressed.verify(record.release.sha, commands=trying(tried)), record.release.verified_at
    assert (good.passed, pressed.client.head(repo_id)) == (True, sha)
    assert "commands" not in {check.name for check in good.checks}
    assert tried == []
    assert pressed.record.release is not None
    assert pressed.record.release.verified_at == before
    # Without our database the card is told to lie all the same: by the manifest, the base, and the bytes.
    assert {name for name, one in pressed.look(repo_id).items() if one.state == "failed"} == named
