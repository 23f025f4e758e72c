"""What a recipe, or a measurement, takes on a model of a given shape: memory, disk and arithmetic, said before it starts from shapes alone.

Memory is an estimate to refuse what cannot fit, not to pack a machine to its rim; tests hold it against measured peaks. The seconds are an
order of magnitude: operations over a nominal rate of this kind of processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hub.domain import Recipe, Step
from hub.errors import OutOfDisk, UnfitModel
from hub.protocol import Protocol
from runners import methods
from runners.architectures import architecture
from runners.checkpoint import ModelShape
from runners.method import Works

GIB = 2**30
OPERATIONS_PER_CORE = 2e10
"""Float32 operations a second that one core of a common processor gives in matrix products."""
START_SECONDS = 5.0
"""What libraries take to be imported."""
BYTES_PER_SECOND = 1e10
"""What a common processor reads of its memory in a second: writing a token takes one reading of all weights."""
LIBRARIES_BYTES = 480 * 2**20
"""What a process holds once the libraries are imported."""
_FLOAT = 4  # bytes; methods compute in float32
_PROCESS = 2**25  # what a press adds to a process whatever the model: code that is run first, small caches, what allocators keep
_COPIES = {"whole": 1, "gradients": 2, "training": 4}  # of the model in float32, where a method does not say
_BATCH = 4  # windows looked at together where a step does not say
_TEXT_TOKENS = 300_000  # of a text that is read as a whole: WikiText-2's test split has about as many
_DOCUMENTS, _DOCUMENT_TOKENS = 3000, 256  # of a task that is asked as a whole, all answers of a document together


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Peak memory above that of the libraries, bytes that lie on disk together at the most, and floating-point operations.

    `made_bytes` is what is left on disk in the end; `read_bytes` is read from memory one after another, whatever the cores.
    """

    memory_bytes: int
    disk_bytes: int
    operations: float
    made_bytes: int = 0
    read_bytes: float = 0.0

    def seconds(self, cores: int) -> float:
        """Return about how long that takes on a CPU: right to a small factor."""
        return START_SECONDS + self.operations / (OPERATIONS_PER_CORE * max(1, cores)) + self.read_bytes / BYTES_PER_SECOND


def needs(recipe: Recipe, shape: ModelShape) -> Needs:
    """Return what a recipe takes; raise what `method.check` raises where a step does not fit."""
    base, memory, disk, operations, before = shape, 0, 0, 0.0, 0
    for step in recipe.steps:
        method = methods.get(step.method)
        method.check(step, shape)
        promise = method.promise(step, shape)
        copies = int(getattr(method, "COPIES", _COPIES.get(method.WORKS, 0)))
        made = promise.bytes  # a sum over all tensors
        memory = max(memory, _PROCESS + _memory(method.WORKS, copies, step, shape, base, made))
        disk = max(disk, before + made)
        operations += _operations(method.WORKS, step, shape, base)
        before, shape = made, promise.shape
    return Needs(memory_bytes=memory, disk_bytes=disk, operations=operations, made_bytes=before)


def measuring(protocol: Protocol, shape: ModelShape, *, beside: ModelShape | None = None) -> Needs:
    """Return what a protocol takes of a model; `beside` is the base of a variant, which is loaded and timed with it.

    A variant is taken to be as large as its base: its engine may be faster or slower, which the farm's history tells. Of the disk, a base's
    measurement takes the download and the states that are kept for its variants.
    """
    models = (shape, beside) if beside else (shape,)
    parameters, size = sum(one.parameters for one in models), sum(one.bytes for one in models)
    operations, read, longest, kept = 0.0, 2.0 * size, 0, 0  # loaded once to warm up and once to stay
    if protocol.quality:
        longest = protocol.quality.sequence_length
        tokens = protocol.quality.windows * longest or _TEXT_TOKENS
        operations += 2.0 * parameters * tokens
        kept = tokens * shape.hidden_size * _FLOAT
    if protocol.tasks:
        tokens = len(protocol.tasks.names) * (protocol.tasks.limit or _DOCUMENTS) * _DOCUMENT_TOKENS
        operations += 2.0 * shape.parameters * tokens
        longest = max(longest, _DOCUMENT_TOKENS)
    if speed := protocol.speed:
        runs = len(speed.modes) * (speed.repeats + speed.warmup)
        points = [(batch, context) for batch in speed.batches for context in speed.contexts if context + speed.new_tokens <= shape.context]
        for batch, context in points:
            operations += runs * 2.0 * parameters * batch * (context + speed.new_tokens)
            read += runs * float(size) * speed.new_tokens
            longest = max(longest, context)
    if protocol.memory:
        read += float(shape.bytes) * protocol.memory.loads
        longest = max([longest, *(context for context in protocol.memory.contexts if context <= shape.context)])
    memory = _PROCESS + size + longest * (shape.vocab_size + 4 * shape.hidden_size) * _FLOAT * len(models)
    disk = 0 if beside else shape.bytes + kept
    return Needs(memory_bytes=memory, disk_bytes=disk, operations=operations, read_bytes=read)


def require(recipe: Recipe, shape: ModelShape, *, memory_bytes: int, folder: Path) -> None:
    """Raise `UnfitModel` where a recipe takes more than `memory_bytes`, `OutOfDisk` where the disk of `folder` has too little left."""
    import shutil

    wanted = needs(recipe, shape)
    if reason := too_large(wanted, memory_bytes):
        raise UnfitModel(f"{recipe.name} {reason}.", hint="Use a machine with more memory, or a recipe that works a layer at a time.")
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if wanted.disk_bytes > free:
        raise OutOfDisk(
            f"{recipe.name} writes about {wanted.disk_bytes / GIB:.1f} GiB; the disk of {folder} has {free / GIB:.1f} GiB left.",
            hint="Free some space, or choose a folder on another disk.",
        )


def too_large(wanted: Needs, memory_bytes: int) -> str:
    """Return in words that something takes more memory than there is; empty where it fits."""
    if wanted.memory_bytes <= memory_bytes:
        return ""
    return f"takes about {wanted.memory_bytes / GIB:.1f} GiB of memory; there are {memory_bytes / GIB:.1f} GiB"


def _memory(works: Works, copies: int, step: Step, shape: ModelShape, base: ModelShape, made: int) -> int:
    if works == "streaming":
        # Most tensors are copied as they are; a linear, or two that are fused, lie there as read, as rounded and as packed.
        linear = max((linear.out_features * linear.in_features for linear in shape.linears), default=0)
        return 2 * max((tensor.bytes for tensor in shape.tensors.values()), default=0) + 12 * linear * _FLOAT
    if works == "layerwise":
        widest = max((linear.in_features for linear in shape.linears), default=0)
        outside = sum(tensor.numel for name, tensor in shape.tensors.items() if not _inside(name, shape)) * _FLOAT
        hidden = 2 * _shown(step) * shape.hidden_size * _FLOAT
        return outside + 3 * _largest_layer(shape) * _FLOAT + hidden + 2 * 8 * widest**2
    model = copies * shape.parameters * _FLOAT
    if works == "whole":
        return model + made
    activations = (shape.layers * (16 * shape.hidden_size + 4 * shape.intermediate_size) + 6 * shape.vocab_size) * _FLOAT
    if works == "gradients":
        return model + activations * _window(step)
    return model + base.parameters * _FLOAT + activations * int(step.params.get("batch", _BATCH)) * _window(step)


def _operations(works: Works, step: Step, shape: ModelShape, base: ModelShape) -> float:
    weights = sum(linear.out_features * linear.in_features for linear in shape.linears)
    if works == "streaming":
        return 20.0 * weights
    if works == "gradients":
        return 6.0 * shape.parameters * _shown(step)
    if works == "training":
        return float(step.params.get("tokens", _shown(step))) * (6.0 * shape.parameters + 2.0 * base.parameters)
    statistics = sum(2.0 * _shown(step) * linear.in_features**2 + float(linear.in_features) ** 3 for linear in shape.linears)
    return 4.0 * weights * _shown(step) + statistics


def _shown(step: Step) -> int:
    return step.calibration.samples * step.calibration.sequence_length if step.calibration else 0


def _window(step: Step) -> int:
    return step.calibration.sequence_length if step.calibration else 1


def _inside(name: str, shape: ModelShape) -> bool:
    return name.startswith(f"{architecture(shape.architecture).layers}.")


def _largest_layer(shape: ModelShape) -> int:
    root = architecture(shape.architecture).layers + "."
    sums: dict[str, int] = {}
    for name, tensor in shape.tensors.items():
        if name.startswith(root):
            number = name.removeprefix(root).partition(".")[0]
            sums[number] = sums.get(number, 0) + tensor.numel
    return max(sums.values(), default=0)
