"""Rehearse a press on a tiny model of the same kind, so that what dies while saving or loading dies in seconds and not after hours.

The tiny model has the base's architecture, vocabulary, dtype and tokenizer, two layers and random weights; it goes through the very
recipe, shown a few short windows, and what comes out must be packed as promised, load, and predict finite numbers.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from hub.domain import Recipe, Step
from hub.errors import BadCheckpoint, CalibrationFailed, ModelPressError, UnfitModel, Unstable, UsageError
from runners import checkpoint, dense, engines, failures, formats, unfinished
from runners.architectures import PER_LAYER_LISTS
from runners.checkpoint import ModelShape
from runners.method import PressContext

FROM_BYTES = 2**29
"""Models of fewer bytes are pressed in less time than a rehearsal would be worth."""
SAMPLES, LENGTH = 8, 64
BUDGETS = {"tokens": 2048, "iters": 4}
"""Parameters that say how long a method learns, and the most of each in a rehearsal."""
_WIDTH, _HEADS, _LAYERS = 256, 4, 2
_PROMPT_TOKENS = 16
_log = logging.getLogger(__name__)


def shortened(recipe: Recipe, *, samples: int = SAMPLES, sequence_length: int = LENGTH) -> Recipe:
    """Return a recipe that does the same with little text and few steps of learning."""
    return replace(recipe, steps=tuple(_shortened(step, samples, sequence_length) for step in recipe.steps))


def _shortened(step: Step, samples: int, sequence_length: int) -> Step:
    shown = step.calibration and replace(step.calibration, samples=samples, sequence_length=sequence_length)
    params = {name: min(int(value), BUDGETS[name]) if name in BUDGETS else value for name, value in step.params.items()}
    return replace(step, calibration=shown, params=params)


def rehearse(recipe: Recipe, source: Path, folder: Path) -> bool:
    """Press a tiny model like the one in `source` inside `folder`; return whether it could be rehearsed.

    A recipe that does not fit the tiny model, by its shapes or by its numbers, is logged and not rehearsed: that says nothing of the real
    one. Raises `BadCheckpoint` with what went wrong, or what the press itself raises.
    """
    from runners import press

    small = folder / "small"
    small.mkdir(parents=True)
    make_tiny(source, small)
    short, shape = shortened(recipe), checkpoint.shape(small)
    try:
        press.check(short, shape)
    except (UnfitModel, UsageError) as error:
        return _skipped(recipe, error)
    scratch = folder / "scratch"
    scratch.mkdir()
    context = PressContext(base_folder=small, scratch=scratch, cache=scratch)
    try:
        with unfinished.keeping(None):
            made, steps = press.chain(short, folder, context, {})
        packing = formats.packed(made, short, shape, steps)
        if packing.not_packed:
            raise BadCheckpoint(f"{', '.join(packing.not_packed[:3])} would not be as promised.", hint="Report this recipe.")
        _run(made)
    except (UnfitModel, Unstable, CalibrationFailed) as error:
        return _skipped(recipe, error)
    except ModelPressError as error:
        raise type(error)(f"{recipe.name} fails on a tiny model of this kind already: {error.message}", hint=error.hint) from error
    except Exception as error:  # libraries raise whatever their parts raise
        if failures.out_of_memory(error) or failures.disk_full(error):
            raise
        raise BadCheckpoint(
            f"{recipe.name} fails on a tiny model of this kind already: {type(error).__name__}: {failures.one_line(error)}",
            hint="Use another recipe, or another version of the library.",
        ) from error
    return True


def _skipped(recipe: Recipe, error: ModelPressError) -> bool:
    _log.warning("%s is not rehearsed, as it does not fit a tiny model of this kind: %s", recipe.name, error.message)
    return False


def _run(folder: Path) -> None:
    loaded = engines.for_folder(folder).load(folder)
    if loaded.defects:
        raise BadCheckpoint(f"it would load wrongly: {'; '.join(loaded.defects)}.", hint="Use another recipe.")
    if not bool(loaded.logits(range(_PROMPT_TOKENS)).isfinite().all()):
        raise BadCheckpoint("it would predict no finite numbers.", hint="Use another recipe.")


def make_tiny(source: Path, target: Path) -> ModelShape:
    """Write a model of two layers and width 256 with the config, dtype and tokenizer of `source`; weights random, the seed fixed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    for name, value in _tiny(config).items():
        setattr(config, name, value)
    dtype = getattr(torch, dense.own_dtype(source))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.save_pretrained(target)
    dense.edit_config(target, dtype=dense.own_dtype(source))
    checkpoint.carry_over(source, target)
    return checkpoint.shape(target)


def _tiny(config: Any) -> dict[str, Any]:
    if hasattr(config, "n_embd"):
        return {"n_layer": _LAYERS, "n_embd": _WIDTH, "n_head": _HEADS, "n_inner": None}
    groups = max(1, config.num_attention_heads // max(1, getattr(config, "num_key_value_heads", None) or config.num_attention_heads))
    values = {
        "num_hidden_layers": _LAYERS,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": max(1, _HEADS // groups),
        "head_dim": _WIDTH // _HEADS,
    }
    values |= {key: value[:_LAYERS] for key in PER_LAYER_LISTS if isinstance(value := getattr(config, key, None), list)}
    return values
