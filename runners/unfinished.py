"""What a press has finished, kept on disk until its job is done, so that a killed one goes on and does not begin anew.

Everything lies in one folder a job. What was made of a model's decoder layers, in order, lies there by a hash of all that decides it, with
the states that enter the next layer; files appear whole or not at all. Keeping never fails a job: without room it is left off.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub import transfer
from hub.codec import content_id
from hub.errors import BadCheckpoint, OutOfDisk
from runners import checkpoint, environment
from runners.headers import read_header

VERSION = 1
"""Raised whenever layers would come out otherwise, so that old ones are not taken for new."""
KEPT_SECONDS = 7 * 24 * 3600
_folder: ContextVar[Path | None] = ContextVar("unfinished", default=None)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a method made of one decoder layer.

    `tensors` holds by name what takes a tensor's place, or belongs to a linear, again by name; `told` what there is to say, as JSON has it.
    """

    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def keeping(folder: Path | None) -> Iterator[None]:
    """Keep what is finished inside below `folder`, None: nowhere. Folders beside it that nobody touched for a week are removed."""
    if folder is not None:
        with suppress(OSError):
            for left in folder.glob("scratch-*"):  # by a process that was killed; a job is done by one at a time
                shutil.rmtree(left, ignore_errors=True)
            for other in folder.parent.glob("*"):
                if other != folder and time.time() - other.stat().st_mtime > KEPT_SECONDS:
                    shutil.rmtree(other, ignore_errors=True)
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def begin(folder: Path, anew: Sequence[str]) -> None:
    """Note that a job is begun; where it was before, and stopped, say in the log which of its methods cannot go on but begin `anew`."""
    if folder.is_dir() and anew:
        _log.warning("An earlier try was stopped; %s cannot go on in the middle and begins anew.", " and ".join(anew))
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # its age counts anew, so that no other job takes it for left behind


def drop(folder: Path) -> None:
    """Remove what was kept: the job is done, or will never be."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """Give an empty folder on disk, gone afterwards: beside what is kept, else where the system has temporary files."""
    beside = _folder.get()
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=beside, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def layers(source: Path, *about: object) -> Layers:
    """Return what is kept of a walk over the layers of the checkpoint `source`; `about` is all else that decides its result.

    The environment (hardware, threads, versions of libraries) is part of it: elsewhere sums come out in another order.
    """
    folder = _folder.get()
    if folder is None:
        return Layers(None)
    key = content_id((VERSION, checkpoint.folder_ref(source).sha, environment.current().id, about))
    return Layers(folder / key)


class Layers:
    """The finished layers of one walk: `count` of them, from the first on; `whole` where the last is among them."""

    def __init__(self, folder: Path | None) -> None:
        """Look at what is there, files that are cut left aside; None: nothing is there, and nothing will be kept."""
        self._folder = folder
        self.count = 0
        if folder is None:
            return
        while _sound(self._made(self.count)):
            self.count += 1
        # The states that enter a layer are written after what was made of the one before it, and then replace the older ones.
        while self.count and not (self._entering(self.count) or self.whole):
            self.count -= 1
        if self.count:
            _log.warning("Going on: an earlier try finished %d decoder layers.", self.count)

    @property
    def whole(self) -> bool:
        """Whether the last layer is finished too."""
        return self._folder is not None and self._end().is_file()

    def made(self, place: int) -> Made:
        """Return what was made of a layer."""
        from safetensors import safe_open

        with safe_open(self._made(place), framework="pt") as opened:
            about = json.loads(opened.metadata()["about"])
            tensors: dict[str, dict[str, Any]] = {}
            for number, (outer, inner) in enumerate(about["names"]):
                tensors.setdefault(outer, {})[inner] = opened.get_tensor(str(number))
        return Made(tensors=tensors, told=about["told"])

    def states(self) -> Iterator[Any]:
        """Give the states that enter the first layer that is not finished, batch by batch."""
        from safetensors.torch import load_file

        for path in self._entering(self.count):
            yield load_file(path)["states"]

    def add(self, place: int, made: Made, states: Sequence[Any] | None) -> None:
        """Keep what was made of a layer, and the states that enter the next one; None: it was the last."""
        if self._folder is None:
            return
        try:
            self._add(place, made, states)
        except (OSError, OutOfDisk) as error:
            _log.warning("Finished layers are kept no more: %s", error)
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _add(self, place: int, made: Made, states: Sequence[Any] | None) -> None:
        named = [(outer, inner, tensor) for outer, parts in made.tensors.items() for inner, tensor in parts.items()]
        about = json.dumps({"names": [(outer, inner) for outer, inner, _ in named], "told": made.told})
        _write(self._made(place), {str(number): tensor.clone() for number, (_, _, tensor) in enumerate(named)}, about)
        if states is None:
            _write(self._end(), {}, "")
        else:
            folder = self._states(place + 1)
            beside = checkpoint.beside(folder)
            for number in range(len(states)):
                _write(beside / f"{number:05d}.safetensors", {"states": states[number]}, "")
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
        shutil.rmtree(self._states(place), ignore_errors=True)

    def _entering(self, place: int) -> list[Path]:
        found = sorted(self._states(place).glob("*.safetensors"))
        return found if all(map(_sound, found)) else []

    def _made(self, place: int) -> Path:
        assert self._folder is not None
        return self._folder / f"layer-{place:05d}.safetensors"

    def _states(self, place: int) -> Path:
        assert self._folder is not None
        return self._folder / f"states-{place:05d}"

    def _end(self) -> Path:
        assert self._folder is not None
        return self._folder / "end.safetensors"


def _sound(path: Path) -> bool:
    try:
        return path.is_file() and read_header(path) is not None
    except BadCheckpoint:
        return False


def _write(path: Path, tensors: Mapping[str, Any], about: str) -> None:
    """Write a file that appears whole or not at all; raise `OSError` or `OutOfDisk`."""
    from safetensors.torch import save_file

    transfer.require_room(path.parent, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), "A finished layer")
    beside = checkpoint.beside(path)
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, beside, metadata={"about": about})
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
        beside.replace(path)
    except Exception as error:
        beside.unlink(missing_ok=True)
        raise OSError(str(error)) from error  # safetensors has an error of its own for a full disk
