"""A depot: an fsspec address where a cluster's machines leave artifacts for each other; nothing in it is trusted before it was checked.

It holds `<variant>/<digest>/<path>` and, written last, `<variant>/modelpress.json`, the manifest: an artifact without one does not exist.
As its files lie in a folder named by their checksums, two machines that push the same variant at once never mix. What is no artifact (a
local base model, a downloaded release) lies in `inputs/<name>/<path>` for one job; whoever fetches it is told what it holds.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from hub import names
from hub.codec import from_json
from hub.domain import Artifact, ArtifactFile
from hub.errors import BadCheckpoint, BadDocument, HubUnreachable, ModelPressError, SettingsError, TimedOut, Unavailable
from hub.transfer import require_room
from runners import checkpoint, unsafe
from runners.checkpoint import MANIFEST

INPUTS = "inputs"
_CHUNK = 1 << 20
_LARGEST_MANIFEST = 64 << 20
_until: ContextVar[float] = ContextVar("until", default=math.inf)
T = TypeVar("T")


def in_time(seconds: float, transfer: Callable[[], T]) -> T:
    """Do what reads or writes a depot in `seconds` (0: however long it takes), else raise `TimedOut`.

    What a library waits for without end is left to a thread of its own, which does nothing more should it ever go on.
    """
    if seconds <= 0:
        return transfer()
    outcome: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def attempt() -> None:
        _until.set(time.monotonic() + seconds)
        try:
            outcome.put((transfer(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=attempt, name="depot", daemon=True).start()
    try:
        made, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise _late() from None
    if error is not None:
        raise error
    return made  # type: ignore[return-value]


def _late() -> TimedOut:
    return TimedOut(
        "Artifacts could not be sent or fetched within the time that the job may take.",
        hint="Check farm.artifacts from the machines of the cluster, or raise farm.timeout_s.",
    )


class Depot:
    """An address of artifacts. Trouble with it is `HubUnreachable` (another try may help), what it should not hold `BadCheckpoint`."""

    def __init__(self, address: str) -> None:
        """Open an address such as `s3://bucket/artifacts` or a folder; raise `SettingsError` or `Unavailable` where that cannot be."""
        shown = re.sub(r"(?<=://)[^/@\s]*@", "", address)  # a password in it is not for messages
        try:
            fsspec: Any = importlib.import_module("fsspec")  # it has no types
            self._fs, root = fsspec.url_to_fs(address)
        except ImportError as error:
            hint = "pip install 'modelpress[ray]', and the library that fsspec names, on every machine of the cluster."
            why = str(error).replace(address, shown)
            raise Unavailable(f"The artifacts' address {shown} cannot be opened: {why}.", hint=hint) from error
        except Exception as error:
            why = str(error).replace(address, shown)
            raise SettingsError(f"farm.artifacts: {shown} cannot be opened: {why}", hint="Give an fsspec address.") from error
        if "memory" in _protocols(self._fs):
            raise SettingsError("farm.artifacts: memory:// is seen by one process alone", hint="Give an address that all machines see.")
        self._root = str(root).rstrip("/")
        self._address = shown

    def manifest(self, variant: str) -> Artifact | None:
        """Return the manifest of a variant, None where there is none."""
        path = f"{self._root}/{variant}/{MANIFEST}"
        with self._errors():
            if not self._fs.exists(path):
                return None
            with self._fs.open(path, "rb") as stream:
                text = stream.read(_LARGEST_MANIFEST + 1)
        if len(text) > _LARGEST_MANIFEST:
            raise BadCheckpoint(f"The manifest of {variant} at {self._address} is too large.", hint="Remove it and press again.")
        artifact = from_json(Artifact, text, where=f"the manifest of {variant} at {self._address}")
        if artifact.variant_id != variant:
            raise BadCheckpoint(
                f"The manifest of {variant} at {self._address} is that of {names.shown(artifact.variant_id)}.",
                hint="Remove it and press again.",
            )
        return artifact

    def holds(self, artifact: Artifact) -> bool:
        """Whether just this artifact is there, by its manifest and the sizes of its files."""
        try:
            there = self.manifest(artifact.variant_id)
        except (BadCheckpoint, BadDocument):
            return False
        folder = self._folder(artifact)
        with self._errors():
            return there == artifact and all(self._size(f"{folder}/{file.path}") == file.size for file in artifact.files)

    def push(self, folder: Path) -> Artifact:
        """Send the finished artifact in `folder`, its manifest last."""
        artifact = checkpoint.read_manifest(folder)
        if artifact is None:
            raise BadCheckpoint(f"{folder} holds no finished checkpoint.", hint="Press it first.")
        self._send(folder, artifact.files, self._folder(artifact))
        path = f"{self._root}/{artifact.variant_id}/{MANIFEST}"
        beside = f"{path}{checkpoint.PARTIAL}{uuid4().hex}"
        with self._errors():
            self._fs.pipe_file(beside, (folder / MANIFEST).read_bytes())
            self._fs.mv(beside, path)
        return artifact

    def pull(self, variant: str, target: Path, *, digest: str = "") -> Artifact:
        """Bring a variant's artifact to the folder `target`, which is there whole or not at all; what lies there already is kept.

        `digest` is that of the artifact meant; empty: whichever is there.
        """
        artifact = self.manifest(variant)
        if artifact is None:
            raise BadCheckpoint(f"{self._address} holds no finished checkpoint of the variant {variant}.", hint="Press it first.")
        if digest and artifact.digest != digest:
            raise BadCheckpoint(
                f"{self._address} holds another checkpoint of the variant {variant} than the one meant.", hint="Remove it and press again."
            )
        if not whole(target, artifact):
            self._fetch(self._folder(artifact), artifact.files, target, artifact)
        return artifact

    def push_input(self, folder: Path, name: str) -> tuple[ArtifactFile, ...]:
        """Send a folder that is no artifact under a name of its own, and return what it holds."""
        files = tuple(checkpoint.describe(path, folder) for path in sorted(folder.rglob("*")) if path.is_file())
        self._send(folder, files, self._input(name))
        return files

    def pull_input(self, name: str, files: Sequence[ArtifactFile], target: Path) -> None:
        """Bring what `push_input` sent to the folder `target`."""
        self._fetch(self._input(name), files, target, None)

    def remove_input(self, name: str) -> None:
        """Remove what `push_input` sent."""
        with self._errors():
            if self._fs.exists(self._input(name)):
                self._fs.rm(self._input(name), recursive=True)

    def _folder(self, artifact: Artifact) -> str:
        return f"{self._root}/{artifact.variant_id}/{artifact.digest}"

    def _input(self, name: str) -> str:
        return f"{self._root}/{INPUTS}/{name}"

    def _size(self, path: str) -> int | None:
        try:
            return int(self._fs.info(path)["size"])
        except FileNotFoundError:
            return None

    def _send(self, folder: Path, files: Sequence[ArtifactFile], to: str) -> None:
        with self._errors():
            for file in files:
                path = f"{to}/{file.path}"
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                with (folder / file.path).open("rb") as source, self._fs.open(path, "wb") as sink:
                    while chunk := source.read(_CHUNK):
                        _still_time()
                        sink.write(chunk)

    def _fetch(self, source: str, files: Sequence[ArtifactFile], target: Path, artifact: Artifact | None) -> None:
        """Copy files to a folder beside `target`, check each, and only then give it its name."""
        if fault := names.paths_fault(file.path for file in files):
            raise BadCheckpoint(f"What lies at {self._address} is refused: {fault}.", hint="Remove it and press again.")
        require_room(target.parent, sum(file.size for file in files), f"what lies at {self._address}")
        shutil.rmtree(target, ignore_errors=True)
        with self._errors(), checkpoint.partial(target) as folder:
            for file in files:
                self._take(f"{source}/{file.path}", file, folder / file.path)
            for file in files:  # only now: whether some are harmless, their neighbours tell
                if unsafe.could_run(folder / file.path):
                    raise _refused(file, f"at {self._address} could run code")
            if artifact:
                with self._fs.open(f"{self._root}/{artifact.variant_id}/{MANIFEST}", "rb") as stream:
                    (folder / MANIFEST).write_bytes(stream.read(_LARGEST_MANIFEST))
                if checkpoint.read_manifest(folder) != artifact:
                    raise HubUnreachable(f"The artifact {artifact.variant_id} changed while it was read.", hint="Run it again.")

    def _take(self, path: str, file: ArtifactFile, target: Path) -> None:
        """Copy one file, no more of it than was announced, and refuse it where it is not what was announced."""
        _still_time()
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        if not self._fs.exists(path):
            raise _refused(file, f"is missing at {self._address}")
        with self._fs.open(path, "rb") as source, target.open("wb") as sink:
            while size <= file.size and (chunk := source.read(_CHUNK)):
                _still_time()
                digest.update(chunk)
                sink.write(chunk)
                size += len(chunk)
        if size != file.size or digest.hexdigest() != file.sha256:
            raise _refused(file, f"at {self._address} is cut or changed: its size or checksum is another than listed")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Let our own errors and those of this machine's disk pass; all else is trouble with the address."""
        try:
            with checkpoint.disk_errors(Path(self._address)):
                yield
        except ModelPressError:
            raise
        except Exception as error:  # each file system of fsspec has errors of its own
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise HubUnreachable(
                f"The artifacts at {self._address} cannot be read or written: {said}", hint="Check farm.artifacts from this machine."
            ) from error


def _still_time() -> None:
    if time.monotonic() > _until.get():
        raise _late()


def whole(folder: Path, artifact: Artifact | None) -> bool:
    """Whether a folder holds this artifact (None: any), as far as its manifest and the sizes of its files tell."""
    try:
        found = checkpoint.read_manifest(folder)
    except ModelPressError:
        return False
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    same = found is not None and (artifact is None or found == artifact)
    return same and found is not None and all(sizes.get(folder / file.path) == file.size for file in found.files)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _refused(file: ArtifactFile, why: str) -> BadCheckpoint:
    return BadCheckpoint(f"The file {names.shown(file.path)} {why}.", hint="Remove the artifact there and press it again.")
