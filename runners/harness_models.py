"""Models as lm-eval takes them: its own HFLM around a torch model, an adapter on logits around any other engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hub.errors import UnfitModel
from runners.engines import Loaded

WINDOW = 2048  # at most; the whole context of a long-context model would not fit beside a large vocabulary

_MOST = 32
_ELEMENTS = 2**27  # of a batch's log-probabilities: 512 MiB in float32


def adapt(loaded: Loaded) -> Any:
    """Return a `TemplateLM` with lm-eval's conventions on tokens; its set `truncated` holds by `key` what had to be cut from the left.

    Log-probabilities are float32, whatever the model's dtype. Raises `UnfitModel` for a tokenizer that has no token to begin a text with.
    """
    tokenizer: Any = getattr(loaded, "tokenizer", None)
    if tokenizer is None or (tokenizer.bos_token_id is None and tokenizer.eos_token_id is None):
        raise UnfitModel(
            "The tokenizer has neither a begin-of-text nor an end-of-text token, and lm-eval begins each text with one.",
            hint="Measure with a protocol without tasks.",
        )
    return _hugging_face(loaded) if hasattr(loaded, "model") else through_logits(loaded)


def key(request: Sequence[Any]) -> tuple[str, ...]:
    """Return what tells a request from others: of text and answer, or of text and how to go on from it."""
    return tuple(map(str, request))


def through_logits(loaded: Loaded) -> Any:
    """Return the adapter for engines that give logits of one sequence at a time."""
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text

    tokenizer: Any = loaded.tokenizer  # type: ignore[attr-defined]  # every engine here has one

    class OnLogits(TemplateLM):  # type: ignore[misc]  # lm_eval is imported in functions only, and untyped here
        """`Loaded.logits` and `Loaded.generate` behind lm-eval's interface; tokens as HFLM has them."""

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer
            self.max_length = min(loaded.context_length, WINDOW)
            self.truncated: set[tuple[str, ...]] = set()

        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            if add_special_tokens is None and has_bos_prefix(string, tokenizer.decode(self.prefix_token_id)):
                add_special_tokens = False
            special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            return list(tokenizer.encode(string, verbose=False, **special))

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            _look_at(self, requests)
            inputs = [(context + answer)[-self.max_length - 1 :][:-1] for _, context, answer in requests]
            found: dict[int, tuple[float, bool]] = {}
            read: list[int] | None = None
            for place in sorted(range(len(requests)), key=inputs.__getitem__):
                if inputs[place] != read:  # answers of one token share their input
                    read = inputs[place]
                    logits = loaded.logits(read)
                found[place] = _score(logits, requests[place][2])
            return [found[place] for place in range(len(requests))]

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            return [sum(value for value, _ in self._loglikelihood_tokens(self._windows(*one.args))) for one in requests]

        def _windows(self, text: str) -> list[tuple[None, list[int], list[int]]]:
            given = utils.get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            return [(None, *utils.make_disjoint_window(pair)) for pair in given]

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            return [self._write(*one.args) for one in requests]

        def _write(self, context: str, settings: dict[str, Any]) -> str:
            room = _room(self, context, settings)
            wanted = normalize_gen_kwargs(settings)
            until = handle_stop_sequences(wanted["until"], eos=tokenizer.decode(self.eot_token_id))
            ids = loaded.generate(self.tok_encode(context)[-room:], wanted["max_gen_toks"])
            text = tokenizer.decode(list(ids), skip_special_tokens=True)
            return str(postprocess_generated_text(generation=text, stop=until, think_end_token=None))

    return OnLogits()


def _hugging_face(loaded: Any) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    plain = copy.copy(loaded.model.config)
    if hasattr(plain, "quantization_config"):  # the model is loaded: HFLM need not read a format that transformers does not know
        del plain.quantization_config
    vocabulary = int(plain.get_text_config().vocab_size)

    class Watched(HFLM):  # type: ignore[misc]  # lm_eval is imported in functions only, and untyped here
        """HFLM with batches that fit a bound, quiet, and away from the Hub."""

        truncated: set[tuple[str, ...]]

        @property
        def config(self) -> Any:
            return plain

        def get_model_info(self) -> dict[str, Any]:
            return {}  # its own asks the Hub for a commit

        def _loglikelihood_tokens(self, requests: Sequence[Any], **others: Any) -> Any:
            _look_at(self, requests)
            longest = max((len(context) + len(answer) for _, context, answer in requests), default=1)
            self.batch_size_per_gpu = _batch(min(longest, self.max_length), vocabulary)
            return super()._loglikelihood_tokens(requests, **others)

        def generate_until(self, requests: Sequence[Any], **others: Any) -> Any:
            for one in requests:
                _room(self, *one.args)
            return super().generate_until(requests, **others)

    tokenizer = copy.deepcopy(loaded.tokenizer)  # HFLM gives it a padding token
    tokenizer.model_max_length = 2**31  # else it warns of each long text; HFLM does the cutting
    length = min(loaded.context_length, WINDOW)
    model = Watched(
        pretrained=loaded.model,
        tokenizer=tokenizer,
        backend="causal",
        max_length=length,
        batch_size=_batch(length, vocabulary),
        softmax_dtype=torch.float32,  # its default is the model's own: in bfloat16 that alone moves a perplexity by as much as 1 %
    )
    model.truncated = set()
    return model


def _look_at(model: Any, requests: Sequence[Any]) -> None:
    """Note what must be cut from the left; refuse an answer that would itself be cut."""
    for texts, context, answer in requests:
        if len(answer) > model.max_length:
            raise UnfitModel(
                f"A task's answer has {len(answer)} tokens, and the model takes {model.max_length}.",
                hint="Leave the task out of the protocol.",
            )
        if len(context) + len(answer) > model.max_length + 1:
            model.truncated.add(key(texts))


def _room(model: Any, context: str, settings: dict[str, Any]) -> int:
    """Return how many tokens of a text fit beside what is to be written; note a text that has more, refuse a task that leaves no room."""
    from lm_eval.models.utils import normalize_gen_kwargs

    new_tokens = normalize_gen_kwargs(settings)["max_gen_toks"]
    room = int(model.max_length - new_tokens)
    if room < 1:
        raise UnfitModel(
            f"The task writes {new_tokens} tokens, and the model takes {model.max_length} with the question.",
            hint="Leave the task out of the protocol.",
        )
    if len(model.tok_encode(context)) > room:
        model.truncated.add(key((context, settings)))
    return room


def _batch(tokens: int, vocabulary: int) -> int:
    return max(1, min(_MOST, _ELEMENTS // (tokens * vocabulary)))


def _score(logits: Any, answer: Sequence[int]) -> tuple[float, bool]:
    """Return the log-likelihood of the last tokens' truth, float32 as in HFLM, and whether each was the most likely one."""
    import torch

    targets = torch.tensor(list(answer), device=logits.device)
    rows = logits[-len(targets) :].float().log_softmax(-1)
    return float(rows.gather(-1, targets[:, None]).sum()), bool((rows.argmax(-1) == targets).all())
