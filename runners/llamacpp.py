"""llama.cpp through llama-cpp-python's binding of its C functions: open a GGUF file, cut text into tokens, quantize."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hub.errors import BadCheckpoint

_said: deque[str] = deque(maxlen=8)  # what llama.cpp last complained of; its functions tell no reason
_callback: Any = None
_WARNING = 3


def library() -> Any:
    """Return the binding, its log turned from the terminal into `complaint`."""
    global _callback
    from llama_cpp import llama_cpp

    if _callback is None:

        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
        def listen(level: int, text: bytes, _: Any) -> None:
            if level >= _WARNING and (said := text.decode("utf-8", errors="replace").strip()):
                _said.append(said)

        _callback = listen  # the library calls it as long as it lives
        llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


def complaint() -> str:
    """Return llama.cpp's last warnings and errors, in one line."""
    return " ".join(_said)[-300:] or "it tells no reason"


class Model:
    """A GGUF file opened by llama.cpp; `vocab_only` leaves the weights alone. Raises `BadCheckpoint` where llama.cpp refuses it."""

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        """Open the file."""
        self._library = library()
        _said.clear()
        settings = self._library.llama_model_default_params()
        settings.vocab_only = vocab_only
        settings.n_gpu_layers = 0  # a binding that was built for a GPU would take it
        self.handle = self._library.llama_model_load_from_file(str(path).encode(), settings)
        if not self.handle:
            raise BadCheckpoint(f"llama.cpp cannot load {path.name}: {complaint()}", hint="Press it again.")
        self.vocab = self._library.llama_model_get_vocab(self.handle)

    def tokenize(self, text: str) -> list[int]:
        """Return the text's token ids, with the special tokens that the file says are added."""
        data = text.encode()
        room = len(data) + 8
        ids = (self._library.llama_token * room)()
        count = self._library.llama_tokenize(self.vocab, data, len(data), ids, room, True, True)
        return list(ids[:count])

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return int(self._library.llama_vocab_n_tokens(self.vocab))

    @property
    def context_length(self) -> int:
        """The longest sequence the model was trained for; 2**31 where the file does not say."""
        return int(self._library.llama_model_n_ctx_train(self.handle)) or 2**31

    def __del__(self) -> None:
        """Give the memory back."""
        if getattr(self, "handle", None):
            self._library.llama_model_free(self.handle)
            self.handle = None


class Context:
    """A place for `batch` sequences of at most `size` tokens; `threads` as torch has them, so that two engines are compared fairly."""

    def __init__(self, model: Model, size: int, threads: int, batch: int = 1) -> None:
        """Take the memory."""
        self._library = library()
        self.model = model
        self.size = size
        self.batch = batch
        settings = self._library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = size * batch
        settings.n_seq_max = batch
        settings.n_threads = settings.n_threads_batch = threads
        settings.offload_kqv = settings.op_offload = False
        _said.clear()
        self.handle = self._library.llama_init_from_model(model.handle, settings)
        if not self.handle:
            raise BadCheckpoint(
                f"llama.cpp makes no context of {batch} × {size} tokens: {complaint()}", hint="Use a protocol of shorter sequences."
            )

    def forget(self) -> None:
        """Empty all sequences."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self.handle), False)

    def read(self, rows: Sequence[Sequence[int]], *, start: int, all_logits: bool) -> Any:
        """Append to each sequence its row of tokens at position `start`; rows are equally long.

        Return the logits after each token, or after each row's last: float32 (batch, tokens or 1, vocabulary). The array is llama.cpp's
        own memory, overwritten by the next call.
        """
        import numpy as np

        count, length = len(rows) * len(rows[0]), len(rows[0])
        batch = self._library.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            np.ctypeslib.as_array(batch.token, (count,))[:] = np.array([list(row) for row in rows]).ravel()
            np.ctypeslib.as_array(batch.pos, (count,))[:] = np.tile(np.arange(start, start + length), len(rows))
            np.ctypeslib.as_array(batch.n_seq_id, (count,))[:] = 1
            np.ctypeslib.as_array(batch.logits, (count,))[:] = np.tile(np.arange(length) >= (0 if all_logits else length - 1), len(rows))
            for place in range(count):
                batch.seq_id[place][0] = place // length
            if self._library.llama_decode(self.handle, batch):
                raise BadCheckpoint(f"llama.cpp cannot run the model: {complaint()}", hint="Press it again with another recipe.")
        finally:
            self._library.llama_batch_free(batch)
        shape = (len(rows), length if all_logits else 1, self.model.vocabulary)
        return np.ctypeslib.as_array(self._library.llama_get_logits(self.handle), shape=shape)

    def __del__(self) -> None:
        """Give the memory back, before the model's."""
        if getattr(self, "handle", None):
            self._library.llama_free(self.handle)
            self.handle = None


def quantize(source: Path, target: Path, scheme: str, threads: int) -> None:
    """Write `source`, a dense GGUF file, as `target` in a file type such as Q4_K_M; raise `BadCheckpoint` where llama.cpp cannot."""
    binding = library()
    _said.clear()
    settings = binding.llama_model_quantize_default_params()
    settings.ftype = getattr(binding, f"LLAMA_FTYPE_MOSTLY_{scheme}")
    settings.nthread = threads
    if binding.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)):
        raise BadCheckpoint(f"llama.cpp cannot quantize to {scheme}: {complaint()}", hint="Press it again with another recipe.")
