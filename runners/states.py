"""Hidden states of many windows: in memory, or, where a job is frugal, on disk but for those that are looked at."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runners import economy, unfinished


@contextmanager
def room() -> Iterator[MutableSequence[Any]]:
    """Give an empty list for hidden states; that of a frugal job lies on disk."""
    if economy.frugal():
        with unfinished.scratch() as folder:
            yield OnDisk(folder)
    else:
        yield []


class OnDisk(MutableSequence[Any]):
    """A list of float32 tensors that lie in files of their own; each is in memory only while somebody holds it."""

    def __init__(self, folder: Path) -> None:
        """Keep them in the folder."""
        self._folder = folder
        self._shapes: list[Any] = []

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._shapes)

    def __getitem__(self, place: Any) -> Any:
        """Read one."""
        import numpy as np
        import torch

        return torch.from_numpy(np.fromfile(self._file(place), dtype=np.float32)).reshape(self._shapes[place])

    def __setitem__(self, place: Any, tensor: Any) -> None:
        """Write another in place of one."""
        data = memoryview(tensor.detach().contiguous().numpy().reshape(-1)).cast("B")
        self._file(place).write_bytes(data)  # numpy's tofile hides a full disk
        self._shapes[place] = tensor.shape

    def insert(self, index: int, value: Any) -> None:
        """Add one at the end, the only place that is asked for."""
        if index != len(self):
            raise IndexError(index)
        self._shapes.append(value.shape)
        self[index] = value

    def __delitem__(self, place: Any) -> None:
        """Forget one."""
        self._file(place).unlink()
        del self._shapes[place]

    def _file(self, place: int) -> Path:
        return self._folder / f"{range(len(self))[place]:05d}.f32"
