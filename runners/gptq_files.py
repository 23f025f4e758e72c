"""The gptq format, as gptqmodel, transformers and vLLM read it: what fits it, and how config.json says what stayed dense."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from hub.domain import Step
from hub.errors import UnfitModel
from runners import formats, method
from runners.checkpoint import ModelShape
from runners.method import Promise

WORD = 32
CPU_GROUPS = (32, 64, 128, 256)


def check(step: Step, shape: ModelShape, *, bits: int, group_size: int) -> None:
    """Refuse Conv1D models, widths that groups (-1: none), or words of 32 bits, do not divide, and what only a GPU could run."""
    if shape.conv1d:
        # gptqmodel packs Conv1D well, but GPT-2's weight initialisation in transformers 5.17 then asks for the dense weight and fails.
        raise UnfitModel(
            f"{step.method} could pack {shape.architecture}, but transformers cannot load the result.",
            hint="Use a bitsandbytes recipe for this model.",
        )
    if group_size > 0:
        method.check_divisible(step, shape, group_size)
    for linear in shape.linears:
        widths = linear.out_features, linear.in_features
        if any(width % WORD for width in widths):
            raise UnfitModel(
                f"{step.method} needs widths divisible by {WORD}, to pack into words; {linear.name} is {widths[0]} by {widths[1]}.",
                hint="Use a w8a8 recipe for this model.",
            )
    if bits == 4 and group_size not in CPU_GROUPS:
        # transformers gives 4 bits to torch's own kernel, which says so only when the model first runs.
        raise UnfitModel(
            f"{step.method} runs 4 bits on a CPU in groups of {', '.join(map(str, CPU_GROUPS))} alone; the recipe has {group_size}.",
            hint="Use a recipe with one of these groups.",
        )


def promise(shape: ModelShape, *, bits: int, group_size: int) -> Promise:
    """Every linear layer of the decoder is packed; embeddings, norms and the head stay as they are."""
    return method.replaced(shape, {linear.name: formats.gptq(linear, bits=bits, group_size=group_size) for linear in shape.linears})


def dynamic(kept: Collection[str]) -> dict[str, dict[str, object]]:
    """Return what makes gptqmodel and vLLM leave the linears `kept` dense."""
    return {f"-:^{re.escape(name)}$": {} for name in sorted(kept)}


def exceptions(linears: Sequence[str], kept: Collection[str]) -> dict[str, object]:
    """Return the entries of `quantization_config` that say which linears stayed dense: nothing where none did."""
    if not kept:
        return {}
    # gptqmodel and vLLM read `dynamic`; transformers knows the list alone, of names by their ends: whole names are their own.
    return {"dynamic": dynamic(kept), "modules_in_block_to_quantize": [[name for name in linears if name not in kept]]}
