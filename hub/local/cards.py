"""The front matter of a README: read with limits, judged as the Hub judges it."""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_FRONT_MATTER = 128 * 1024
MAX_DEPTH = 24
_FENCE = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_REPO_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*|code|multilingual")

# https://huggingface.co/docs/hub/repositories-licenses
_LICENSES = """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
    artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl
    apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma
    unknown other"""
LICENSES = frozenset(_LICENSES.split())


class CardError(ValueError):
    """The front matter cannot be read; the message says why."""


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, with a limit on depth, and with YAML 1.2's scalars: `no` is a language, a date is text."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise CardError("YAML aliases (*name) are not allowed")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise CardError(f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"\A(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))


def front_matter(text: str) -> str | None:
    """Return the YAML between the first two `---` lines, or None where there is none."""
    match = _FENCE.match(text)
    return match.group(1) if match else None


def parse(text: str) -> dict[str, Any]:
    """Return a README's metadata (empty if there is none); raise `CardError` if it cannot be read."""
    yaml_text = front_matter(text)
    if yaml_text is None:
        return {}
    if len(yaml_text) > MAX_FRONT_MATTER:
        raise CardError(f"the metadata are larger than {MAX_FRONT_MATTER} characters")
    try:
        data = yaml.load(yaml_text, Loader=_Loader)  # noqa: S506 - a SafeLoader with less
    except yaml.YAMLError as error:
        raise CardError(" ".join(str(error).split())) from error
    except (RecursionError, ValueError) as error:
        raise CardError(str(error)) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CardError(f"the metadata must be a mapping, not {type(data).__name__}")
    return {str(key): _plain(value) for key, value in data.items()}


def _plain(value: Any) -> Any:
    """Make what YAML read fit for JSON: text keys, no sets, bytes or not-a-number."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def validate(text: str) -> tuple[list[str], list[str]]:
    """Return what is wrong with a README's metadata and what is only worth a warning."""
    try:
        data = parse(text)
    except CardError as error:
        return [f"Invalid YAML metadata: {error}"], []
    if not data:
        return [], ["empty or missing yaml metadata in repo card (https://huggingface.co/docs/hub/model-cards#model-card-metadata)"]
    errors: list[str] = []
    warnings: list[str] = []
    _check_license(data, warnings)
    for key in ("tags", "datasets", "metrics"):
        value = data.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
            errors.append(f'"{key}" must be an array of strings')
    for key in ("pipeline_tag", "library_name", "license_name", "license_link"):
        if data.get(key) is not None and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    for base in texts(data.get("base_model")):
        if not _REPO_ID.fullmatch(base):
            errors.append(f'"base_model" must be model ids, not {base!r:.100}')
    if data.get("base_model_relation") not in (None, "adapter", "finetune", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of [adapter, finetune, merge, quantized]')
    for language in texts(data.get("language")):
        if not _LANGUAGE.fullmatch(language):
            errors.append(f'"language" must be ISO 639 codes, "code" or "multilingual", not {language!r:.100}')
    _check_model_index(data.get("model-index"), errors)
    return errors, warnings


def texts(value: Any) -> list[str]:
    """Return a value that may be one string or a list of them as a list."""
    if isinstance(value, str):
        return [value]
    return [str(entry) for entry in value] if isinstance(value, list) else []


def _check_license(data: dict[str, Any], warnings: list[str]) -> None:
    for name in texts(data.get("license")):
        if name not in LICENSES:
            warnings.append(f'"license" {name!r:.100} is not one of the Hub\'s identifiers; use "other" with license_name and license_link')
        if name == "other" and not (data.get("license_name") and data.get("license_link")):
            warnings.append('"license: other" should come with license_name and license_link')


def _check_model_index(index: Any, errors: list[str]) -> None:
    if index is None:
        return
    if not isinstance(index, list):
        errors.append('"model-index" must be an array')
        return
    for number, model in enumerate(index):
        results = model.get("results") if isinstance(model, dict) else None
        if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not isinstance(results, list):
            errors.append(f'"model-index[{number}]" must have a name and results')
            continue
        for place, result in enumerate(results):
            for key in ("task", "dataset", "metrics"):
                if not isinstance(result, dict) or not result.get(key):
                    errors.append(f'"model-index[{number}].results[{place}].{key}" is required')
