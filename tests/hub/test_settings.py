import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.errors import SettingsError
from hub.settings import DEFAULT_LICENSES, Settings, check_endpoint, forget_write_token, load

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("MODELPRESS_") or name == "HF_TOKEN":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def _load(text: str) -> Settings:
    path = Path("modelpress.toml")
    path.write_text(text, encoding="utf-8")
    return load(path)


def _error(text: str) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        _load(text)
    return caught.value


def test_defaults_without_a_file() -> None:
    settings = load()
    assert settings.hub.endpoint == "local"
    assert settings.hub.limit == 50
    assert settings.hub.token is None
    assert settings.policy.licenses == DEFAULT_LICENSES
    assert settings.press.work_dir == Path("press")
    assert settings.farm.workers == 1


def test_the_commented_file_of_the_project_holds_exactly_the_defaults() -> None:
    assert load(ROOT / "modelpress.toml") == load()
    text = (ROOT / "modelpress.toml").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert f"[{name}]" in text
        assert field.annotation is not None
        for key in field.annotation.model_fields:
            assert key in ("token", "write_token") or f"\n{key} = " in text, f"modelpress.toml does not show {name}.{key}"


def test_the_file_in_the_current_folder_is_read() -> None:
    Path("modelpress.toml").write_text("[hub]\nlimit = 7\n", encoding="utf-8")
    assert load().hub.limit == 7


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELPRESS_HUB__LIMIT", "9")
    monkeypatch.setenv("MODELPRESS_POLICY__LICENSES", "mit, gemma")
    monkeypatch.setenv("MODELPRESS_PRESS__RECIPES", '["a", "b"]')
    settings = _load('[hub]\nlimit = 3\nsort = "likes"\n[policy]\nlicenses = ["mit"]')
    assert (settings.hub.limit, settings.hub.sort) == (9, "likes")
    assert settings.policy.licenses == ("mit", "gemma")
    assert settings.press.recipes == ("a", "b")


@pytest.mark.parametrize("name", ["HF_TOKEN", "MODELPRESS_HUB__TOKEN"])
def test_the_token_comes_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "hf_very_secret\n")
    settings = load()
    assert settings.hub.token is not None
    assert settings.hub.token.get_secret_value() == "hf_very_secret"
    assert "very_secret" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_our_own_token_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "general")
    monkeypatch.setenv("MODELPRESS_HUB__TOKEN", "own")
    token = load().hub.token
    assert token is not None
    assert token.get_secret_value() == "own"


def test_an_empty_token_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", " ")
    monkeypatch.setenv("MODELPRESS_HUB__TOKEN", "")
    assert load().hub.token is None


@pytest.mark.parametrize("name", ["MODELPRESS_WRITE_TOKEN", "MODELPRESS_HUB__WRITE_TOKEN", "modelpress_hub__write_token"])
def test_the_write_token_is_one_of_its_own_and_is_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HF_TOKEN", "reads")
    assert load().hub.write_token is None
    monkeypatch.setenv(name, " writes ")
    settings = load()
    assert settings.hub.write_token is not None
    assert settings.hub.write_token.get_secret_value() == "writes"
    assert "writes" not in repr(settings) + settings.model_dump_json()
    forget_write_token()
    assert name not in os.environ
    assert os.environ["HF_TOKEN"] == "reads"


@pytest.mark.parametrize(("name", "variable"), [("token", "HF_TOKEN"), ("write_token", "MODELPRESS_WRITE_TOKEN")])
def test_a_token_in_the_file_is_refused_without_repeating_it(name: str, variable: str) -> None:
    error = _error(f'[hub]\n{name} = "hf_very_secret"')
    assert f"hub.{name} is" in error.message
    assert variable in error.hint
    assert "very_secret" not in error.message + error.hint


@pytest.mark.parametrize(
    ("text", "named", "hint"),
    [
        ("[hub]\nlimti = 3", "hub.limti", "'limit'"),
        ("[hubb]\nlimit = 3", "[hubb]", "'hub'"),
        ("[hub]\nmax_bytes = 3", "hub.max_bytes", "[policy]"),
        ("limit = 3", "limit", "[hub]"),
        ("[farm]\nqqqqqq = 3", "farm.qqqqqq", "workers, threads, timeout_s, memory_gib"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest_valid_one(text: str, named: str, hint: str) -> None:
    error = _error(text)
    assert f"unknown key {named}" in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("[hub]\nlimit = 'x'", "hub.limit is 'x'", "a whole number"),
        ("[hub]\nlimit = true", "hub.limit", "a number, not true or false"),
        ("[hub]\nlimit = 0", "hub.limit is 0", "greater than or equal to 1"),
        ("[hub]\nsort = 'name'", "hub.sort is 'name'", "'trending_score'"),
        ("[hub]\nendpoint = 3", "hub.endpoint is 3", "a text in quotes"),
        ("[policy]\nlicenses = [1]", "policy.licenses is 1", "a text in quotes"),
        ("[policy]\nlicenses = 1", "policy.licenses is 1", "a list of texts"),
        ("[policy]\npinned = ['sample']", "policy.pinned", "owner/name"),
        ("[policy]\npinned = ['people/a--b']", "policy.pinned", "may not hold --"),
        ("[policy]\npinned = ['people/a@main']", "policy.pinned", "40 hexadecimal digits"),
        ("[policy]\npinned = [1]", "policy.pinned is 1", "a text in quotes"),
        ("[press]\nwork_dir = 3", "press.work_dir is 3", "a path"),
        ("[farm]\ntimeout_s = 0", "farm.timeout_s is 0", "greater than 0"),
        ("[farm]\nmemory_gib = inf", "farm.memory_gib", "finite"),
        ("hub = 3", "hub is 3", "a table of keys"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(text: str, place: str, expected: str) -> None:
    error = _error(text)
    assert place in error.message
    assert expected in error.message
    assert error.hint


def test_wrong_toml_is_named_with_its_line() -> None:
    assert "line 2" in _error("[hub]\nlimit = = 3").message


def test_a_named_file_must_exist() -> None:
    with pytest.raises(SettingsError, match=r"no settings file other\.toml"):
        load(Path("other.toml"))


def test_a_file_that_is_not_text_is_an_error_in_words() -> None:
    Path("modelpress.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load()
    Path("folder.toml").mkdir()
    with pytest.raises(SettingsError, match="cannot be read"):
        load(Path("folder.toml"))


def test_a_misspelt_environment_variable_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELPRESS_HUB__LIMTI", "3")
    with pytest.raises(SettingsError) as caught:
        load()
    assert "MODELPRESS_HUB__LIMTI" in caught.value.message
    assert "'MODELPRESS_HUB__LIMIT'" in caught.value.hint


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELPRESS_HUB__LIMIT", "many")
    with pytest.raises(SettingsError, match="environment variable MODELPRESS_HUB__LIMIT is 'many'; expected a whole number"):
        load()


@pytest.mark.parametrize(
    "value", ["https://huggingface.co", "https://hub.example:8443/base", "http://127.0.0.1:8757", "http://localhost:1", "http://[::1]:1"]
)
def test_endpoints_that_may_see_a_token(value: str) -> None:
    assert check_endpoint(value + "/") == value


@pytest.mark.parametrize(
    "value",
    [
        *("http://huggingface.co", "http://10.0.0.1", "http://127.0.0.1.evil.example", "http://localhost@evil.example", "ftp://x"),
        *("huggingface.co", "https://", "https://user:secret@hub.example", "https://hub.example?x=1", "file:///etc/passwd", "http://[::1"),
    ],
)
def test_endpoints_that_may_not(value: str) -> None:
    with pytest.raises(ValueError):
        check_endpoint(value)
    error = _error(f'[hub]\nendpoint = "{value}"')
    assert "hub.endpoint" in error.message


@settings(deadline=None)
@given(st.text(max_size=30))
def test_no_text_as_an_endpoint_gives_a_plain_http_address_off_this_machine(value: str) -> None:
    try:
        accepted = check_endpoint(value)
    except ValueError:
        return
    assert accepted.lower().startswith(("https://", "http://localhost", "http://127.", "http://[::1]"))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError):
        load().hub.limit = 3
