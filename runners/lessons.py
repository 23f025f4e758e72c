"""The lessons of distillation: by scheme, which windows a student is shown, and the loss that compares it with its teacher on them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners import dense, distillation, teachers, training
from runners.architectures import architecture

_WRITERS = 32  # windows that a model goes on writing at once


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Who is taught what: the student, its teacher's folder, windows of text, a folder for what is kept, a seed, the step's options."""

    student: Any
    base_folder: Path
    cache: Path
    windows: list[list[int]]
    seed: int
    options: Mapping[str, Any]

    def teacher(self) -> Any:
        """Load the teacher, in float32."""
        return dense.load(self.base_folder, dtype="float32")

    def with_text(self, value: Any, given: Any, batch: Any) -> Any:
        """Return a loss mixed with the cross-entropy of the logits `given` on the text itself, by `text_weight`."""
        share = self.options["text_weight"]
        return (1 - share) * value + share * training.cross_entropy(given, batch) if share else value


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Windows of tokens, a loss on a batch of them, and modules that are trained beside the student and thrown away.

    `additive`: the loss is a mean over windows that is the same whatever is looked at together.
    """

    windows: list[list[int]]
    loss: training.Loss
    helpers: tuple[Any, ...] = ()
    additive: bool = False


def _logits(setting: Setting) -> Lesson:
    """The teacher's distributions at a temperature: looked up as they come, or its top tokens kept on disk."""
    temperature, student = setting.options["temperature"], setting.student
    if setting.options["teacher"] == "offline":
        cached = _cached(setting, setting.options["top_k"], temperature)

        def from_disk(batch: Any) -> Any:
            given = training.logits(student, batch)
            return setting.with_text(distillation.top_divergence(given, cached.answers(batch), temperature=temperature), given, batch)

        return Lesson(windows=setting.windows, loss=from_disk, additive=True)
    teacher = setting.teacher()

    def online(batch: Any) -> Any:
        given = training.logits(student, batch)
        return setting.with_text(training.divergence(given, training.targets(teacher, batch), temperature=temperature), given, batch)

    return Lesson(windows=setting.windows, loss=online, additive=True)


def _cached(setting: Setting, count: int, temperature: float) -> teachers.Cached:
    path = teachers.keep(setting.base_folder, setting.windows, setting.cache, count=count, temperature=temperature)
    return teachers.Cached(path, setting.windows)


def _hard(setting: Setting) -> Lesson:
    """The teacher's likeliest token alone, as a label."""
    import torch.nn.functional as F  # noqa: N812 - the name that everybody uses

    offline = setting.options["teacher"] == "offline"
    cached, teacher = (_cached(setting, 1, 1.0), None) if offline else (None, setting.teacher())

    def loss(batch: Any) -> Any:
        best = cached.answers(batch).places[:, 0] if cached else training.targets(teacher, batch).argmax(dim=-1)
        given = training.logits(setting.student, batch)
        return setting.with_text(F.cross_entropy(given, best), given, batch)

    return Lesson(windows=setting.windows, loss=loss)


def _pieces(setting: Setting) -> tuple[list[list[int]], int]:
    """Return the windows cut to the step's `piece`, and how many of a piece's tokens are the prompt."""
    cut = teachers.pieces(setting.windows, setting.options["piece"])
    return cut, min(len(cut[0]) - 1, max(1, round(len(cut[0]) * setting.options["prompt_share"])))


def _text(setting: Setting) -> Lesson:
    """Sequence-level distillation (Kim and Rush, 1606.07947): the teacher goes on from prompts, the student learns what it wrote."""
    import torch
    import torch.nn.functional as F  # noqa: N812 - the name that everybody uses

    cut, prompt = _pieces(setting)
    cut = cut[: max(1, setting.options["tokens"] // len(cut[0]))]  # no more than the budget shows
    teacher, draw = setting.teacher(), torch.Generator().manual_seed(setting.seed)
    temperature, more = setting.options["sampling_temperature"], len(cut[0]) - prompt
    written: list[list[int]] = []
    for start in range(0, len(cut), _WRITERS):
        prompts = torch.tensor(cut[start : start + _WRITERS])[:, :prompt]
        written += teachers.continued(teacher, prompts, more, temperature=temperature, generator=draw).tolist()

    def loss(batch: Any) -> Any:
        given = setting.student(batch, use_cache=False).logits[:, prompt - 1 : -1]
        return F.cross_entropy(given.flatten(0, 1), batch[:, prompt:].flatten())

    return Lesson(windows=written, loss=loss, additive=True)


def _on_policy(setting: Setting) -> Lesson:
    """Generalised distillation (GKD, 2306.13649): in a share of the batches the student writes, and the teacher says what it would have."""
    import torch

    options, student, teacher = setting.options, setting.student, setting.teacher()
    cut, prompt = _pieces(setting)
    draw = torch.Generator().manual_seed(setting.seed)
    toss = random.Random(setting.seed)  # noqa: S311 - a seeded draw, no secret

    def loss(batch: Any) -> Any:
        first = 0
        if toss.random() < options["own_share"]:
            first, more = prompt - 1, batch.shape[1] - prompt
            batch = teachers.continued(student, batch[:, :prompt], more, temperature=options["sampling_temperature"], generator=draw)
        with torch.no_grad():
            wanted = teacher(batch, use_cache=False).logits[:, first:-1].flatten(0, 1)
        given = student(batch, use_cache=False).logits[:, first:-1].flatten(0, 1)
        return distillation.generalised_divergence(given, wanted, beta=options["beta"], temperature=options["temperature"])

    return Lesson(windows=cut, loss=loss)


def _features(setting: Setting) -> Lesson:
    """Hidden states of evenly mapped layers (FitNets, 1412.6550), through a learnt projection where widths differ."""
    import torch

    student, teacher = setting.student, setting.teacher()
    narrow, wide = student.config.hidden_size, teacher.config.hidden_size
    places = distillation.mapped(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    linears = (torch.nn.Linear(narrow, wide, bias=False) if narrow != wide else torch.nn.Identity() for _ in places)
    projections = torch.nn.ModuleList(linears)

    def match(mine: Any, theirs: Any) -> Any:
        others = [theirs.hidden_states[place] for place in places]
        pairs = zip(projections, mine.hidden_states[1:], others, strict=True)
        found = [distillation.hidden_difference(project(own), other, measure=setting.options["measure"]) for project, own, other in pairs]
        return sum(found) / len(found)

    return _matching(setting, teacher, match, projections)


def _relations(setting: Setting) -> Lesson:
    """How the tokens of a window relate in the last layer: no widths need agree, and nothing is projected."""
    teacher = setting.teacher()
    if setting.options["relation"] == "hidden":
        compare = distillation.similarity_difference
        return _matching(setting, teacher, lambda mine, theirs: compare(mine.hidden_states[-1], theirs.hidden_states[-1]))
    own, other = _Values(setting.student), _Values(teacher)
    heads = math.gcd(own.heads, other.heads)
    return _matching(setting, teacher, lambda *_: distillation.value_relations(own.seen, other.seen, heads=heads))


class _Values:
    """Watches the values of a model's last attention, (windows, tokens, channels)."""

    def __init__(self, model: Any) -> None:
        known = architecture(type(model).__name__)
        layer = model.get_submodule(known.layers)[-1]
        self.heads = int(getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads)
        self.seen: Any = None
        self._parts = 3 if known.conv1d else 1  # GPT-2 makes queries, keys and values at once
        (layer.attn.c_attn if known.conv1d else layer.self_attn.v_proj).register_forward_hook(self._see)

    def _see(self, _: Any, __: Any, output: Any) -> None:
        self.seen = output.chunk(self._parts, dim=-1)[-1]


def _matching(setting: Setting, teacher: Any, match: Callable[[Any, Any], Any], *helpers: Any) -> Lesson:
    """Return the lesson of the teacher's distributions and, weighted, of what `match` makes of both models' answers."""
    import torch

    options, student = setting.options, setting.student

    def loss(batch: Any) -> Any:
        with torch.no_grad():
            theirs = teacher(batch, use_cache=False, output_hidden_states=True)
        mine = student(batch, use_cache=False, output_hidden_states=True)
        given, wanted = (answer.logits[:, :-1].flatten(0, 1) for answer in (mine, theirs))
        value = training.divergence(given, wanted, temperature=options["temperature"])
        return setting.with_text(value, given, batch) + options["match_weight"] * match(mine, theirs)

    return Lesson(windows=setting.windows, loss=loss, helpers=helpers)


BY_SCHEME: dict[str, Callable[[Setting], Lesson]] = {
    "logits": _logits,
    "hard": _hard,
    "text": _text,
    "features": _features,
    "relations": _relations,
    "on_policy": _on_policy,
}
