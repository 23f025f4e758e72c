"""The gate's questions about a repository of anybody: what it promises is taken from its own manifest, or else from config.json and card.

What cannot be asked is told as not checked, with the reason, and never as passed. Nothing that lies there is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from hub import packing
from hub.codec import from_json
from hub.domain import Artifact, Candidate
from hub.errors import BadDocument, PolicyRefusal
from hub.facts import Facts
from hub.headers import BITS
from hub.history import BaseRecord, VariantRecord
from hub.names import shown
from hub.packing import DENSE, FLOATS, Layer, Scheme
from hub.policy import weight_bytes
from leaderboard import configs, gate
from leaderboard.card_reader import read
from leaderboard.faults import lacking
from leaderboard.findings import Finding, failed, of_check, passed, unchecked
from leaderboard.verify import Served, card_findings, config_of

MANIFEST = "modelpress.json"
_GGUF = ".gguf"
_MOST_MANIFEST = 64 << 20
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")
_NO_NUMBERS = "its measurements lie in the database of whoever published it, not in this one"
_NO_MANIFEST = f"there is no {MANIFEST} that says what it should be"


@dataclass(frozen=True, kw_only=True)
class Promised:
    """What a repository says of itself: its manifest and its base where the Hub has that; `fault` says why it is not judged by these."""

    manifest: Artifact | None = None
    fault: str = ""
    base: Candidate | None = None

    @property
    def exact(self) -> bool:
        """Whether it is judged by manifest and base, and not by config.json and card alone."""
        return self.manifest is not None and self.base is not None and not self.fault


def require_size(listed: Candidate, max_bytes: float) -> None:
    """Raise `PolicyRefusal` for a repository whose files, as the hub lists them, have more than `max_bytes`; before any is fetched."""
    size = sum(max(file.size, 0) for file in listed.files)
    if size > max_bytes:
        raise PolicyRefusal(
            f"{listed.ref.repo_id} is not looked at: its {len(listed.files)} files have {size:.3g} bytes, and policy.max_bytes allows"
            f" {max_bytes:.3g}",
            hint="Nothing of it was fetched. Raise policy.max_bytes in modelpress.toml to have all of it fetched.",
        )


def manifest_of(there: Served) -> Promised:
    """Return the manifest that lies in a repository, if any."""
    path = there.folder / MANIFEST
    if not path.is_file() or path.stat().st_size > _MOST_MANIFEST:
        return Promised()
    try:
        return Promised(manifest=from_json(Artifact, path.read_bytes(), where=MANIFEST))
    except BadDocument as error:
        return Promised(fault=error.message)


def with_base(
    there: Served, promised: Promised, candidate: Callable[[str, str | None], Candidate | None], *, max_bytes: float = math.inf
) -> Promised:
    """Return what is promised with the base that manifest or card name, as `candidate(repo_id, sha)` gives it.

    A manifest of others may name whatever base it likes: one of more than `max_bytes` of weights is not to be pulled.
    """
    if promised.manifest:
        base = candidate(promised.manifest.base.repo_id, promised.manifest.base.sha)
        size = weight_bytes(base) if base else 0
        large = f"the base that {MANIFEST} names has {size:.3g} bytes of weights, and policy.max_bytes allows {max_bytes:.3g}"
        return replace(promised, base=base, fault=large if size > max_bytes else promised.fault)
    named = read((there.card or b"").decode("utf-8", errors="replace")).strings("base_model")
    return replace(promised, base=candidate(named[0], None)) if len(named) == 1 else promised


def judge(there: Served, facts: Facts, promised: Promised, *, at: str) -> tuple[Finding, ...]:
    """Return all findings on a repository whose measurements are not in this database, in the order of the gate's own checks."""
    found = _by_manifest(there, facts, promised, at) if promised.exact else _by_config(there, facts, promised)
    numbers = [unchecked(name, _NO_NUMBERS) for name in ("measured", "kl_divergence", "perplexity_ratio", "same_top_token")]
    card = card_findings(there, facts, manifest=promised.manifest, base=promised.base)
    commands = unchecked("commands", "only the commands of a card that this database wrote are run")
    return (*found, *numbers, *card, commands)


def _by_manifest(there: Served, facts: Facts, promised: Promised, at: str) -> list[Finding]:
    """Ask as of a release of ours: the manifest says recipe, base and files."""
    manifest, base = promised.manifest, promised.base
    assert manifest is not None
    assert base is not None
    record = VariantRecord(
        variant_id=manifest.variant_id, base=manifest.base, recipe=manifest.recipe, artifact=manifest, press_seconds=None,
        press_peak_memory_bytes=None, measurements=(), environment=None, verdicts=(), release=None, failure=None,
    )  # fmt: skip
    held = BaseRecord(candidate=base, rank=0, measurements=(), environment=None)
    verdict = gate.judge(record, facts, base=held, stage="release", subject=there.sha, at=at)
    before = "what it generated before publishing stands in the database of whoever published it"
    found = [of_check(check) for check in verdict.checks if check.name != "measured"]
    return [unchecked(one.name, before) if one.name == "same_tokens" else one for one in found]


def _by_config(there: Served, facts: Facts, promised: Promised) -> list[Finding]:
    """Ask what can be asked without a manifest: whether config.json, tensors and files agree with each other."""
    config, unknown = config_of(facts), _unknown(promised)
    scheme, layers = packing.scheme(config), packing.layers(config, facts.outlines)
    return [
        *_runs(facts),
        unchecked("same_tokens", unknown),
        of_check(gate.chat_template(facts)),
        of_check(gate.finite(facts)) if facts.outlines else unchecked("finite", "no tensor could be read"),
        _packed(scheme, layers, facts),
        _size(there, scheme, layers, facts),
        _config(there, facts, config),
        _files(there, facts, unknown),
        *(of_check(check) for check in gate.unsafe(facts)),
        unchecked("like_base", _not_like_base(promised)),
        unchecked("checksums", f"{unknown}; each file has the checksum that the hub lists"),
        of_check(gate.no_secrets(facts)),
    ]


def _unknown(promised: Promised) -> str:
    """Say why it is not known what the repository should be."""
    if promised.manifest and promised.base is None:
        return f"the base that {MANIFEST} names is not on the hub"
    return promised.fault or _NO_MANIFEST


def _not_like_base(promised: Promised) -> str:
    if promised.manifest:
        return _unknown(promised)
    if promised.base is None:
        return "its base is not named, or not on the hub"
    return "it does not say which commit of its base it was made from"


def _runs(facts: Facts) -> list[Finding]:
    """Whether it loads and writes; where a library is missing here that is nobody's fault."""
    if why := lacking(facts):
        return [unchecked("loads", why), unchecked("generates", why)]
    return [of_check(gate.loads(facts)), of_check(gate.generates(facts))]


def _config(there: Served, facts: Facts, config: Mapping[str, Any]) -> Finding:
    """Whether config.json agrees with the tensors; the files of llama.cpp need none."""
    if not config and not facts.config and _of_llama_cpp(there):
        if not facts.keys:
            return unchecked("config", f"there is no config.json, and the keys of no {_GGUF} file could be read")
        return of_check(gate.config_check(configs.faults(config, facts.outlines, keys=facts.keys)))
    wrong = configs.faults(config, facts.outlines, keys=facts.keys) if config else ["config.json is missing or no JSON object"]
    return of_check(gate.config_check(wrong))


def _of_llama_cpp(there: Served) -> bool:
    """Whether the weights lie in GGUF files alone, which hold configuration and tokenizer themselves."""
    return any(path.endswith(_GGUF) for path in there.files) and not any(path.endswith(".safetensors") for path in there.files)


def _packed(scheme: Scheme, layers: tuple[Layer, ...], facts: Facts) -> Finding:
    """Whether every linear layer of the decoder that config.json does not spare is packed, and none is where it says nothing."""
    name = "packed"
    if not facts.outlines:
        return unchecked(name, "no tensor could be read")
    if facts.keys or not layers:
        return unchecked(name, "how this format names its linear layers is not known without a recipe")
    packed = [layer for layer in layers if layer.method != DENSE]
    if scheme.method == DENSE:
        detail = f"config.json promises no packed layer; {len(packed)} of {len(layers)} linear layers are packed."
        return failed(name, detail) if packed else passed(name, detail)
    if packed and not scheme.known:
        return unchecked(name, f"how the format {shown(scheme.method)} packs layers is not known here")
    promised = [layer for layer in layers if layer.method != DENSE or not scheme.spares(layer.name)]
    silent = [layer.name for layer in promised if layer.method == DENSE]
    if silent and scheme.untried:
        why = "config.json says by a pattern too complex to be tried which layers stay dense"
        return unchecked(name, f"{why}: {shown(scheme.untried[0])}")
    detail = (
        f"{len(promised) - len(silent)} of {len(promised)} linear layers are packed as config.json promises"
        f" ({shown(scheme.method)}); all must be."
    )
    if not silent and packed:
        return passed(name, detail)
    by_layer = sorted({packing.decoder_layer(one) for one in silent})
    return failed(name, f"{detail} Dense in {len(by_layer)} decoder layers: {gate.listed(silent)}." if silent else f"{detail} None is.")


def _size(there: Served, scheme: Scheme, layers: tuple[Layer, ...], facts: Facts) -> Finding:
    """Whether the tensors take what config.json's bits sum to: packed layers by its bits, the others by its dtype."""
    name, width = "size", packing.dtype_bits(config_of(facts))
    if not facts.outlines:
        return unchecked(name, "no tensor could be read")
    if not any(path.endswith(".safetensors") for path in there.files):
        return unchecked(name, "config.json does not speak of the weights in this format")
    expected = expected_bytes(scheme, layers, facts.outlines, width)
    if expected is None:
        return unchecked(name, "neither config.json nor the tensors say how many bits there should be")
    return of_check(gate.size(facts.tensor_bytes_found, expected))


def expected_bytes(scheme: Scheme, layers: tuple[Layer, ...], tensors: packing.Tensors, width: int | None) -> int | None:
    """Return Σ bits / 8 by what config.json says, `width` being that of its dtype; None where it does not say enough."""
    packed = {layer.name: layer for layer in layers if layer.method != DENSE}
    if width is None or not scheme.known or (packed and len(scheme.bits) != 1):
        return None
    total = 0.0
    for layer in packed.values():
        whole = layer.method in ("torchao", "int8", "fp8")  # a byte a weight, whatever its bits
        if layer.weights is None and scheme.bits[0] not in layer.bits:
            return None
        # Words whose number of weights leaves a choice are as many as they should be where the config's bits are among the choices.
        total += layer.overhead + (layer.words if layer.weights is None else layer.weights * (8 if whole else scheme.bits[0]) / 8)
    for tensor, (dtype, shape) in tensors.items():
        if not packing.inside(tensor, packed):
            total += prod(shape) * (width if dtype in FLOATS else BITS.get(dtype, 8)) / 8
    return math.ceil(total)


def _files(there: Served, facts: Facts, unknown: str) -> Finding:
    alone = _of_llama_cpp(there)
    missing = [name for name in facts.missing_files if not (alone and name == "config.json")]
    if not alone and not any(name in there.files for name in _TOKENIZERS):
        missing.append("a tokenizer")
    if missing:
        return failed("files", f"{len(missing)} files are missing, 0 may be: {gate.listed(missing)}.")
    there_are = "GGUF files need none beside them" if alone else "config and tokenizer are there"
    return unchecked("files", f"{there_are}; which others belong there is not known, for {unknown}")
