"""What may be pulled and what may be published: one rule after another, the first that fails gives the refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from fnmatch import fnmatchcase

from hub import names
from hub.codec import content_id
from hub.derivatives import derivation
from hub.domain import Candidate, Recipe, Refusal
from hub.errors import UsageError
from hub.licences import AGREEMENTS, POLICIES, TEXTS, LicenceDemands, demands, effective
from hub.listing import CUSTOM_CODE
from hub.settings import PolicySettings, Settings

__all__ = [
    "CARRIED", "PULL", "RULES", "LicenceDemands", "config_fault", "demands", "pinned", "release_name", "screen", "stem",
    "too_big_for_disk", "weight_bytes",
]  # fmt: skip

# What goes from a base model to its variants as it is: tokenizer, templates, settings of generation, licence.
CARRIED = (
    "tokenizer*", "vocab.json", "vocab.txt", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "additional_chat_templates/*.jinja", "generation_config.json", "preprocessor_config.json", "processor_config.json", *TEXTS, *POLICIES,
)  # fmt: skip
# What a base model is pulled with: that, its configuration, and weights in the one safe format, as `_size` counts them; never code.
PULL = ("config.json", "model*.safetensors", "model*.safetensors.index.json", *CARRIED)
_WEIGHTS = re.compile(r"model[^/]*\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".gguf", ".onnx")
_TOKENIZERS = ({"tokenizer.json"}, {"tokenizer.model"}, {"spiece.model"}, {"vocab.txt"}, {"vocab.json", "merges.txt"})
_MAX_LISTED = 4
# Numbers of a config that shapes are computed from; none of a real model comes near the limit.
_SIZES = ("hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "intermediate_size", "vocab_size",
          "n_inner", "n_positions", "max_position_embeddings", "num_key_value_heads", "head_dim")  # fmt: skip
_MAX_SIZE = 2**24

Rule = Callable[[Candidate, PolicySettings], str | None]


def screen(candidate: Candidate, settings: Settings, *, unknown: Collection[str] = ()) -> Refusal | None:
    """Return why a model is not pressed, or None: the first rule that fails, in one sentence with what is allowed.

    `unknown` names rules (`RULES`) that are not judged, since what they ask is not known of the candidate.
    """
    for code, rule in _RULES.items():
        if code not in unknown and (reason := rule(candidate, settings.policy)):
            return Refusal(repo_id=candidate.ref.repo_id, sha=candidate.ref.sha, code=code, reason=reason)
    return None


def too_big_for_disk(candidate: Candidate, free_bytes: int) -> Refusal | None:
    """Return why a model does not fit `free_bytes` of disk, or None: its weights alone must; planning adds what each recipe takes."""
    wanted = weight_bytes(candidate)
    if wanted <= free_bytes:
        return None
    reason = f"its weights have {wanted:.3g} bytes, and the disk of the work folder has {free_bytes:.3g} free"
    return Refusal(repo_id=candidate.ref.repo_id, sha=candidate.ref.sha, code="disk", reason=reason)


def config_fault(text: str) -> str | None:
    """Return why a model's config.json is not taken, or None: one plain JSON object that asks for no code, with sizes that can be."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return "its config.json is not valid JSON"
    if not isinstance(config, dict) or not config:
        return "its config.json is empty or no JSON object"
    if config.get("auto_map"):
        return "its config.json asks for code of its own (auto_map), which is never run"
    if config.get("quantization_config"):
        return "its config.json says that it is quantized already (quantization_config); only models in full precision are pressed"
    named = config.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        return f"architectures in its config.json is {names.shown(json.dumps(named))}; expected a list of texts"
    for key in _SIZES:
        value = config.get(key)
        if value is not None and not all(_is_size(one) for one in (value if isinstance(value, list) else [value])):
            return f"{key} in its config.json is {names.shown(json.dumps(value))}; expected a whole number from 1 to {_MAX_SIZE}"
    return None


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_SIZE


def weight_bytes(candidate: Candidate) -> int:
    """Return the bytes of the weights that would be pulled, as listed."""
    return sum(max(file.size, 0) for file in candidate.files if _WEIGHTS.fullmatch(file.path))


def pinned(repo_id: str, policy: PolicySettings) -> bool:
    """Whether the settings pin a model, at whichever commit."""
    return repo_id.lower() in {entry.split("@")[0].lower() for entry in policy.pinned}


def release_name(base: Candidate, recipe: Recipe, namespace: str, *, namesake: bool = False) -> str:
    """Return the id under which a variant is published: `namespace/<base>-<recipe>`, with the licence's prefix, as the Hub's names allow.

    A `namesake` of another base has its owner's name too: `<base>-<owner>-<recipe>` (`leaderboard.naming` says whose turn that is). Too
    long a name is cut and ends in eight digits of a hash of base and recipe; where nothing of it can stay, they alone are the name. It
    does not depend on the base's commit. Raise `UsageError` where the namespace leaves no room or is none.
    """
    prefix = demands(base.license, base.license_name).prefix
    mark = content_id((base.ref.repo_id, recipe.name))[:8]
    name = _fitting(f"{stem(base, namesake=namesake)}-{recipe.name}") or mark
    room = names.MAX_REPO_ID - len(namespace) - 1
    if len(name) > room:
        name = _fitting(f"{_fitting(name[: max(room - len(mark) - 1, 0)])}-{mark}")
    repo_id = f"{namespace}/{name}"
    if (fault := names.repo_id_fault(repo_id)) or (prefix and not name.startswith(prefix)):
        reason = fault or "it is too long"
        raise UsageError(
            f"no name for a release in {names.shown(namespace)}: {reason}",
            hint="Set hub.namespace to a user or an organisation of the Hub.",
        )
    return repo_id


def stem(base: Candidate, *, namesake: bool = False) -> str:
    """Return with what the names of all releases of a base begin: its own name with the licence's prefix, and its owner's of a namesake."""
    name = _fitting(base.ref.name)
    prefix = demands(base.license, base.license_name).prefix
    if prefix and not name.startswith(prefix):
        bare = name.removeprefix("Meta-")
        name = bare if bare.startswith(prefix) else f"{prefix}-{name}"
    return _fitting(f"{name}-{base.ref.repo_id.split('/')[0]}") if namesake else name


def _fitting(name: str) -> str:
    """Return a name of ASCII `[\\w.-]` without repeated separators, and with none at either end."""
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)
    plain = re.sub(r"[-.]*(?:--|\.\.)[-.]*", "-", plain)
    return re.sub(r"(\.git|\.ipynb)+$", "", plain.strip("-."), flags=re.IGNORECASE).strip("-.")


def _banned(candidate: Candidate, policy: PolicySettings) -> str | None:
    repo_id = candidate.ref.repo_id.lower()
    hit = next((entry for entry in policy.banned if fnmatchcase(repo_id, entry.lower())), None)
    return f"it is banned by {names.shown(hit)} in policy.banned" if hit is not None else None


def _unavailable(candidate: Candidate, _policy: PolicySettings) -> str | None:
    if re.fullmatch(r"[0-9a-f]{40}", candidate.ref.sha):
        return None
    return "the Hub gives no details of it; it was closed, removed or renamed, or the commit pinned in policy.pinned does not exist"


def _private(candidate: Candidate, _policy: PolicySettings) -> str | None:
    return "it is private; only public models are pressed" if candidate.private else None


def _gated(candidate: Candidate, policy: PolicySettings) -> str | None:
    license_id = effective(candidate.license, candidate.license_name)
    if not candidate.gated or _among(license_id, policy.gated_licenses):
        return None
    allowed = _listed(policy.gated_licenses, "policy.gated_licenses")
    licence = names.shown(license_id or "none")
    return f"access to it is gated ({names.shown(candidate.gated)}) under the licence {licence}; gated licences allowed: {allowed}"


def _pipeline(candidate: Candidate, policy: PolicySettings) -> str | None:
    if not policy.pipeline_tags or candidate.pipeline_tag in policy.pipeline_tags:
        return None
    allowed = _listed(policy.pipeline_tags, "policy.pipeline_tags")
    return f"its pipeline tag is {names.shown(candidate.pipeline_tag or 'none')}; allowed: {allowed}"


def _author(candidate: Candidate, policy: PolicySettings) -> str | None:
    owner = candidate.ref.repo_id.split("/")[0]
    if not policy.authors or _among(owner.lower(), policy.authors):
        return None
    return f"its owner is {names.shown(owner)}; allowed: {_listed(policy.authors, 'policy.authors')}"


def _language(candidate: Candidate, policy: PolicySettings) -> str | None:
    if not policy.languages or any(_among(language.lower(), policy.languages) for language in candidate.languages):
        return None
    found = f"its languages are {names.shown(', '.join(candidate.languages))}" if candidate.languages else "it names no language"
    return f"{found}; allowed: {_listed(policy.languages, 'policy.languages')}"


def _architecture(candidate: Candidate, policy: PolicySettings) -> str | None:
    if not policy.architectures or _among((candidate.architecture or "").lower(), policy.architectures):
        return None
    found = names.shown(candidate.architecture or "unknown")
    return f"its architecture is {found}; allowed: {_listed(policy.architectures, 'policy.architectures')}"


def _downloads(candidate: Candidate, policy: PolicySettings) -> str | None:
    if candidate.downloads >= policy.min_downloads or pinned(candidate.ref.repo_id, policy):
        return None
    return f"it has {candidate.downloads} downloads; policy.min_downloads is {policy.min_downloads}"


def _license(candidate: Candidate, policy: PolicySettings) -> str | None:
    license_id = effective(candidate.license, candidate.license_name)
    if _among(license_id, policy.licenses):
        return None
    found = f"its licence {names.shown(license_id)} is not allowed" if license_id else "it names no licence"
    return f"{found}; allowed: {_listed(policy.licenses, 'policy.licenses')}"


def _agreement(candidate: Candidate, _policy: PolicySettings) -> str | None:
    wanted = demands(candidate.license, candidate.license_name)
    if not wanted.agreement or names.fitting((file.path for file in candidate.files), AGREEMENTS):
        return None
    return f"its licence {names.shown(wanted.license)} must be passed on as a copy, and it holds no LICENSE file to copy"


def _derivative(candidate: Candidate, policy: PolicySettings) -> str | None:
    return derivation(candidate, finetunes=policy.finetunes)


def _safetensors(candidate: Candidate, _policy: PolicySettings) -> str | None:
    if any(_WEIGHTS.fullmatch(file.path) for file in candidate.files):
        return None
    other = next((file.path for file in candidate.files if file.path.lower().endswith((*_PICKLES, ".safetensors"))), None)
    found = f"its weights are {names.shown(other)}" if other else "it has no weights"
    return f"{found}; expected model.safetensors or its shards at the top of the repository, the only format that runs no code"


def _remote_code(candidate: Candidate, _policy: PolicySettings) -> str | None:
    code = next((file.path for file in candidate.files if file.path.lower().endswith((".py", ".pyc", ".so"))), None)
    if CUSTOM_CODE not in candidate.tags and code is None:
        return None
    where = names.shown(code) if code else "auto_map in its config"
    return f"it brings its own code ({where}), which is never run; models that transformers itself knows are allowed"


def _names(candidate: Candidate, _policy: PolicySettings) -> str | None:
    return names.repo_id_fault(candidate.ref.repo_id) or names.paths_fault(file.path for file in candidate.files)


def _size(candidate: Candidate, policy: PolicySettings) -> str | None:
    if candidate.parameters is None:
        return f"its size is unknown (nothing counts its parameters); at most {policy.max_parameters:.3g} are allowed"
    if candidate.parameters > policy.max_parameters:
        return f"it has {candidate.parameters:.3g} parameters; policy.max_parameters allows {policy.max_parameters:.3g}"
    if candidate.parameters < policy.min_parameters:
        return f"it has {candidate.parameters:.3g} parameters; policy.min_parameters wants {policy.min_parameters:.3g}"
    return None


def _bytes(candidate: Candidate, policy: PolicySettings) -> str | None:
    if any(file.size < 0 for file in candidate.files if _WEIGHTS.fullmatch(file.path)):
        return f"the size of its weights is unknown (the Hub lists no bytes); at most {policy.max_bytes:.3g} bytes are allowed"
    if weight_bytes(candidate) > policy.max_bytes:
        return f"its weights have {weight_bytes(candidate):.3g} bytes; policy.max_bytes allows {policy.max_bytes:.3g}"
    return None


def _config(candidate: Candidate, _policy: PolicySettings) -> str | None:
    if any(file.path == "config.json" for file in candidate.files):
        return None
    return "it has no config.json, so its architecture is unknown; expected one as transformers writes it"


def _tokenizer(candidate: Candidate, _policy: PolicySettings) -> str | None:
    paths = {file.path for file in candidate.files}
    if any(needed <= paths for needed in _TOKENIZERS):
        return None
    return f"it has no tokenizer; expected one of {', '.join(_joined())}"


def _joined() -> Iterator[str]:
    return (" with ".join(sorted(needed, reverse=True)) for needed in _TOKENIZERS)


def _among(license_id: str | None, allowed: tuple[str, ...]) -> bool:
    return license_id is not None and license_id in {entry.lower() for entry in allowed}


def _listed(values: tuple[str, ...], key: str) -> str:
    """Return the first values of a list in the settings, short enough for a sentence; `key` is where the others stand."""
    if len(values) <= _MAX_LISTED + 1:
        return ", ".join(values) or "none"
    return f"{', '.join(values[:_MAX_LISTED])} and {len(values) - _MAX_LISTED} more in {key}"


_RULES: dict[str, Rule] = {
    "banned": _banned,
    "unavailable": _unavailable,
    "private": _private,
    "gated": _gated,
    "author": _author,
    "pipeline_tag": _pipeline,
    "language": _language,
    "architecture": _architecture,
    "downloads": _downloads,
    "license": _license,
    "derivative": _derivative,
    "remote_code": _remote_code,
    "no_safetensors": _safetensors,
    "name": _names,
    "size": _size,
    "bytes": _bytes,
    "no_config": _config,
    "no_tokenizer": _tokenizer,
    "no_agreement": _agreement,
}
RULES = tuple(_RULES)
"""The codes of the rules, in the order in which they are asked."""
