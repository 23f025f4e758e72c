"""Sentences about a variant for the card, each true of the record and no more than the uncertainty allows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hub.domain import Environment, Recipe
from hub.history import BaseRecord, VariantRecord
from hub.protocol import Memory, Protocol, Quality, Speed, Tasks, Text
from leaderboard import stats, text
from leaderboard.families import PRUNING, QUANTIZATION, families
from leaderboard.stats import Comparison, Estimate
from leaderboard.steps import kept_words
from leaderboard.text import Markdown, markdown

# What transformers needs beside torch to read a format.
_READERS: dict[str, tuple[str, ...]] = {
    "dense": (),
    "auto-round": ("auto-round", "accelerate"),
    "awq": ("gptqmodel", "accelerate"),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "compressed-tensors": ("compressed-tensors",),
    "gptq": ("gptqmodel", "optimum"),
    "torchao": ("torchao",),
}
# What reads the formats that transformers does not, all of it.
_ENGINES = {
    "gguf": ("llama-cpp-python",),
    "low-rank": ("torch", "transformers", "safetensors"),
    "onnx": ("onnxruntime", "transformers"),
    "openvino": ("openvino", "transformers"),
}
_MOST_NAMES = 4


def as_large(size: Estimate | None) -> bool:
    """Return whether a size beside the base's is the same but for half a per cent, such as a longer configuration."""
    return size is not None and abs(size.value - 1) < 0.005


def same_work(recipe: Recipe, size: Estimate | None) -> bool:
    """Return whether a variant is dense and as large as its base: ordinary kernels then do the same work, zeros or not.

    What is measured of its speed and memory beside the base's is the machine's unrest, never a gain or a loss.
    """
    return recipe.format == "dense" and as_large(size)


def verdict_line(record: VariantRecord, base: BaseRecord, beside: Comparison) -> Markdown:
    """Return one paragraph: what this variant gains and costs against its exact base, with uncertainties."""
    parts: list[str] = []
    mine = stats.find(record.measurements, "disk_size", beside.protocol)
    theirs = stats.find(base.measurements, "disk_size", beside.protocol)
    if mine and theirs and beside.size:
        if as_large(beside.size):
            parts.append(f"**As large as the base** on disk ({text.size(mine.value)})")
        else:
            sizes = f"({text.size(mine.value)} instead of {text.size(theirs.value)})"
            parts.append(f"**{text.number(beside.size.value * 100)} % of the base's size** on disk {sizes}")
    if beside.perplexity_ratio:
        change = text.percent_change(beside.perplexity_ratio)
        same = " (no change can be told)" if _includes(beside.perplexity_ratio, 1) else ""
        parts.append(f"perplexity **{change}**{same}")
    if beside.kl_divergence:
        parts.append(f"KL divergence from the base **{text.quantity(beside.kl_divergence, 'nat/token')}**")
    sentences = [", ".join(parts)] if parts else []
    if beside.decode and record.environment:
        where = markdown(record.environment.hardware)
        speed = f"**{text.times(beside.decode)}** the base's speed, both timed in turns"
        engines = stats.other_engine(record.measurements, base.measurements, beside.protocol)
        ran = f" (it in {markdown(engines[0])}, the base in {markdown(engines[1])})" if engines else ""
        sentences.append(f"On {where} it decodes at {speed}{ran}: {_faster(record.recipe, beside, beside.decode)}")
    if beside.memory and not same_work(record.recipe, beside.size):
        sentences.append(f"Running it takes {text.times(beside.memory)} the base's peak memory")
    return Markdown(
        ". ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences) + "." if sentences else "Nothing was measured."
    )


def _includes(estimate: Estimate, value: float) -> bool:
    return estimate.low <= value <= estimate.high


def _faster(recipe: Recipe, beside: Comparison, speed: Estimate) -> str:
    if _includes(speed, 1):
        return "no difference can be told"
    if same_work(recipe, beside.size):
        return "both do the same work on dense weights, so this is the machine's unrest and no gain or loss"
    return "**faster than the base**" if speed.value > 1 else "**slower than the base**"


def advice(base: BaseRecord, family: Sequence[VariantRecord], protocol: str | None = None) -> list[tuple[str, str]]:
    """Return (question, names) pairs over what is meant for serving: the smallest, the closest to the base, the fastest, the leanest.

    All that nothing else surely beats are named; any two of them overlap.
    """
    serving = [item for item in family if item.recipe.track == "serving"]
    beside = [(item.recipe.name, stats.compare(item, base, protocol=protocol)) for item in serving]
    working = [
        (item.recipe.name, found) for item, (_, found) in zip(serving, beside, strict=True) if not same_work(item.recipe, found.size)
    ]
    same = Estimate(value=1, low=1, high=1)
    fast = Estimate(value=1, low=1, high=1, higher_is_better=True)
    found = (
        ("Smallest on disk", _best([(name, item.size) for name, item in beside], same)),
        ("Closest to the base (KL divergence)", _best([(name, item.kl_divergence) for name, item in beside])),
        ("Fastest at decoding here", _best([(name, item.decode) for name, item in working], fast)),
        ("Least peak memory here", _best([(name, item.memory) for name, item in working], same)),
    )
    return [(question, answer) for question, answer in found if answer]


def _best(rows: Sequence[tuple[str, Estimate | None]], base: Estimate | None = None) -> str | None:
    """Return the names of the rows that no other surely beats, the base's among them if it is given; None where nothing was measured."""
    known = [(name, found) for name, found in rows if found]
    if not known:
        return None
    if base:
        known.append(("the base model itself", base))
    best = [name for name, found in known if not any(stats.surely_better(other, found) for _, other in known)]
    if len(best) == 1:
        return best[0]
    more = len(best) - _MOST_NAMES
    *most, last = best if more <= 1 else [*best[:_MOST_NAMES], f"{more} more"]
    return f"{', '.join(most)} and {last} (these cannot be told apart)"


def protocol_words(protocol: Protocol | None, name: str | None) -> list[str]:
    """Return a protocol in sentences, one for each section; nothing when its definition is not known or is another one's."""
    if protocol is None or protocol.name != name:
        return []
    sections = (
        _quality_words(protocol.quality, protocol.text) if protocol.quality and protocol.text else "",
        _tasks_words(protocol.tasks) if protocol.tasks else "",
        _speed_words(protocol.speed) if protocol.speed else "",
        _memory_words(protocol.memory) if protocol.memory else "",
    )
    return [section for section in sections if section]


def _quality_words(quality: Quality, source: Text) -> str:
    count, places = (str(quality.windows), ", at even distances,") if quality.windows else ("all", "")
    origin = f", {source.file} of the dataset {source.dataset} at {source.revision}" if source.dataset else ""
    return (
        f"Quality: {count} non-overlapping windows of {quality.sequence_length} tokens{places} of the text {source.name} "
        f"(SHA-256 {source.sha256}{origin}); the tail is dropped. Variant and base see the same windows."
    )


def _tasks_words(tasks: Tasks) -> str:
    documents = f"the first {tasks.limit} documents" if tasks.limit else "all documents"
    shots = (
        f"{tasks.shots} examples before each question, drawn with seed {tasks.seed}" if tasks.shots else "no examples before the question"
    )
    return f"Tasks: {', '.join(tasks.names)}, through lm-eval; {documents} of each, {shots}."


def _speed_words(speed: Speed) -> str:
    batch, context, mode = speed.batches[0], speed.contexts[0], speed.modes[0]
    run_by = "" if mode == "eager" else f" in mode {mode}"
    until = f"at least {speed.repeats} times and until they took {speed.seconds:g} s" if speed.seconds else f"{speed.repeats} times"
    others = [
        f"{what} {', '.join(map(str, values))}"
        for what, values in (("batches", speed.batches), ("prompts", speed.contexts), ("modes", speed.modes))
        if len(values) > 1
    ]
    curve = f" The same for all of: {'; '.join(others)}, as far as the model and the machine allow." if others else ""
    return (
        f"Speed: batch {batch}, a prompt of {context} tokens, then {speed.new_tokens} greedy tokens{run_by}, {until}; "
        f"warm-up runs before, not counted: {speed.warmup}. "
        f"For the ratios of speed, variant and base are in memory together and take turns.{curve}"
    )


def _memory_words(memory: Memory) -> str:
    times = f"{memory.loads} times" if memory.loads > 1 else "once"
    loads = f"Memory: loaded {times}, with a short run."
    if not memory.contexts:
        return loads
    contexts = ", ".join(map(str, memory.contexts))
    return f"{loads} Besides at contexts of {contexts} tokens, batch 1: measured where the machine allows it, else estimated and marked so."


def hardware(environment: Environment | None) -> str | None:
    """Return the machine and the versions under which numbers were taken."""
    if environment is None:
        return None
    where = "GPU (CUDA)" if environment.device == "cuda" else f"CPU, {environment.cores} cores"
    versions = ", ".join(f"{name} {environment.libraries[name]}" for name in ("torch", "transformers") if name in environment.libraries)
    ending = f"; {versions}" if versions else ""
    machine = f"{where}, {text.size(environment.memory_bytes)} of memory; {environment.system}; Python {environment.python}"
    return f"{environment.hardware} ({machine}{ending})"


def needed(record: VariantRecord) -> dict[str, str]:
    """Return the packages that load the variant, with the versions under which it was measured, empty where they are not known."""
    known = dict(record.artifact.libraries) if record.artifact else {}
    known.update(record.environment.libraries if record.environment else {})
    names = _ENGINES.get(record.recipe.format) or ("torch", "transformers", *_READERS.get(record.recipe.format, ()))
    return {name: known.get(name, "") for name in names}


def requirements(record: VariantRecord) -> Markdown:
    """Return the packages that load the variant as arguments of pip, pinned where their versions are known."""
    # A local build's mark (2.13.0+cpu) is no version that a package index has.
    versions = {name: version.split("+")[0] for name, version in needed(record).items()}
    pinned = (f'"{name}=={version}"' if re.fullmatch(r"\w[\w.!-]{0,63}", version, re.ASCII) else name for name, version in versions.items())
    return Markdown(" ".join(pinned))


def usage(recipe_format: str) -> str:
    """Return which of `templates/use` tells how to load a format; `other` where none does."""
    return "transformers" if recipe_format in _READERS else recipe_format if recipe_format in _ENGINES else "other"


def press_words(record: VariantRecord) -> str:
    """Return how long pressing took and how much memory it used, as far as it is known."""
    parts = []
    if record.press_seconds is not None:
        parts.append(f"took {text.duration(record.press_seconds)}")
    if record.press_peak_memory_bytes is not None:
        parts.append(f"used at most {text.size(record.press_peak_memory_bytes)} of memory")
    return f"Pressing {' and '.join(parts)}." if parts else ""


def entropy_coded(recipe: Recipe) -> bool:
    """Return whether a recipe is Deep Compression but for its last stage, so that its size after entropy coding is to be told."""
    return {PRUNING, QUANTIZATION} <= set(families(recipe))


def coded_words(record: VariantRecord, base: BaseRecord, protocol: str | None) -> Markdown:
    """Return what the weights would take after Huffman coding, and what that size is not; nothing for recipes not made for it."""
    if not entropy_coded(record.recipe):
        return Markdown("")
    coded, stored = (stats.find(record.measurements, metric, protocol) for metric in ("entropy_coded_size", "disk_size"))
    theirs = stats.find(base.measurements, "entropy_coded_size", protocol)
    if coded is None or stored is None:
        return Markdown("")
    against = f"; the base's, coded in the same way, take {text.size(theirs.value)}" if theirs else ""
    return Markdown(
        "Pruning and rounding leave few different values, many of them zero, and such data can be packed further without loss. "
        "With every tensor Huffman-coded, the last stage of [Deep Compression](https://arxiv.org/abs/1510.00149), the weights would take "
        f"**{text.size(coded.value)}**{against}. That is what an archive would take: the files here are not coded "
        f"({text.size(stored.value)}), and no engine runs coded weights."
    )


def _has_tasks(record: VariantRecord) -> bool:
    return any("task" in one.conditions for one in record.measurements)


def limits(record: VariantRecord, beside: Comparison) -> list[str]:
    """Return what this card does not show or what is bad about the variant, from the record."""
    told = []
    if record.recipe.track == "research":
        told.append("A research variant: it shows what the method does to quality.")
    told += kept_words(record)
    same = same_work(record.recipe, beside.size)
    environment = record.environment_under(beside.protocol)
    machine = environment.hardware if environment else "the machine where both were measured"
    if same and PRUNING in families(record.recipe):
        told.append(
            "It is dense and as large as its base: zeros among the weights make neither the file smaller nor ordinary kernels faster."
        )
    if beside.decode and beside.decode.high < 1 and not same:
        told.append(f"It decodes more slowly than the base on {machine}; take it for its size, not for speed.")
    if beside.memory and beside.memory.low > 1 and not same:
        told.append(f"It needs more peak memory than the base on {machine}.")
    told += [
        f"Quality was measured on one text with one protocol ({beside.protocol or 'none'}): "
        "other languages, tasks and longer contexts may lose more or less.",
        "No safety behaviour was measured." if _has_tasks(record) else "No task accuracy and no safety behaviour was measured.",
        "Speed and memory hold for the batches and contexts shown, this engine and this machine; "
        "other kernels and GPUs give other numbers.",
    ]
    return told
