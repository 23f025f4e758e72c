"""What a base predicts, for all its variants: run once, its final hidden states kept on disk, its logits made from them piece by piece.

A hidden state is the input of the model's output embedding: `hidden_size` numbers a token in place of a vocabulary of logits. Pieces of
many rows are multiplied at once, as the model itself does; on a CPU they came out equal to the last bit, other kernels may round the last
bit otherwise. How far the first window's logits were from the model's own is kept in the index.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from hub import transfer
from hub.codec import content_id
from hub.errors import OutOfDisk
from runners import checkpoint, economy, environment
from runners.engines import Loaded

Rows = Callable[[int, int], Any]

_INDEX = "index.json"
_KEPT_SECONDS = 30 * 24 * 3600  # states that nobody used for so long go when others are written
_TRIED = 32  # tokens on which it is seen whether logits can be made from hidden states
_BLOCK_ELEMENTS = 2**24  # logits that are made at once: 64 MiB in float32, whatever the vocabulary


class Beside(Protocol):
    """What gives a base's logits, one window after the other."""

    def window(self, index: int, ids: Sequence[int]) -> Rows:
        """Return what gives the logits after the tokens `start` to `stop` of a window, shape (stop - start, vocabulary)."""


class Live:
    """A base that is run beside its variant; the logits of one window are held at a time."""

    def __init__(self, base: Loaded) -> None:
        """Keep the model."""
        self._base = base

    def window(self, index: int, ids: Sequence[int]) -> Rows:  # noqa: ARG002 - one signature for both
        """Run the base over the window."""
        logits = self._base.logits(ids)
        return lambda start, stop: logits[start:stop]


class Sparing:
    """A model whose hidden states alone are held, one window at a time; logits are made of them piece by piece as they are asked for."""

    def __init__(self, model: Loaded, head: Any) -> None:
        """Keep the model and its output embedding."""
        self._model = model
        self._head = head

    def window(self, index: int, ids: Sequence[int]) -> Rows:  # noqa: ARG002 - one signature for all
        """Run the model over the window."""
        hidden = _pass(self._model, self._head, ids, whole=False)[1]
        return lambda start, stop: self._head(hidden[None, start:stop])[0]


class Kept:
    """A base whose hidden states lie in a folder; `head` is its output embedding, on `device`."""

    def __init__(self, folder: Path, head: Any, device: str) -> None:
        """Keep where they are."""
        self._folder = folder
        self._head = head
        self._device = device

    def window(self, index: int, ids: Sequence[int]) -> Rows:  # noqa: ARG002 - one signature for both
        """Read the window's states; logits are made when they are asked for."""
        from safetensors.torch import load_file

        hidden = load_file(self._folder / _file(index), device=self._device)["hidden"]
        return lambda start, stop: self._head(hidden[None, start:stop])[0]


def block_rows(vocabulary: int) -> int:
    """Return for how many tokens logits are made at once."""
    return max(1, _BLOCK_ELEMENTS // vocabulary)


def live(model: Loaded, ids: Sequence[int]) -> Beside:
    """Return what runs a model over windows; in a frugal job one that never holds a window's logits, where its first tokens allow it."""
    head = model.model.get_output_embeddings() if hasattr(model, "model") and economy.frugal() else None
    if head is None or _first(model, head, ids[:_TRIED])[2]:
        return Live(model)
    return Sparing(model, head)


def beside(base: Loaded, folder: Path, windows: Sequence[Sequence[int]], cache: Path | None) -> tuple[Beside, tuple[str, ...]]:
    """Return what gives the logits of the base in `folder` over these windows, and notes on why it could not be kept.

    The states lie in `cache`, by a hash of the base's files, the tokens, the dtype and the environment; where they are missing, cut or
    changed, the base is run over all windows and they are written anew. A base that does something to its logits after its output
    embedding, or has none, is run beside each variant; so is any without a cache, or without room in it. States that were not used for
    30 days are removed.
    """
    head = base.model.get_output_embeddings() if hasattr(base, "model") else None
    if cache is None or head is None or not windows:
        return live(base, windows[0]) if windows else Live(base), ()
    key = content_id((checkpoint.folder_ref(folder).sha, windows, base.label, environment.current().id))
    place = cache / "base-states" / key
    if not _whole(place, len(windows)):
        shutil.rmtree(place, ignore_errors=True)  # now, not when others are written: another process may put whole ones there meanwhile
        first, drift, reason = _first(base, head, windows[0])
        reason = reason or _write(place, base, head, windows, first, drift)
        if reason:
            return Live(base), (f"The base is run again for each of its variants: {reason}.",)
    with suppress(OSError):  # a cache that may only be read
        os.utime(place)
    return Kept(place, head, base.device), ()


def _write(place: Path, base: Loaded, head: Any, windows: Sequence[Sequence[int]], first: Any, drift: float) -> str:
    """Run the base over all windows but the first and keep the states; return why they could not be kept, else an empty text.

    The index is written last, and the folder has its name only when it is whole.
    """
    from safetensors.torch import save_file

    _forget_old(place.parent)
    try:
        transfer.require_room(place.parent, sum(map(len, windows)) * first.shape[-1] * first.element_size(), "What the base predicts")
        with checkpoint.partial(place) as folder:
            files = {}
            for index, ids in enumerate(windows):
                path = folder / _file(index)
                hidden = _pass(base, head, ids, whole=False)[1] if index else first
                save_file({"hidden": hidden.cpu().contiguous()}, path)
                files[path.name] = checkpoint.describe(path, folder).sha256
            checkpoint.write_atomically(folder / _INDEX, json.dumps({"files": files, "drift": drift}, indent=1) + "\n")
    except OutOfDisk:
        return "there is no room to keep what it predicts"
    except OSError:
        if not _whole(place, len(windows)):  # else another process was quicker, and its states are the same
            raise
    return ""


def _forget_old(folder: Path) -> None:
    """Remove states that were last used long ago."""
    for place in folder.glob("*"):
        with suppress(OSError):  # another process removes it too
            if time.time() - place.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(place)


def _whole(place: Path, count: int) -> bool:
    """Return whether all windows' states are there with the bytes that the index names."""
    try:
        files = json.loads((place / _INDEX).read_text("utf-8"))["files"]
        return len(files) == count and all(checkpoint.describe(place / name, place).sha256 == sha for name, sha in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _first(base: Loaded, head: Any, ids: Sequence[int]) -> tuple[Any, float, str]:
    """Return the first window's states, how far logits made from them are from the model's own, and why they will not do.

    How far: the largest difference over the largest logit. The model's own logits must be, bit by bit, what its output embedding gave:
    only then nothing happens to them afterwards.
    """
    import torch

    logits, hidden, out = _pass(base, head, ids, whole=True)
    if hidden is None:
        return None, 0.0, "its output embedding is not called once with the states of the window"
    step = block_rows(logits.shape[-1])
    furthest = largest = 0.0
    for start in range(0, len(logits), step):
        own, plain = logits[start : start + step].float(), out[start : start + step].float()
        if not plain.isfinite().all():
            return None, 0.0, "not all of its logits are finite"  # masked tokens may be so; what is wrong is found when it is scored
        if not torch.equal(own, plain):
            return None, 0.0, "it scales, caps or cuts its logits after its output embedding"
        with torch.inference_mode():
            again = head(hidden[None, start : start + step])[0].float()
        furthest, largest = max(furthest, float((again - own).abs().max())), max(largest, float(own.abs().max()))
    drift = furthest / largest if largest else furthest
    # In 16 bits a sum that differs in float32's last bit can round to its neighbour; in float32 the order of the sum is all there is.
    allowed = torch.finfo(logits.dtype).eps * (1 if logits.dtype.itemsize == 2 else 256)
    reason = "" if drift <= allowed else f"logits made from its hidden states differ by {drift:.1e} of the largest one"
    return hidden, drift, reason


def _pass(base: Loaded, head: Any, ids: Sequence[int], *, whole: bool) -> tuple[Any, Any, Any]:
    """Run the base; return its logits, the input and the output of its output embedding (None where that was not as expected).

    Unless `whole`, the output embedding is given the last token alone, which spares its multiplication and its memory.
    """
    inputs, outputs = [], []

    def before(_module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs.append(given[0])
        return given if whole else (given[0][:, -1:], *given[1:])

    def after(_module: Any, _given: Any, output: Any) -> None:
        outputs.append(output)

    hooks = (head.register_forward_pre_hook(before), head.register_forward_hook(after))
    try:
        logits = base.logits(ids)
    finally:
        for hook in hooks:
            hook.remove()
    fits = len(inputs) == len(outputs) == 1 and inputs[0].dim() == 3 and inputs[0].shape[:2] == (1, len(ids))
    return logits, *((inputs[0][0], outputs[0][0]) if fits else (None, None))


def _file(index: int) -> str:
    return f"window-{index:05d}.safetensors"
