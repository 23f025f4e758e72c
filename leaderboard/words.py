"""Sentences about a variant for the card, each true of the record and no more than the uncertainty allows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hub.domain import BaseRecord, Environment, Protocol, VariantRecord
from leaderboard import stats, text
from leaderboard.stats import Comparison, Estimate
from leaderboard.text import Markdown, markdown

# What transformers needs beside torch to read a format.
_READERS = {
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel", "accelerate"),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "compressed-tensors": ("compressed-tensors",),
    "torchao": ("torchao",),
}


def verdict_line(record: VariantRecord, base: BaseRecord, beside: Comparison) -> Markdown:
    """Return one paragraph: what this variant gains and costs against its exact base, with uncertainties."""
    parts: list[str] = []
    mine = stats.find(record.measurements, "disk_size", beside.protocol)
    theirs = stats.find(base.measurements, "disk_size", beside.protocol)
    if mine and theirs and beside.size:
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
        sentences.append(f"On {where} it decodes at {speed}: {_faster(beside.decode)}")
    if beside.memory:
        sentences.append(f"Running it takes {text.times(beside.memory)} the base's peak memory")
    return Markdown(
        ". ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences) + "." if sentences else "Nothing was measured."
    )


def _includes(estimate: Estimate, value: float) -> bool:
    return estimate.low <= value <= estimate.high


def _faster(speed: Estimate) -> str:
    if _includes(speed, 1):
        return "no difference can be told"
    return "**faster than the base**" if speed.value > 1 else "**slower than the base**"


def advice(base: BaseRecord, family: Sequence[VariantRecord]) -> list[tuple[str, str]]:
    """Return (question, names) pairs: the smallest, the closest to the base, the fastest and the leanest; ties are all named."""
    beside = [stats.compare(item, base) for item in family]
    names = [item.recipe.name for item in family]
    same = Estimate(value=1, low=1, high=1)
    fast = Estimate(value=1, low=1, high=1, higher_is_better=True)

    def best(pick: Callable[[Comparison], Estimate | None], reference: Estimate | None = None) -> str | None:
        rows = [(name, found) for name, item in zip(names, beside, strict=True) if (found := pick(item))]
        if not rows:
            return None
        if reference:
            rows.append(("the base model itself", reference))
        group = stats.tie_groups([estimate for _, estimate in rows])[0]
        tied = [rows[index][0] for index in group]
        return tied[0] if len(tied) == 1 else f"{', '.join(tied[:-1])} and {tied[-1]} (these cannot be told apart)"

    found = (
        ("Smallest on disk", best(lambda item: item.size, same)),
        ("Closest to the base (KL divergence)", best(lambda item: item.kl_divergence)),
        ("Fastest at decoding here", best(lambda item: item.decode, fast)),
        ("Least peak memory here", best(lambda item: item.memory, same)),
    )
    return [(question, answer) for question, answer in found if answer]


def protocol_words(protocol: Protocol | None, name: str | None) -> list[str]:
    """Return a protocol in sentences; nothing when its definition is not known or is another one's."""
    if protocol is None or protocol.name != name:
        return []
    windows = f"the first {protocol.windows}" if protocol.windows else "all"
    return [
        f"Quality: {windows} non-overlapping windows of {protocol.sequence_length} tokens of the text {protocol.text} "
        f"(SHA-256 {protocol.text_sha256}); the tail is dropped. Variant and base see the same windows.",
        f"Speed: batch 1, a prompt of {protocol.prompt_tokens} tokens, then {protocol.new_tokens} greedy tokens, "
        f"{protocol.repeats} times; warm-up runs before, not counted: {protocol.warmup}.",
    ]


def hardware(environment: Environment | None) -> str | None:
    """Return the machine and the versions under which numbers were taken."""
    if environment is None:
        return None
    where = "GPU (CUDA)" if environment.device == "cuda" else f"CPU, {environment.cores} cores"
    versions = ", ".join(f"{name} {environment.libraries[name]}" for name in ("torch", "transformers") if name in environment.libraries)
    ending = f"; {versions}" if versions else ""
    machine = f"{where}, {text.size(environment.memory_bytes)} of memory; {environment.system}; Python {environment.python}"
    return f"{environment.hardware} ({machine}{ending})"


def requirements(record: VariantRecord) -> Markdown:
    """Return the packages that load the variant, pinned to the versions under which it was measured where they are known."""
    known = dict(record.artifact.libraries) if record.artifact else {}
    known.update(record.environment.libraries if record.environment else {})
    names = ("torch", "transformers", *_READERS.get(record.recipe.format, ()))
    # A local build's mark (2.13.0+cpu) is no version that a package index has.
    versions = {name: known.get(name, "").split("+")[0] for name in names}
    pinned = (f'"{name}=={version}"' if re.fullmatch(r"[\w.!-]+", version, re.ASCII) else name for name, version in versions.items())
    return Markdown(" ".join(pinned))


def press_words(record: VariantRecord) -> str:
    """Return how long pressing took and how much memory it used, as far as it is known."""
    parts = []
    if record.press_seconds is not None:
        parts.append(f"took {text.duration(record.press_seconds)}")
    if record.press_peak_memory_bytes is not None:
        parts.append(f"used at most {text.size(record.press_peak_memory_bytes)} of memory")
    return f"Pressing {' and '.join(parts)}." if parts else ""


def limits(record: VariantRecord, beside: Comparison) -> list[str]:
    """Return what this card does not show or what is bad about the variant, from the record."""
    told = []
    if record.recipe.track == "research":
        told.append(
            "A research variant: it shows what the method does to quality. "
            "Zeros scattered through dense weights make neither the file smaller nor ordinary kernels faster."
        )
    if beside.decode and beside.decode.high < 1:
        told.append("It decodes more slowly than the base on the hardware above; take it for its size, not for speed.")
    if beside.memory and beside.memory.low > 1:
        told.append("It needs more peak memory than the base on the hardware above.")
    told += [
        f"Quality was measured on one text with one protocol ({beside.protocol or 'none'}): "
        "other languages, tasks and longer contexts may lose more or less.",
        "No task accuracy and no safety behaviour was measured; what the base cannot do, this cannot do either.",
        "Speed and memory hold for batch 1, this engine and this machine; other kernels and GPUs give other numbers.",
    ]
    return told
