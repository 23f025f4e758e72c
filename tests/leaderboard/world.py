"""A work folder for the tests of publishing: a store, a client, a farm, and base models that lie on an embedded hub."""

from __future__ import annotations

import hashlib
import json
import shutil
import urllib.request
from dataclasses import replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

from hub.client import HubClient
from hub.codec import from_json, to_json
from hub.domain import Artifact, ArtifactFile, Candidate, Failure, Job, JobResult
from hub.history import Release, VariantRecord, Verdict
from hub.local.process import LocalHub
from hub.protocol import Memory, Protocol, Quality, Speed, Text
from hub.scheduling import Plan
from hub.settings import Settings
from hub.store import Store
from leaderboard import gate
from leaderboard.publish import Publisher
from leaderboard.verify import Verifier
from modelpress.progress import Reporter
from modelpress.session import Session

AT = "2026-11-20T10:00:00+00:00"
PROTOCOL = Protocol(
    name="stdlib-heldout@512",
    text=Text(name="stdlib-heldout", sha256="e" * 64),
    quality=Quality(sequence_length=512, windows=96),
    speed=Speed(batches=(1,), contexts=(128,), modes=("eager",), new_tokens=64, repeats=5, seconds=0.0, warmup=1),
    memory=Memory(contexts=(), loads=3),
)


def packed(seed: str, bits: int = 4) -> bytes:
    """A linear layer of 256 x 512 weights in groups of 128 as GPTQ lays it out; the weights' bytes tell of the seed."""
    layer = "model.layers.0.self_attn.q_proj"
    shapes = {"qweight": ("I32", [8 * bits, 512]), "qzeros": ("I32", [2, 16 * bits]), "scales": ("F16", [2, 512]), "g_idx": ("I32", [256])}
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
        self.base = self.upload(f"{self.namespace}/tiny-{uuid4().hex[:8]}", licence=licence, files=files)
        self.store = self.new_store("first")

    def upload(self, name: str, *, licence: str = "apache-2.0", files: tuple[str, ...] = (), gated: str | None = None) -> Candidate:
        """Put a base model on the hub, or another revision of it, and return it as listed."""
        self.client.create(name, gated=gated)
        head = f"---\nlicense: {licence}\npipeline_tag: text-generation\nlanguage: [en]\n---\n# Tiny {uuid4().hex}\n"
        there = {"README.md": head.encode(), "config.json": b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'}
        self.client.commit(name, {**there, **{path: f"text of {path}".encode() for path in files}}, message="base", parent=None)
        return self.client.candidate(name)

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
        base: Candidate | None = None,
        kl: float = 0.0123,
    ) -> VariantRecord:
        """Press a variant for the store: bytes, measurements and the artifact's verdict."""
        store = store or self.store
        ref = (base or self.base).ref
        wanted = self.make.recipe(recipe)
        wanted = replace(wanted, steps=(replace(wanted.steps[0], params={"group_size": params}),))
        model = Job(kind="measure", base=ref, protocol=PROTOCOL)
        jobs = [Job(kind=kind, base=ref, recipe=wanted, protocol=protocol) for kind, protocol in (("press", None), ("measure", PROTOCOL))]
        store.record_plan(Plan(jobs=(model, *jobs), refusals=(), done=0))
        artifact = self.write(jobs[0], seed)
        measured = self.make.variant(kl=kl).measurements, self.make.base().measurements
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
        judged = next(one for one in store.bases() if one.candidate.ref == ref)
        store.record_verdict(gate.judge(record, inspected.facts, base=judged, stage="artifact", subject=artifact.digest, at=AT))
        return self.read(record, store)

    def write(self, job: Job, seed: str) -> Artifact:
        folder = self.artifacts / str(job.variant_id)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
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
        parts = {
            "store": self.store,
            "publisher": self.client,
            "client": self.client,
            "artifacts": self.artifacts,
            "report": Reporter(),
            "farm": self.farm,
            "folder": self.folder,
            "endpoint": self.hub.endpoint,
            "memory_bytes": 4 << 30,
            "hub_busy": "",
        }
        return SimpleNamespace(settings=settings or self.settings, **parts)  # type: ignore[return-value]

    def verify(self, record: VariantRecord, *, sha: str | None = None) -> Verdict:
        verifier = Verifier(store=self.store, client=self.client, farm=self.farm)  # type: ignore[arg-type]
        return verifier.verify(self.read(record), scratch=self.folder / "scratch" / record.variant_id, sha=sha)

    def commits(self, repo_id: str) -> list[str]:
        with urllib.request.urlopen(f"{self.hub.endpoint}/api/models/{repo_id}/commits/main") as answer:
            return [commit["title"] for commit in json.load(answer)]

    def fault(self, **rule: object) -> None:
        body = json.dumps(rule).encode()
        request = urllib.request.Request(f"{self.hub.endpoint}/api/_faults", data=body, method="POST")
        request.add_header("Authorization", f"Bearer {self.hub.write_token}")
        urllib.request.urlopen(request).close()

    def faults(self) -> int:
        """How often a fault was used."""
        request = urllib.request.Request(f"{self.hub.endpoint}/api/_faults", headers={"Authorization": f"Bearer {self.hub.write_token}"})
        with urllib.request.urlopen(request) as answer:
            return sum(rule["used"] for rule in json.load(answer))

    def mend(self) -> None:
        """Take all faults away."""
        request = urllib.request.Request(f"{self.hub.endpoint}/api/_faults", method="DELETE")
        request.add_header("Authorization", f"Bearer {self.hub.write_token}")
        urllib.request.urlopen(request).close()

    def published(self, repo_id: str) -> list[str]:
        return [title for title in self.commits(repo_id) if title.startswith(("Publish", "Replace"))]
