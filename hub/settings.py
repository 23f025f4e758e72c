"""Settings: modelpress.toml and `MODELPRESS_<SECTION>__<KEY>` from the environment, validated once."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hub import names
from hub.errors import SettingsError

FILE_NAME = "modelpress.toml"
ENV_PREFIX = "MODELPRESS_"
DEFAULT_LICENSES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "psf-2.0", "cc0-1.0", "unlicense", "cc-by-4.0",
    "openrail", "creativeml-openrail-m", "bigscience-openrail-m", "bigscience-bloom-rail-1.0",
    "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "qwen",
)  # fmt: skip
_TOKENS = {"token": "HF_TOKEN", "write_token": "MODELPRESS_WRITE_TOKEN"}
_WRITE_TOKENS = ("MODELPRESS_WRITE_TOKEN", "MODELPRESS_HUB__WRITE_TOKEN")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "a text in quotes",
    "tuple_type": "a list of texts in brackets",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "model_type": "a table of keys",
    "model_attributes_type": "a table of keys",
    "path_type": "a path in quotes",
}


def _split(value: Any) -> Any:
    """Read a list from an environment variable: a JSON list, or names with commas between them."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"not a JSON list ({error})") from error
    return [part.strip() for part in value.split(",") if part.strip()]


def _secret(value: Any) -> Any:
    return (value.strip() or None) if isinstance(value, str) else value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


def _repo_id(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    repo_id, at, sha = value.partition("@")
    if fault := names.repo_id_fault(repo_id):
        raise ValueError(fault)
    if at and not _COMMIT.fullmatch(sha):
        raise ValueError(f"{value!r} is pinned to no commit; expected owner/name, or owner/name@ and 40 hexadecimal digits")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
RepoIds = Annotated[tuple[Annotated[str, BeforeValidator(_repo_id)], ...], BeforeValidator(_split)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Amount = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)


class HubSettings(_Section):
    """Which Hub to talk to and how many of its models to look at; `namespace` empty: the account that the token belongs to.

    `token` reads; `write_token` is for the publisher alone.
    """

    endpoint: str = "local"
    namespace: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")
    limit: Annotated[Count, Field(ge=1, le=10_000)] = 50
    sort: Literal["downloads", "likes", "trending_score", "last_modified", "created_at"] = "downloads"
    port: Annotated[Count, Field(le=65_535)] = 8757
    token: Annotated[SecretStr | None, BeforeValidator(_secret)] = None
    write_token: Annotated[SecretStr | None, BeforeValidator(_secret)] = None

    @field_validator("endpoint")
    @classmethod
    def _trusted(cls, value: str) -> str:
        return value if value == "local" else check_endpoint(value)


class PolicySettings(_Section):
    """What may be pulled and published; sizes in parameters and in bytes of safetensors. An empty list allows anything."""

    licenses: Names = DEFAULT_LICENSES
    gated_licenses: Names = ()
    authors: Names = ()
    languages: Names = ()
    architectures: Names = ()
    finetunes: bool = True
    min_parameters: Amount = 0
    max_parameters: Amount = 9e9
    max_bytes: Amount = 40e9
    min_downloads: Count = 0
    pipeline_tags: Names = ("text-generation",)
    banned: Names = ()
    pinned: RepoIds = ()


class PressSettings(_Section):
    """Where work and results are kept (no database named: a SQLite file in work_dir), what is pressed and how it is measured."""

    work_dir: Path = Path("press")
    database: str = ""
    recipes: Names = ()
    protocol: str = Field(default="stdlib-heldout@512", min_length=1)
    further_protocols: Names = ()
    data_dir: str = ""


class FarmSettings(_Section):
    """Where jobs run, how many press jobs run at a time, and what each may use.

    `threads` 0: all cores, `memory_gib` 0: 80 % of the machine. `gpus` are what each job asks a cluster for. `artifacts` is an fsspec
    address where a cluster keeps artifacts; empty: the work folder, which all its machines then share. A run that is paused waits
    `pause_hours` at the most.
    """

    kind: Literal["local", "ray"] = "local"
    ray_address: str = ""
    artifacts: str = ""
    gpus: Amount = 0
    workers: Annotated[Count, Field(ge=1)] = 1
    threads: Count = 0
    timeout_s: Annotated[Amount, Field(gt=0)] = 3600
    memory_gib: Amount = 0
    lease_s: Annotated[Amount, Field(ge=5)] = 120
    max_attempts: Annotated[Count, Field(ge=1)] = 3
    pause_hours: Amount = 12


class BudgetSettings(_Section):
    """What may be spent; 0: no limit. Jobs, GPU hours, hours of all jobs together and money count over the last `period_hours`.

    `wall_hours` is of one run, `disk_gib` what the work folder may hold, `storage_gib` what all releases may take on the Hub.
    `price_per_hour` is of one machine with its GPUs, in `currency`.
    """

    period_hours: Annotated[Amount, Field(gt=0)] = 24
    jobs: Count = 0
    job_hours: Amount = 0
    gpu_hours: Amount = 0
    wall_hours: Amount = 0
    money: Amount = 0
    price_per_hour: Amount = 0
    currency: str = "USD"
    disk_gib: Amount = 0
    repos_per_day: Count = 100
    commits_per_day: Count = 500
    storage_gib: Amount = 0


class Settings(BaseSettings):
    """All settings. `Settings()` gives the defaults and the environment; `load` reads modelpress.toml too."""

    # enable_decoding=False: lists from the environment go through `_split`, not through JSON alone.
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        enable_decoding=False,
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    hub: HubSettings = HubSettings()
    policy: PolicySettings = PolicySettings()
    press: PressSettings = PressSettings()
    farm: FarmSettings = FarmSettings()
    budget: BudgetSettings = BudgetSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over what the file says (the file comes in as `init_settings`)."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


def load(path: Path | None = None) -> Settings:
    """Read settings from `path` (None: modelpress.toml in the current folder, which may be absent) and the environment.

    Raises `SettingsError` naming the wrong key with the nearest valid one, or the wrong value with what was expected.
    Tokens never come from the file: that which reads from MODELPRESS_HUB__TOKEN or HF_TOKEN, that which writes from
    MODELPRESS_WRITE_TOKEN.
    """
    data = _read(Path(FILE_NAME) if path is None else path, required=path is not None)
    where = str(path or FILE_NAME)
    for name in sorted(_TOKENS.keys() & (hub if isinstance(hub := data.get("hub"), dict) else {}).keys()):
        raise SettingsError(
            f"{where}: hub.{name} is not allowed in a file", hint=f"Put the token into the environment variable {_TOKENS[name]}."
        )
    _check_keys(data, where)
    _check_environment(os.environ)
    try:
        settings = Settings(**data)
    except ValidationError as error:
        raise _explained(error, where) from error
    found = {name: _secret(os.environ.get(variable)) for name, variable in _TOKENS.items() if getattr(settings.hub, name) is None}
    tokens = {name: SecretStr(value) for name, value in found.items() if value}
    return settings.model_copy(update={"hub": settings.hub.model_copy(update=tokens)})


def forget_write_token() -> None:
    """Take the write token out of this process's environment, which all that it starts would inherit; settings that were read keep it."""
    for variable in [name for name in os.environ if name.upper() in _WRITE_TOKENS]:
        del os.environ[variable]


def check_endpoint(value: str) -> str:
    """Return the Hub's address without a trailing slash; ValueError where a token sent to it could be read on the way."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError(f'{value!r} is not the address of a Hub; expected "local" or such as "https://huggingface.co"')
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ValueError(
            f"{value!r} is not encrypted, so a token sent to it could be read on the way; expected https://, or http:// on loopback"
        )
    return value.rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise SettingsError(
            f"there is no settings file {path}", hint=f"Name an existing file, or leave it out to use {FILE_NAME} here."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            f"{path} is not valid TOML: {error}", hint="Correct that line; texts need quotes, lists need brackets."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text: {error}", hint="Save the file as UTF-8.") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", hint="Make it a readable file.") from error


def _sections() -> dict[str, dict[str, Any]]:
    return {name: dict(field.annotation.model_fields) for name, field in Settings.model_fields.items() if field.annotation}


def _check_keys(data: Mapping[str, Any], where: str) -> None:
    sections = _sections()
    for name, section in data.items():
        if name not in sections:
            raise _unknown(where, f"[{name}]" if isinstance(section, dict) else name, name, sections, owners=sections)
        for key in section if isinstance(section, dict) else ():
            if key not in sections[name]:
                raise _unknown(where, f"{name}.{key}", key, sections[name], owners=sections)


def _check_environment(environment: Mapping[str, str]) -> None:
    """Refuse a misspelt MODELPRESS_X__Y, which would otherwise be ignored in silence."""
    sections = _sections()
    for variable in environment:
        if not variable.upper().startswith(ENV_PREFIX) or "__" not in variable:
            continue
        name, key = variable[len(ENV_PREFIX) :].lower().split("__", 1)
        if name not in sections or key not in sections[name]:
            valid = [f"{ENV_PREFIX}{section}__{key}".upper() for section, keys in sections.items() for key in keys]
            raise _unknown("the environment", variable, variable.upper(), valid, owners={})


def _unknown(where: str, shown: str, key: str, valid: Iterable[str], *, owners: Mapping[str, Mapping[str, Any]]) -> SettingsError:
    names = [name for name in valid if name not in _TOKENS]
    homes = [section for section, keys in owners.items() if key in keys]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
    if homes:
        hint = f"It belongs to the section [{homes[0]}]."
    elif close:
        hint = f"Did you mean {close[0]!r}?"
    else:
        hint = f"Valid here: {', '.join(names)}."
    return SettingsError(f"{where}: unknown key {shown}", hint=hint)


def _explained(error: ValidationError, where: str) -> SettingsError:
    first = error.errors(include_url=False)[0]
    section, key = (*(str(part) for part in first["loc"]), "", "")[:2]
    variable = f"{ENV_PREFIX}{section}__{key}".upper()
    from_environment = any(name.upper() == variable for name in os.environ)
    source = f"the environment variable {variable}" if from_environment else f"{where}: {section}{'.' if key else ''}{key}"
    if first["type"] == "value_error":
        return SettingsError(
            f"{source}: {first['ctx']['error']}", hint=f"See the comments on {key} in the {FILE_NAME} that comes with the project."
        )
    expected = _EXPECTED.get(first["type"]) or first["msg"].removeprefix("Input should be ")
    shown = "a secret" if key in _TOKENS else repr(first["input"])
    return SettingsError(
        f"{source} is {shown}; expected {expected}", hint=f"Correct it, or leave it out to use the default{_default(section, key)}."
    )


def _default(section: str, key: str) -> str:
    field = _sections().get(section, {}).get(key)
    return f" ({field.default!r})" if field is not None and isinstance(field.default, (str, int, float)) else ""
