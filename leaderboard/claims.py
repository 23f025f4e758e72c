"""The lie detector: what a card claims, compared with config.json, tensor headers, manifest, base and files, for any repository.

A claim that nobody makes is not checked; one that the bytes contradict fails by name. Nothing is opened here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from hub import names, packing
from hub.domain import Artifact, Candidate
from hub.headers import BITS
from hub.history import Check
from hub.licences import effective
from hub.packing import DENSE, Layer, Scheme, Tensors
from leaderboard import frontmatter
from leaderboard.card_reader import CardClaims, bits_in, counts_in, formats_in, read
from leaderboard.findings import Finding, checks, failed, passed, unchecked

SHOWN = 4
_COUNT_FACTOR = 1.6  # names round, and some leave the embeddings out (gemma-2b has 2.5 thousand million)
_PARAMETERS_OFF = 0.01
# Which words for a format may stand on what the config calls a method: llm-compressor's GPTQ and AWQ are compressed-tensors on disk.
_WORDS = {
    "compressed-tensors": {"compressed-tensors", "gptq", "awq"},
    "auto-round": {"gptq", "awq"},
    "torchao": {"torchao", "awq", "gptq"},
}
_FILES = {"gguf": ".gguf", "onnx": ".onnx", "openvino": "openvino_model.xml", "peft": "adapter_config.json", "transformers": ".safetensors"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A card with what it is compared with: `files` gives size and SHA-256 (None: not known) by path, None where they were not listed."""

    card: CardClaims
    repo_id: str
    config: Mapping[str, Any]
    tensors: Tensors
    manifest: Artifact | None = None
    base: Candidate | None = None
    files: Mapping[str, tuple[int, str | None]] | None = None
    words: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repo_id.rsplit("/", 1)[-1]

    @cached_property
    def scheme(self) -> Scheme:
        """What config.json says of the weights."""
        return packing.scheme(self.config)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The linear layers as they lie on disk."""
        return packing.layers(self.config, self.tensors)

    @property
    def unknown(self) -> bool:
        """Whether the weights are packed in a way that is not known here; where all layers are plainly dense, none is."""
        return not self.scheme.known and not (self.layers and all(layer.method == DENSE for layer in self.layers))

    @cached_property
    def formats(self) -> set[str]:
        """The formats that config.json and the files' names show."""
        shown = {name for name, end in _FILES.items() if name != "transformers" and any(path.endswith(end) for path in self.files or ())}
        if self.manifest:
            shown.add(self.manifest.recipe.format)
        return (shown | {self.scheme.method}) - {DENSE}

    @cached_property
    def bits(self) -> set[int]:
        """The bits of the packed weights, as the tensors show them; where these leave a choice, the config's word among it."""
        found: set[int] = set()
        for layer in self.layers:
            if layer.method != DENSE:
                said = set(self.scheme.bits)
                wide = {bits for bits in said if layer.method in ("torchao", "int8") and bits <= max(layer.bits, default=8)}
                found |= (said & set(layer.bits)) or wide or set(layer.bits)
        if not self.layers:  # the files of other engines name their tensors as they like
            found = {BITS[dtype] for dtype, _ in self.tensors.values() if dtype in ("I4", "U4", "I8", "U8", "F8_E4M3", "F8_E5M2")}
        return found

    @cached_property
    def said(self) -> list[str]:
        """Name, title, and tags without the base's own name, which may speak of the base."""
        known = {self.manifest.base.name} if self.manifest else set()
        known |= {base.rsplit("/", 1)[-1] for base in self.card.strings("base_model")} - {self.name}
        return [_without(words, known) for words in (self.name, self.card.title, *self.card.strings("tags"))]


def contradictions(
    card: str,
    *,
    repo_id: str,
    config: Mapping[str, Any],
    tensors: Tensors,
    manifest: Artifact | None = None,
    base: Candidate | None = None,
    files: Mapping[str, tuple[int, str | None]] | None = None,
) -> tuple[Check, ...]:
    """Return what a card says that the bytes contradict; empty where it tells no lie.

    `tensors`: dtype and shape by name (`hub.headers.outlines(folder)`); `base`: the base model as the Hub lists it; `files`: size in bytes
    and SHA-256 by path. Where one is None, what needs it is left out.
    """
    found = compare(card, repo_id=repo_id, config=config, tensors=tensors, manifest=manifest, base=base, files=files)
    return tuple(check for check in checks(found) if not check.passed)


def compare(
    card: str,
    *,
    repo_id: str,
    config: Mapping[str, Any],
    tensors: Tensors,
    manifest: Artifact | None = None,
    base: Candidate | None = None,
    files: Mapping[str, tuple[int, str | None]] | None = None,
) -> tuple[Finding, ...]:
    """Return every claim of a card that is known here, in a fixed order: borne out, contradicted, or not checked and why."""
    subject = Subject(card=read(card), repo_id=repo_id, config=config, tensors=tensors, manifest=manifest, base=base, files=files)
    if subject.card.fault:
        return (failed("card_metadata", f"The front matter cannot be read: {subject.card.fault}."),)
    fields = len(subject.card.data)
    first = passed("card_metadata", f"The front matter is read as metadata of {fields} fields.")
    if not fields:
        first = unchecked("card_metadata", "the card has no front matter")
    return (first, *(ask(subject) for ask in _QUESTIONS))


def _without(words: str, known: set[str]) -> str:
    for name in sorted(known, key=len, reverse=True):
        if name:
            words = words.replace(name, " ")
    return words


def _quoted(values: Any) -> str:
    listed = [str(value) for value in values]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(names.shown(value, 100) for value in listed[:SHOWN]) + more


def _bits(subject: Subject) -> Finding:
    name, claimed = "card_bits", bits_in(subject.said)
    claimed = {bits: words for bits, words in claimed.items() if bits <= 8} or claimed
    if not claimed:
        return unchecked(name, "name, title and tags speak of no bits")
    if subject.unknown:
        return unchecked(name, f"how the format {names.shown(subject.scheme.method)} packs weights is not known here")
    packed, asked = packing.gguf_bits(subject.tensors)
    actual = subject.bits | packed or {bits for layer in subject.layers for bits in layer.bits}
    if not actual:
        return unchecked(name, "the tensors do not show how many bits a weight has")
    wrong = [words for bits, words in claimed.items() if bits not in actual | asked]
    found = " and ".join(str(bits) for bits in sorted(actual))
    detail = f"Name, title and tags say {_quoted(claimed.values())}; the weights have {found} bits."
    if not wrong and not actual.issuperset(claimed):
        detail += " Where 256 does not divide the rows, llama.cpp takes these types for those."
    return failed(name, f"{detail} {_quoted(wrong)} is not so.") if wrong else passed(name, detail)


def _format(subject: Subject) -> Finding:
    name, claimed = "card_format", formats_in(subject.said)
    if not claimed:
        return unchecked(name, "name, title and tags speak of no format")
    allowed = {word for found in subject.formats for word in _WORDS.get(found, {found})}
    allowed |= {word for step in (subject.manifest.recipe.steps if subject.manifest else ()) for word in formats_in([step.method])}
    wrong = [word for word in claimed if word not in allowed]
    detail = f"Name, title and tags say {_quoted(claimed)}; config and files are {', '.join(sorted(subject.formats)) or 'dense'}."
    return failed(name, f"{detail} {_quoted(wrong)} is not so.") if wrong else passed(name, detail)


def _base(subject: Subject) -> Finding:
    name, claimed = "card_base_model", subject.card.strings("base_model")
    relation = subject.card.data.get("base_model_relation")
    if subject.repo_id in claimed:
        return failed(name, f"base_model names {names.shown(subject.repo_id)}, the repository itself.")
    if subject.manifest:
        wanted, kind = subject.manifest.base.repo_id, frontmatter.relation(subject.manifest.recipe)
        detail = f"base_model says {_quoted(claimed) or 'nothing'} ({relation}); the manifest says {wanted}, which makes it {kind}."
        return passed(name, detail) if claimed == [wanted] and relation == kind else failed(name, detail)
    if relation == "quantized" and subject.tensors and not subject.formats and all(layer.method == DENSE for layer in subject.layers):
        return failed(name, "base_model_relation says quantized; neither config nor tensors nor files are.")
    if not claimed:
        return unchecked(name, "the card names no base model")
    if subject.base is None:
        return unchecked(name, f"the hub has no {_quoted(claimed)}, and there is no manifest to compare with")
    return passed(name, f"base_model says {_quoted(claimed)}, which the hub has.")


def _library(subject: Subject) -> Finding:
    name, claimed = "card_library", subject.card.data.get("library_name")
    if not isinstance(claimed, str) or not claimed:
        return unchecked(name, "the card names no library")
    if claimed not in _FILES:
        return unchecked(name, f"what {names.shown(claimed)} opens is not known here")
    if subject.files is None:
        return unchecked(name, "the files were not listed")
    there = any(path.endswith(_FILES[claimed]) for path in subject.files)
    if claimed == "transformers":
        there = there and "config.json" in subject.files and subject.scheme.method != "low-rank"
    detail = (
        f"library_name says {claimed}, which opens {_FILES[claimed]} files; the repository has {'such' if there else 'none that it opens'}."
    )
    return passed(name, detail) if there else failed(name, detail)


def _licence(subject: Subject) -> Finding:
    name = "card_licence"
    claimed = effective(next(iter(subject.card.strings("license")), None), _text(subject.card.data.get("license_name")))
    if claimed is None and subject.manifest is None:
        return unchecked(name, "the card names no licence")
    if subject.base is None:
        return unchecked(name, "the base, whose licence it must be, is not known")
    theirs = effective(subject.base.license, subject.base.license_name)
    detail = f"The card's licence is {names.shown(claimed or 'none')}, the base's {names.shown(theirs or 'none')}; they must be the same."
    return passed(name, detail) if claimed == theirs else failed(name, detail)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _parameters(subject: Subject) -> Finding:
    name = "card_parameters"
    claimed = counts_in([subject.said[0], subject.said[1]])
    stated = subject.manifest.parameters if subject.manifest else None
    if not claimed and stated is None:
        return unchecked(name, "neither name nor title nor manifest says how many parameters there are")
    count = parameters(subject)
    if count is None:
        return unchecked(name, "the tensors do not show how many parameters they stand for")
    # One that fits is enough: the other may be the length of its context (Qwen2.5-7B-Instruct-1M).
    wrong = claimed and not any(1 / _COUNT_FACTOR <= count / value <= _COUNT_FACTOR for _, value in claimed if value)
    off = stated is not None and abs(count - stated) > _PARAMETERS_OFF * count
    said = [*(words for words, _ in claimed), *([] if stated is None else [f"{stated} in the manifest"])]
    detail = f"Claimed are {_quoted(said)} parameters; the tensors stand for {count}."
    return failed(name, detail) if wrong or off else passed(name, detail)


def parameters(subject: Subject) -> int | None:
    """Return how many weights the tensors stand for, packed ones counted as the weights that they are; None where that does not show."""
    packed = [layer for layer in subject.layers if layer.method != DENSE]
    if any(layer.weights is None for layer in packed) or not subject.tensors or subject.unknown:
        return None
    if subject.formats - {subject.scheme.method}:
        return None
    stems = {layer.name for layer in packed}
    biases = {f"{stem}.bias" for stem in stems}
    tied = {"lm_head.weight"} if subject.config.get("tie_word_embeddings") is True else set()  # the embedding once more
    counted = (name for name in subject.tensors if name not in tied and (name in biases or not packing.inside(name, stems)))
    rest = (prod(subject.tensors[name][1]) for name in counted)
    return sum(layer.weights or 0 for layer in packed) + sum(rest)


def _table(subject: Subject) -> Finding:
    name, rows = "card_files", subject.card.rows
    if subject.files is None:
        return unchecked(name, "the files were not listed")
    if not rows and subject.manifest is None:
        return unchecked(name, "the card lists no file with its checksum")
    wrong = []
    for row in rows:
        there = subject.files.get(row.path)
        if there is None:
            wrong.append(f"{row.path} is not there")
        elif there[1] is not None and there[1] != row.sha256:
            wrong.append(f"{row.path} has another SHA-256")
        elif row.size and not row.size[0] <= there[0] <= row.size[1]:
            wrong.append(f"{row.path} has {there[0]} bytes")
    listed = {row.path for row in rows}
    wrong += [f"{file.path} is not listed" for file in (subject.manifest.files if subject.manifest else ()) if file.path not in listed]
    detail = f"The card lists {len(rows)} files with size and SHA-256, {len(wrong)} wrongly; all must be right."
    return failed(name, f"{detail} {_quoted(wrong)}.") if wrong else passed(name, detail)


def _names(subject: Subject) -> Finding:
    name = "card_name"
    if subject.manifest is None:
        return unchecked(name, "a card by others may call the model as it likes")
    said = [subject.card.title, *subject.card.index_names]
    wrong = [one for one in said if one != subject.name]
    wrong += [one for one in subject.card.repositories if one != subject.repo_id]
    detail = f"Title, model-index and commands must name {names.shown(subject.repo_id)}"
    return failed(name, f"{detail}; they name {_quoted(wrong)} too.") if wrong else passed(name, f"{detail}, and do.")


def _recipe(subject: Subject) -> Finding:
    name, manifest = "card_recipe", subject.manifest
    if manifest is None:
        return unchecked(name, "there is no manifest to compare with")
    wanted = [manifest.recipe.name, manifest.base.sha, manifest.digest, *(step.method for step in manifest.recipe.steps)]
    lacking = [one for one in wanted if one not in subject.card.text]
    detail = "The card must name the recipe, its methods, the base's commit and the artifact's digest as the manifest does"
    return failed(name, f"{detail}; it lacks {_quoted(lacking)}.") if lacking else passed(name, f"{detail}, and does.")


def _quantized_by(subject: Subject) -> Finding:
    name, claimed = "card_quantized_by", subject.card.data.get("quantized_by")
    if claimed is None:
        return unchecked(name, "the card does not say who quantized it")
    if subject.tensors and not subject.formats and all(layer.method == DENSE for layer in subject.layers):
        return failed(name, f"quantized_by says {names.shown(str(claimed))}; neither config nor tensors nor files are quantized.")
    owner = subject.repo_id.split("/")[0]
    detail = f"quantized_by says {names.shown(str(claimed))}; the repository's owner is {names.shown(owner)}."
    return failed(name, detail) if subject.manifest and claimed != owner else passed(name, detail)


_QUESTIONS: tuple[Callable[[Subject], Finding], ...] = (
    _names, _bits, _format, _base, _library, _licence, _quantized_by, _parameters, _recipe, _table,
)  # fmt: skip
