"""The proof-of-artifact gate: facts found on the bytes in a clean process, judged without opening a file.

Three choices are fixed here. Quality is judged by the *worse end* of the 95 % interval, not by the value: it is for the
variant to prove that it keeps within its recipe's threshold, so a noisy measurement cannot let a bad one through. A
variant without its base's perplexity under the same protocol has no quality at all, so it does not pass. And the least share
of equal top tokens follows from the recipe's limit on KL divergence (`least_same_top_token`).

docs/gate.md lists every check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from hub.codec import content_id
from hub.domain import Artifact, Candidate, Measurement, Recipe, Thresholds
from hub.facts import CODE, LINK, STRAY, Facts
from hub.history import BaseRecord, Check, Stage, VariantRecord, Verdict
from hub.licences import LicenceDemands, demands
from leaderboard import configs, stats
from leaderboard.steps import kept
from leaderboard.supplements import is_supplement

SIZE_TOLERANCE = 0.03
# What publishing adds beside the artifact's own files, licence texts of the base apart.
NOTICES = ("NOTICE", "NOTICE.modelpress")
PUBLISHED_BESIDE = frozenset({".gitattributes", "README.md", "modelpress.json", *NOTICES})
AGREEMENT = ("LICENSE", "LICENCE", "COPYING")
SHOWN = 5
GENERATES = "generates"


def judge(
    record: VariantRecord,
    facts: Facts,
    *,
    base: BaseRecord,
    stage: Stage,
    subject: str,
    at: str,
) -> Verdict:
    """Judge a variant by the facts found on `subject` (an artifact's digest, or a release's commit for stage `release`).

    At stage `release` the downloaded bytes must generate the same tokens as the artifact did when it was judged.
    """
    checks = [
        loads(facts),
        generates(facts),
        chat_template(facts),
        finite(facts),
        _packed(record, facts),
        size(facts.tensor_bytes_found, facts.tensor_bytes_expected),
        *_config(facts, record.recipe),
        _files(facts, record.artifact, base if stage == "release" else None),
        *unsafe(facts),
        _like_base(facts),
        _checksums(facts),
        no_secrets(facts),
        *_quality(record, base),
    ]
    if stage == "release":
        checks.insert(2, _same_tokens(record, facts))
    return Verdict(variant_id=record.variant_id, stage=stage, subject=subject, checks=tuple(checks), judged_at=at)


def listed(names: Sequence[str], total: int | None = None) -> str:
    """Return the first of some names, and how many more there are."""
    total = len(names) if total is None else total
    more = total - min(SHOWN, len(names))
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def loads(facts: Facts) -> Check:
    """Judge whether the engine of its format loads the checkpoint."""
    if facts.loads:
        engine = f" with {facts.engine}" if facts.engine else ""
        detail = f"The checkpoint loads in a clean process{engine} and holds {facts.tensors} tensors."
        return Check(name="loads", passed=True, detail=detail)
    return Check(
        name="loads", passed=False, detail=f"The checkpoint does not load: {facts.load_error.removesuffix('.') or 'no reason was given'}."
    )


def generates(facts: Facts) -> Check:
    """Judge whether the model writes at least one token."""
    # The fingerprint makes this sentence comparable: equal sentences mean the same prompt and the same tokens.
    count, fingerprint = len(facts.generated_ids), content_id((facts.prompt, facts.generated_ids))
    detail = f"{count} tokens (fingerprint {fingerprint}) were generated greedily from the prompt {facts.prompt!r}; at least 1 is needed."
    return Check(name=GENERATES, passed=count > 0, detail=detail)


def chat_template(facts: Facts) -> Check:
    """Judge whether one message can be rendered by the checkpoint's chat templates without harm to whoever does it."""
    detail = facts.template_fault or "No limit is broken, or there is no template."
    return Check(
        name="chat_template", passed=not facts.template_fault, detail=f"1 user message is rendered by the chat templates. {detail}"
    )


def _same_tokens(record: VariantRecord, facts: Facts) -> Check:
    name, now = "same_tokens", generates(facts).detail
    before = generated_before(record)
    if before is None:
        return Check(
            name=name, passed=False, detail="The artifact has no verdict from before publishing, so its tokens cannot be compared."
        )
    if before == now:
        count = len(facts.generated_ids)
        return Check(
            name=name, passed=True, detail=f"All {count} tokens are those that the artifact generated before publishing; all must be."
        )
    detail = f"Before publishing: {before} From the published bytes: {now} Prompt and fingerprint must be the same."
    return Check(name=name, passed=False, detail=detail)


def artifact_verdict(record: VariantRecord) -> Verdict | None:
    """Return the newest verdict on exactly the record's artifact, None where the gate has not spoken on these bytes."""
    digest = record.artifact.digest if record.artifact else None
    verdicts = [verdict for verdict in record.verdicts if verdict.stage == "artifact" and verdict.subject == digest]
    return max(verdicts, key=lambda verdict: verdict.judged_at, default=None)


def let_through(record: VariantRecord) -> bool:
    """Return whether the gate has let exactly the record's artifact through."""
    verdict = artifact_verdict(record)
    return verdict is not None and verdict.passed


def generated_before(record: VariantRecord) -> str | None:
    """Return what the artifact's verdict says of its generated tokens."""
    verdict = artifact_verdict(record)
    return next((check.detail for check in verdict.checks if check.name == GENERATES), None) if verdict else None


def finite(facts: Facts) -> Check:
    """Judge whether tensors and logits are all finite."""
    looked_at = "" if facts.looked_at is None else f" {facts.looked_at} hold numbers or scales that could be, and were looked at."
    if facts.non_finite:
        detail = f"{len(facts.non_finite)} of {facts.tensors} tensors hold NaN or infinity, 0 may: {listed(facts.non_finite)}.{looked_at}"
        return Check(name="finite", passed=False, detail=detail)
    return Check(name="finite", passed=True, detail=f"None of {facts.tensors} tensors holds NaN or infinity.{looked_at}")


def _packed(record: VariantRecord, facts: Facts) -> Check:
    found, expected = facts.packed_found, facts.packed_expected
    if expected == 0 and record.recipe.format != "dense":
        detail = f"The recipe promises format {record.recipe.format}, yet 0 layers were expected to be packed; at least 1 must be."
        return Check(name="packed", passed=False, detail=detail)
    if expected == 0 and not facts.not_packed:
        return Check(name="packed", passed=True, detail="The recipe packs no layer (dense format); the size is judged instead.")
    detail = f"{found} of {expected} layers are as promised ({record.recipe.scheme}); all must be.{_by_layer(facts)}"
    if stayed := kept(record):
        detail += f" {len(stayed)} more stayed in the base's precision, as the manifest says: {listed(tuple(stayed))}."
    passed = found == expected and not facts.not_packed
    if not passed:
        detail += f" The others: {listed(facts.not_packed, max(expected - found, len(facts.not_packed)))}."
    return Check(name="packed", passed=passed, detail=detail)


def _by_layer(facts: Facts) -> str:
    """Say how many are packed in each decoder layer: in one word where all have as many, else which lack some."""
    short = [f"{layer} ({found} of {promised})" for layer, (promised, found) in facts.layers.items() if found != promised]
    if short:
        return f" By decoder layer, short are: {listed(short)}."
    counts = sorted({promised for promised, _ in facts.layers.values()})
    each = f"{counts[0]} each" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} each" if counts else ""
    return f" They lie in {len(facts.layers)} decoder layers, {each}." if each else ""


def size(found: int, expected: int) -> Check:
    """Judge the bytes of all tensors by what the scheme's bits sum to."""
    if expected <= 0:
        return Check(name="size", passed=False, detail=f"The tensors take {found} B, but no expected size was given to judge it by.")
    off = found / expected - 1
    detail = (
        f"The tensors take {found} B where the scheme's bits sum to {expected} B ({off:+.2%}); at most ±{SIZE_TOLERANCE:.0%} is allowed."
    )
    return Check(name="size", passed=abs(off) <= SIZE_TOLERANCE, detail=detail)


def is_licence_file(path: str, demanded: LicenceDemands) -> bool:
    """Return whether a file at the top of a repository is one that its licence wants passed on."""
    return "/" not in path and any(fnmatchcase(path, pattern) for pattern in demanded.carry)


def _published_beside(path: str, demanded: LicenceDemands) -> bool:
    # A reason left at the end ("LICENSE.py: pickle or code") is a complaint that publishing does not explain.
    return ": " not in path and (path in PUBLISHED_BESIDE or is_supplement(path) or is_licence_file(path, demanded))


def _config(facts: Facts, recipe: Recipe | None) -> list[Check]:
    """Judge config.json where its text was noted; a checkpoint without one does not load and lacks a file."""
    if not facts.config:
        return []
    try:
        config = json.loads(facts.config)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        return [Check(name="config", passed=False, detail="config.json is no JSON object; it must be 1.")]
    return [config_check(configs.faults(config, facts.outlines, keys=facts.keys, recipe=recipe))]


def config_check(faults: Sequence[str]) -> Check:
    """Judge the faults that `configs.faults` found."""
    detail = f"Compared with recipe, tensors, and the keys that loaders need, config.json has {len(faults)} faults; 0 may be."
    return Check(name="config", passed=not faults, detail=f"{detail} {_sentence(faults)}" if faults else detail)


def _sentence(faults: Sequence[str]) -> str:
    words = "; ".join(faults[:SHOWN]) + (f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else "")
    return f"{words[0].upper()}{words[1:]}."


def _files(facts: Facts, artifact: Artifact | None, released: BaseRecord | None) -> Check:
    strays, missing = _reasoned(facts, STRAY), list(facts.missing_files)
    if released:
        demanded = demands(released.candidate.license, released.candidate.license_name)
        missing += not_passed_on(demanded, released.candidate, {file.path for file in artifact.files} if artifact else set(), strays)
        strays = [name for name in strays if not _published_beside(name, demanded)]
    parts = [f"{len(missing)} files are missing and {len(strays)} are unexpected; both must be 0."]
    parts += [f"Missing: {listed(missing)}."] if missing else []
    parts += [f"Unexpected: {listed(strays)}."] if strays else []
    return Check(name="files", passed=not missing and not strays, detail=" ".join(parts))


def not_passed_on(demanded: LicenceDemands, base: Candidate, own: Collection[str], beside: Collection[str]) -> list[str]:
    """Name what the base's licence wants passed on and is neither an artifact's own file (which is missed by itself) nor beside it."""
    lacking = [file.path for file in base.files if is_licence_file(file.path, demanded) and file.path not in (*own, *beside)]
    if demanded.agreement and not any(path.upper().startswith(AGREEMENT) for path in (*own, *beside, *lacking)):
        lacking.append(f"a copy of the licence {demanded.license}")
    if demanded.notice and not any(name in beside for name in NOTICES):
        lacking.append(f"{NOTICES[0]} with the words of the licence {demanded.license}")
    return lacking


def unsafe(facts: Facts) -> tuple[Check, Check]:
    """Judge whether there are files that could run code, or that lie elsewhere."""
    return (
        _none_of("no_code", _reasoned(facts, CODE), "files are pickles or code"),
        _none_of("no_links", _reasoned(facts, LINK), "files are symbolic links"),
    )


def _reasoned(facts: Facts, why: str) -> list[str]:
    """Return the unexpected files that are there for a reason; one without any is a stray."""
    found = (entry.rpartition(": ")[::2] if ": " in entry else (entry, STRAY) for entry in facts.unexpected_files)
    return [name for name, reason in found if reason == why]


def _none_of(name: str, found: Sequence[str], words: str) -> Check:
    detail = f"{len(found)} {words}; 0 may be."
    return Check(name=name, passed=not found, detail=f"{detail} They are: {listed(found)}." if found else detail)


def _like_base(facts: Facts) -> Check:
    words = "of tokenizer, chat template, generation config and licence files differ from the base's"
    return _none_of("like_base", facts.unlike_base, words)


def no_secrets(facts: Facts) -> Check:
    """Judge whether any file holds what looks like a token or a private key."""
    return _none_of("no_secrets", facts.secrets, "places have the form of a token or a private key")


def _checksums(facts: Facts) -> Check:
    wrong = facts.checksum_errors
    detail = f"{len(wrong)} files differ from the SHA-256 in the manifest; 0 may."
    return Check(name="checksums", passed=not wrong, detail=f"{detail} They are: {listed(wrong)}." if wrong else detail)


def _quality(record: VariantRecord, base: BaseRecord) -> list[Check]:
    protocol = stats.shared_protocol(record.measurements, base.measurements)
    if protocol is None:
        has = sorted({m.protocol for m in record.measurements if m.metric in stats.QUALITY})
        beside = sorted({m.protocol for m in base.measurements if m.metric == "perplexity"})
        detail = (
            "The variant's perplexity and divergence and its base's perplexity must be measured under one protocol; "
            f"the variant has {', '.join(has) or 'none'}, the base {', '.join(beside) or 'none'}."
        )
        return [Check(name="measured", passed=False, detail=detail)]
    limits = record.recipe.thresholds
    samples = getattr(stats.find(record.measurements, "kl_divergence", protocol), "samples", 0)
    return [
        Check(
            name="measured", passed=True, detail=f"Variant and base were measured under the same protocol, {protocol} ({samples} samples)."
        ),
        _under(record, "kl_divergence", protocol, limits.kl_divergence, "KL divergence from the base", " nats per token"),
        _under(record, "perplexity_ratio", protocol, limits.perplexity_ratio, "Perplexity as a ratio to the base's", ""),
        _same_top_token(record, protocol),
    ]


def least_same_top_token(limits: Thresholds) -> float:
    """Return the least share of tokens for which variant and base must hold the same one most likely, from the limit on KL divergence.

    By Pinsker's inequality two distributions with divergence K (nats) differ by at most √(K/2) in total variation: so often, at
    most, do draws from both part if they are drawn together as well as can be. A variant at its limit must not part more often than that.
    """
    return max(0.0, 1.0 - math.sqrt(limits.kl_divergence / 2))


def _same_top_token(record: VariantRecord, protocol: str) -> Check:
    name, words = "same_top_token", "The share of tokens with the base's most likely one"
    found, least = stats.find(record.measurements, name, protocol), least_same_top_token(record.recipe.thresholds)
    if found is None or not all(map(math.isfinite, (found.value, found.ci_low))):
        return Check(name=name, passed=False, detail=f"{words} is not a finite number; at least {least:.4g} is needed.")
    lower = min(found.ci_low, found.value)
    limit = f"at least {least:.4g} is needed, as the recipe's limit on KL divergence demands"
    detail = f"{words} is {found.value:.4g}, with 95 % confidence at least {lower:.4g}; {limit}."
    return Check(name=name, passed=lower >= least, detail=detail)


def _under(record: VariantRecord, metric: str, protocol: str, limit: float, words: str, unit: str) -> Check:
    found: Measurement | None = stats.find(record.measurements, metric, protocol)
    if found is None or not all(map(math.isfinite, (found.value, found.ci_high))):
        return Check(name=metric, passed=False, detail=f"{words} is not a finite number; at most {limit:g}{unit} is allowed.")
    upper = max(found.ci_high, found.value)
    detail = f"{words} is {found.value:.4g}{unit}, with 95 % confidence at most {upper:.4g}; the recipe allows at most {limit:g}."
    return Check(name=metric, passed=upper <= limit, detail=detail)
