"""Collect the gate's facts on a checkpoint's bytes: files, checksums, tensors, and whether it loads and writes. It judges nothing."""

from __future__ import annotations

import filecmp
from itertools import islice
from pathlib import Path
from typing import Any

from hub.domain import Artifact, Recipe, StepRecord
from hub.errors import ModelPressError
from hub.facts import CODE, LINK, STRAY, Facts
from hub.policy import CARRIED
from runners import chat_template, checkpoint, engines, failures, formats, headers, readers, secrets, unsafe
from runners.checkpoint import MANIFEST
from runners.headers import Stored
from runners.readers import gguf

PROMPT = "The function returns"
NEW_TOKENS = 16
MOST_NAMES = 20
_MOST_STRAYS = 1000  # many more than publishing adds, so that none hides behind those
_MOST_CONFIG = 16 << 20

_DOWNLOAD_NOTES = (".cache", "huggingface")  # what huggingface_hub leaves in a folder that it downloads into


def inspect(folder: Path, recipe: Recipe | None, base_folder: Path | None) -> Facts:
    """Look at a checkpoint folder as someone who downloads it would, and return what was found.

    `base_folder` is the base model's, for the shapes that the recipe's promise starts from and the files that must come along; None where
    it is not known. Without a recipe nothing is promised, and no manifest is missed. Nothing here raises for a bad checkpoint: what is
    wrong with it is in the facts.
    """
    manifest, complaint = _manifest(folder)
    stored, packing, non_finite, unreadable = _tensors(folder, recipe, base_folder, manifest.steps if manifest else ())
    template_fault = chat_template.fault(folder)
    error, ids, text, finite, engine = (unreadable, (), "", True, "") if unreadable else _run(folder)
    return Facts(
        loads=not error,
        load_error=error,
        tensors=len(stored),
        packed_expected=packing.expected if packing else 0,
        packed_found=packing.found if packing else 0,
        not_packed=packing.not_packed[:MOST_NAMES] if packing else (),
        layers=packing.layers if packing else {},
        non_finite=(*non_finite[:MOST_NAMES], *(() if finite else ("logits",))),
        tensor_bytes_expected=packing.bytes_expected if packing else 0,
        tensor_bytes_found=sum(one.tensor.bytes for one in stored.values()),
        missing_files=_missing(folder, base_folder, manifest_needed=recipe is not None),
        unexpected_files=_unexpected(folder, manifest),
        checksum_errors=(*complaint, *_checksums(folder, manifest)),
        unlike_base=_changed(folder, base_folder),
        secrets=tuple(islice(secrets.find(_files(folder)), MOST_NAMES)),
        config=_config(folder),
        outlines={name: (one.tensor.dtype, one.tensor.shape) for name, one in stored.items()},
        keys=_keys(folder),
        prompt=PROMPT,
        generated_ids=ids,
        generated_text=text,
        engine=engine,
        looked_at=sum(formats.can_be_non_finite(one.tensor.dtype) for one in stored.values()),
        template_fault=template_fault,
    )


def _manifest(folder: Path) -> tuple[Artifact | None, tuple[str, ...]]:
    try:
        return checkpoint.read_manifest(folder), ()
    except ModelPressError as error:
        return None, (f"{MANIFEST}: {_told(error, folder)}",)


def _tensors(
    folder: Path, recipe: Recipe | None, base_folder: Path | None, steps: tuple[StepRecord, ...]
) -> tuple[dict[str, Stored], formats.Packing | None, tuple[str, ...], str]:
    """Return the tensors, the packing where something was promised, the tensors that are not finite, and why nothing could be read."""
    base_shape = checkpoint.shape(base_folder) if base_folder and recipe else None
    try:
        if recipe is None:
            readers.require_one(folder)
        if recipe or (folder / "config.json").is_file() or readers.format_of(folder) != "gguf":  # a GGUF file needs none
            checkpoint.read_config(folder)
        stored = headers.stored_tensors(folder)
        packing = formats.packed(folder, recipe, base_shape, steps) if recipe and base_shape else None
        return stored, packing, formats.non_finite(folder), ""
    except ModelPressError as error:
        return {}, None, (), f"{error.name}: {_told(error, folder)}"


def _told(error: ModelPressError, folder: Path) -> str:
    """Return what an error says without the folder, which is nobody's but this machine's."""
    return error.message.replace(f" in {folder}", "").replace(f" {folder}", "").removesuffix(".")


def _config(folder: Path) -> str:
    """Return config.json's text, empty where there is none, or none of a config's size."""
    path = folder / "config.json"
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_CONFIG:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _keys(folder: Path) -> tuple[str, ...]:
    path = readers.engine_file(folder)
    try:
        return gguf.keys(path) if path and path.suffix == ".gguf" else ()
    except ModelPressError:
        return ()


def _run(folder: Path) -> tuple[str, tuple[int, ...], str, bool, str]:
    """Load with the engine of its format and write greedily.

    Return the error (or nothing), token ids, text, whether all logits are finite, and what engine loaded it.
    """
    try:
        readers.require_beside(folder)
        loaded = engines.for_folder(folder).load(folder)
        if loaded.defects:
            return "; ".join(loaded.defects), (), "", True, ""
        prompt = loaded.encode(PROMPT)
        finite = bool(_all_finite(loaded.logits(prompt)))
        ids = loaded.generate(prompt, NEW_TOKENS)
    except ModelPressError as error:
        return f"{error.name}: {_told(error, folder)}", (), "", True, ""
    except Exception as error:  # a checkpoint may break transformers anywhere
        if failures.out_of_memory(error):
            raise  # that is this machine's fault, not the checkpoint's
        return f"{type(error).__name__}: {failures.one_line(error)}", (), "", True, ""
    return "", tuple(ids), loaded.decode(ids), finite, loaded.label


def _all_finite(logits: Any) -> Any:
    return logits.isfinite().all()


def _files(folder: Path) -> dict[str, Path]:
    """Return all entries that are no folders by their POSIX path inside the folder, without the notes of a download."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if parts[: len(_DOWNLOAD_NOTES)] != _DOWNLOAD_NOTES and (path.is_symlink() or not path.is_dir()):
            found["/".join(parts)] = path
    return found


def _carried(base_folder: Path | None) -> dict[str, Path]:
    """Return the base's files that belong beside every variant: tokenizer, chat template, generation config, licence."""
    if base_folder is None:
        return {}
    paths = {path for pattern in CARRIED for path in base_folder.glob(pattern) if path.is_file()}
    return {path.relative_to(base_folder).as_posix(): path for path in sorted(paths)}


def _missing(folder: Path, base_folder: Path | None, *, manifest_needed: bool) -> tuple[str, ...]:
    wanted = {"config.json", *([MANIFEST] if manifest_needed else []), *_carried(base_folder)}
    return tuple(sorted(name for name in wanted if not (folder / name).is_file()))


def _changed(folder: Path, base_folder: Path | None) -> tuple[str, ...]:
    """Name the files that should be the base's own, byte by byte, and are not."""
    both = ((name, folder / name, path) for name, path in _carried(base_folder).items() if (folder / name).is_file())
    return tuple(name for name, mine, its in both if not filecmp.cmp(mine, its, shallow=False))


def _unsafe(folder: Path) -> tuple[str, ...]:
    """Name the files that could run code or that lie elsewhere, with the reason; of the others the first bytes are looked at."""
    found = []
    for name, path in _files(folder).items():
        if path.is_symlink() and not _in_cache(path, folder):  # what lies elsewhere is not read
            code = path.suffix.lower() in unsafe.SUFFIXES and path.name not in readers.OPENVINO
            found.append(f"{name}: {CODE if code else LINK}")
        elif unsafe.could_run(path):
            found.append(f"{name}: {CODE}")
    return tuple(found)


def _unexpected(folder: Path, manifest: Artifact | None) -> tuple[str, ...]:
    """Name the unsafe files, and those that the manifest does not list; which of these publishing adds is known to the gate."""
    bad = _unsafe(folder)
    if manifest is None:
        return bad[:MOST_NAMES]
    known = {file.path for file in manifest.files} | {MANIFEST} | {entry.rpartition(": ")[0] for entry in bad}
    strays = [f"{name}: {STRAY}" for name in _files(folder) if name not in known]
    return (*bad[:MOST_NAMES], *strays[:_MOST_STRAYS])


def _in_cache(path: Path, folder: Path) -> bool:
    """Whether a link is huggingface_hub's own, from its snapshot folder to its blobs."""
    return folder.parent.name == "snapshots" and path.resolve().parent == folder.resolve().parents[1] / "blobs"


def _checksums(folder: Path, manifest: Artifact | None) -> tuple[str, ...]:
    found = []
    for file in manifest.files if manifest else ():
        path = folder / file.path
        if not path.is_file():
            found.append(f"{file.path}: missing")
        elif checkpoint.describe(path, folder) != file:
            found.append(f"{file.path}: not the bytes that the manifest lists")
    return tuple(found)
