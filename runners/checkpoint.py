"""Open and save a checkpoint folder: its shape from config and headers alone, what may be in it, and the manifest, written last."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from hub import names, owners
from hub.codec import content_id, from_json, to_json
from hub.domain import Artifact, ArtifactFile, ModelRef, Recipe, StepRecord, variant_id
from hub.errors import BadCheckpoint, BadDocument, OutOfDisk
from hub.policy import CARRIED
from runners import failures, readers, unsafe
from runners.architectures import KNOWN
from runners.headers import BITS, INDEX, Tensor, stored_tensors, weight_files

MANIFEST = "modelpress.json"
PARTIAL = ".partial-"
LEFT_S = 7 * 24 * 3600
_PRESS_THE_BASE = "Press the model it was made from."


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear layer inside the decoder's layers: module name and its two widths."""

    name: str
    out_features: int
    in_features: int


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """All that planning needs to know of a dense model; `tensors` bear the names transformers gives, `dtype` the one of safetensors.

    `zeros` is the share of zeros that an earlier step of a recipe promised in the weight of each linear layer that it names. `heads` are
    those of the queries, `kv_heads` those of keys and values, `head_dim` the width of one; 0 where the config does not tell.
    """

    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    context: int
    dtype: str
    tensors: Mapping[str, Tensor]
    zeros: Mapping[str, float] = field(default_factory=dict)
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0

    @property
    def conv1d(self) -> bool:
        """Whether linears are stored transposed, as GPT-2's Conv1D."""
        return self.architecture in KNOWN and KNOWN[self.architecture].conv1d

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of the decoder's layers, in order of their names; none for an unknown architecture."""
        if self.architecture not in KNOWN:
            return ()
        root = KNOWN[self.architecture].layers + "."
        found = []
        for name, tensor in sorted(self.tensors.items()):
            if name.startswith(root) and name.endswith(".weight") and len(tensor.shape) == 2:
                rows, columns = reversed(tensor.shape) if self.conv1d else tensor.shape
                found.append(Linear(name=name.removesuffix(".weight"), out_features=rows, in_features=columns))
        return tuple(found)

    @property
    def bytes(self) -> int:
        """What all tensors take."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """The number of stored weights."""
        return sum(tensor.numel for tensor in self.tensors.values())


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json; raise `BadCheckpoint` where it is missing, not JSON, or asks for custom code."""
    path = folder / "config.json"
    if not path.is_file():
        raise BadCheckpoint(
            f"The checkpoint {folder} holds no config.json.", hint="Give a folder with config.json, *.safetensors and tokenizer files."
        )
    return parse_config(path.read_bytes(), where=str(folder))


def format_of(folder: Path) -> str:
    """Return how a checkpoint lies on disk: for another engine, by its file; else `dense`, or the quantization that config.json names."""
    if exported := readers.format_of(folder):
        return exported
    quantization = read_config(folder).get("quantization_config") or {}
    return str(quantization.get("quant_method") or "dense")


def parse_config(text: str | bytes, *, where: str) -> dict[str, Any]:
    """Return what a config.json holds; raise `BadCheckpoint` where it is not JSON or asks for custom code. `where` names it in errors."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"config.json of {where} is not valid JSON.", hint="Download the checkpoint again.") from error
    if not isinstance(config, dict) or not config:
        raise BadCheckpoint(f"config.json of {where} is empty or no JSON object.", hint="Download the checkpoint again.")
    if "auto_map" in config:
        raise BadCheckpoint(f"config.json of {where} asks for custom code (auto_map), which is never run.", hint="Choose another model.")
    if not isinstance(config.get("quantization_config") or {}, dict):
        raise BadCheckpoint(f"quantization_config in config.json of {where} is no JSON object.", hint="Download the checkpoint again.")
    return config


def canonical(name: str, architecture: str) -> str | None:
    """Return a tensor's name as transformers writes it today, or None for a buffer that it no longer stores."""
    known = KNOWN.get(architecture)
    if known is None:
        return name
    if known.derived and name.endswith(known.derived) and re.search(r"\.\d+\.attn\.", name):
        return None
    if known.short_root and not name.startswith((known.short_root, "lm_head.")):
        return known.short_root + name
    return name


def shape(folder: Path) -> ModelShape:
    """Return a dense checkpoint's shape from config.json and the safetensors headers, without torch.

    Raises `BadCheckpoint` where it is the model of another engine, or as `shape_of` does.
    """
    if exported := readers.format_of(folder):
        raise BadCheckpoint(f"{folder} holds a model in the format {exported}; a dense one was expected.", hint=_PRESS_THE_BASE)
    return shape_of(read_config(folder), {name: stored.tensor for name, stored in stored_tensors(folder).items()}, where=str(folder))


def shape_of(config: Mapping[str, Any], stored: Mapping[str, Tensor], *, where: str) -> ModelShape:
    """Return a dense checkpoint's shape from its config and its tensors by stored name; `where` names it in errors.

    Raises `BadCheckpoint` where it is quantized already, or its tensors are not of as many layers as its config says, or none that a
    model of its architecture has.
    """
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown")
        raise BadCheckpoint(f"The checkpoint {where} is already quantized ({method}); a dense one was expected.", hint=_PRESS_THE_BASE)
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else "unknown"
    tensors = {name: tensor for raw, tensor in stored.items() if (name := canonical(raw, architecture)) is not None}

    def number(*keys: str) -> int:
        return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), 0)

    hidden, layers = number("hidden_size", "n_embd"), number("num_hidden_layers", "n_layer")
    heads = number("num_attention_heads", "n_head")
    if architecture in KNOWN:
        _check_layers(architecture, layers, tensors, where)
        _check_sizes(architecture, tensors, where)
    by_dtype: dict[str, int] = {}
    for tensor in tensors.values():
        by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + tensor.numel
    return ModelShape(
        architecture=architecture,
        layers=layers,
        hidden_size=hidden,
        intermediate_size=number("intermediate_size", "n_inner") or 4 * hidden,
        vocab_size=number("vocab_size"),
        context=number("max_position_embeddings", "n_positions", "context_length"),
        dtype=max(by_dtype, key=lambda dtype: by_dtype[dtype], default="unknown"),
        tensors=tensors,
        heads=heads,
        kv_heads=number("num_key_value_heads") or heads,
        head_dim=number("head_dim") or (hidden // heads if heads else 0),
    )


def _check_layers(architecture: str, layers: int, tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse a config that counts other layers than are stored: transformers would fill what is missing with random weights."""
    root = KNOWN[architecture].layers + "."
    stored = {name.removeprefix(root).partition(".")[0] for name in tensors if name.startswith(root)}
    if len(stored) != layers or stored != {str(number) for number in range(layers)}:
        raise BadCheckpoint(
            f"config.json of {where} speaks of {layers} layers; the weights hold {len(stored)}.", hint="Download the checkpoint again."
        )


def _check_sizes(architecture: str, tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that no model has, before anything is computed from their shapes."""
    embedding = f"{KNOWN[architecture].tables[0]}.weight"
    if embedding not in tensors:
        raise BadCheckpoint(f"The weights of {where} lack {embedding}.", hint="Download the checkpoint again.")
    for name, tensor in tensors.items():
        vector = name.endswith(".bias") or re.search(r"norm\.weight$|\bln_\w+\.weight$", name)
        if name.endswith((".weight", ".bias")) and (
            tensor.dtype not in BITS or len(tensor.shape) != (1 if vector else 2) or min(tensor.shape) < 1
        ):
            raise BadCheckpoint(
                f"The weights of {where} hold {names.shown(name)} as {tensor.dtype} {tensor.shape[:4]}, which no {architecture} has.",
                hint="Download the checkpoint again.",
            )


def folder_ref(folder: Path) -> ModelRef:
    """Name a local folder as a base model: its own name, pinned by a hash of config and weights in place of a commit."""
    check(folder)
    weights = [folder / name for name in readers.weights_beside(folder)] or weight_files(folder)
    files = [describe(path, folder) for path in (folder / "config.json", *weights)]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "model"
    return ModelRef(repo_id=f"local/{name}", sha=f"local-{content_id(files)}")


def check(folder: Path) -> None:
    """Raise `BadCheckpoint` unless the folder holds a whole safetensors checkpoint and nothing that could run code."""
    if not folder.is_dir():
        raise BadCheckpoint(
            f"There is no checkpoint folder {folder}.", hint="Give the path of a folder with config.json and *.safetensors."
        )
    read_config(folder)
    for path in sorted(folder.rglob("*")):
        if unsafe.could_run(path):
            raise BadCheckpoint(
                f"The checkpoint {folder} holds {path.relative_to(folder)}; pickles and code are not opened.",
                hint="Remove that file, or choose a model that is published as safetensors alone.",
            )
    stored_tensors(folder)


def carry_over(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template, generation config and licence files of the base, over what a library wrote there."""
    for pattern in CARRIED:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def remove_strays(folder: Path, source: Path) -> None:
    """Remove everything that is neither config, weights, nor carried over from the source: logs, recipes, code that libraries leave."""
    own = {Path(name) for name in ("config.json", INDEX, *readers.weights_beside(folder))}
    kept = own | {path.relative_to(source) for pattern in CARRIED for path in source.glob(pattern)}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.suffix != ".safetensors" and path.relative_to(folder) not in kept:
            path.unlink()


def describe(path: Path, folder: Path) -> ArtifactFile:
    """Return a file's path inside the folder, size and SHA-256."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return ArtifactFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=digest)


def write(
    folder: Path, *, base: ModelRef, recipe: Recipe, parameters: int, libraries: Mapping[str, str], steps: tuple[StepRecord, ...] = ()
) -> Artifact:
    """Describe all files of a finished checkpoint and write the manifest, last and atomically."""
    files = tuple(describe(path, folder) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    artifact = Artifact(
        variant_id=variant_id(base, recipe),
        base=base,
        recipe=recipe,
        files=files,
        parameters=parameters,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        libraries=dict(sorted(libraries.items())),
        steps=steps,
    )
    write_atomically(folder / MANIFEST, to_json(artifact, indent=2) + "\n")
    return artifact


def read_manifest(folder: Path) -> Artifact | None:
    """Return the artifact of a checkpoint, None where no manifest was written.

    Raises `BadDocument` where it is not valid, or lists files outside the folder: whoever follows it would read them.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    artifact = from_json(Artifact, path.read_bytes(), where=str(path))
    outside = next((file.path for file in artifact.files if file.path.startswith("/") or ".." in file.path.split("/")), None)
    if outside is not None:
        raise BadDocument(f"{path} lists a file outside its folder: {names.shown(outside)}.", hint="Do not use this checkpoint.")
    return artifact


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that at any moment either the old or the whole new one is there."""
    unfinished = beside(path)
    with unfinished.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)


@contextlib.contextmanager
def partial(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` that becomes `target` on success and vanishes on failure; a full disk is `OutOfDisk`."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target)
        folder = beside(target)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
            yield folder
            if target.is_dir() and not any(target.iterdir()):
                target.rmdir()
            folder.rename(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def beside(target: Path) -> Path:
    """Return where this process makes what is to become `target`: `<name>.partial-<host>-<pid>`."""
    return target.with_name(f"{target.name}{PARTIAL}{_host()}-{os.getpid()}")


def clear_leftovers(target: Path) -> None:
    """Remove unfinished folders beside `target` whose processes are gone; of other machines that share the disk, those a week old."""
    for path in target.parent.glob(f"{glob.escape(target.name)}{PARTIAL}*"):
        host, _, pid = path.name.removeprefix(f"{target.name}{PARTIAL}").rpartition("-")
        here = host == _host() and pid.isdigit()
        with contextlib.suppress(OSError):
            if not psutil.pid_exists(int(pid)) if here else time.time() - _touched(path) > LEFT_S:
                shutil.rmtree(path, ignore_errors=True)


def _host() -> str:
    """Return this machine's name as a part of a file's name."""
    return re.sub(r"[^\w.-]", "_", owners.host())


def _touched(folder: Path) -> float:
    """Return when something in a folder was written last, in epoch seconds."""
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn a full disk, as Python or a library's native code reports it, into `OutOfDisk`."""
    try:
        yield
    except Exception as error:
        if failures.disk_full(error) and not isinstance(error, OutOfDisk):
            raise OutOfDisk(
                f"The disk is full: {target} could not be written.", hint="Free some space, or choose a folder on another disk."
            ) from error
        raise
