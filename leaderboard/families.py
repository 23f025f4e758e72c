"""The families of methods, told from a step's method and scheme alone: what the site groups by and the cards are tagged with.

Records of methods that are gone still say what they did, so nothing is asked of the methods' own files; a test holds the two together.
"""

from __future__ import annotations

import re

from hub.domain import Recipe, Step

QUANTIZATION, PRUNING, DISTILLATION = "quantization", "pruning", "distillation"
LOW_RANK, RECOVERY, EXPORT, CHAIN = "low-rank", "recovery", "export", "chain"
FAMILIES = (QUANTIZATION, EXPORT, PRUNING, LOW_RANK, DISTILLATION, RECOVERY, CHAIN)

TITLES = {
    QUANTIZATION: "Quantization",
    EXPORT: "Export to other engines",
    PRUNING: "Pruning",
    LOW_RANK: "Low-rank factors",
    DISTILLATION: "Distillation",
    RECOVERY: "Recovery",
    CHAIN: "Chains of several families",
}

# Methods whose scheme is no number format, or one that does not say what they are; all others prune.
_BY_NAME = (
    (re.compile(r"distil|student"), DISTILLATION),
    (re.compile(r"lora"), RECOVERY),
    (re.compile(r"low_?rank|svd"), LOW_RANK),
    (re.compile(r"gguf|onnx|openvino"), EXPORT),
    (re.compile(r"mixed"), QUANTIZATION),
)
_NUMBER_FORMAT = re.compile(r"(?i)\A(?:nv|mx|dq|i)?(?:w(\d+)a\d+|n?fp?(\d+)|u?int(\d+)|t?q(\d+))(?![0-9])")


def bits(scheme: str) -> int | None:
    """Return the bits of a weight for a scheme that is a number format (W4A16: 4, NF4: 4, FP8_DYNAMIC: 8), None for others (2:4, 50%)."""
    match = _NUMBER_FORMAT.match(scheme)
    return int(next(group for group in match.groups() if group)) if match else None


def family_of(step: Step) -> str:
    """Return the family of one step."""
    name = step.method.lower()
    named = next((family for pattern, family in _BY_NAME if pattern.search(name)), None)
    return named or (QUANTIZATION if bits(step.scheme) else PRUNING)


def families(recipe: Recipe) -> tuple[str, ...]:
    """Return the families of a recipe's steps, in order and each once."""
    return tuple(dict.fromkeys(family_of(step) for step in recipe.steps))


def family(recipe: Recipe) -> str:
    """Return the one family that a recipe is listed under: `chain` where its steps are of several.

    What a pruned model learns afterwards is the point of the recipe: pruning and distillation are listed under distillation, pruning and
    recovery under recovery.
    """
    found = families(recipe)
    learnt = [name for name in found if name != PRUNING]
    if len(learnt) == 1 and learnt[0] in (DISTILLATION, RECOVERY):
        return learnt[0]
    return found[0] if len(found) == 1 else CHAIN
