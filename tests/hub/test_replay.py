import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hub.errors import BadDocument, ModelPressError, UsageError
from hub.replay import MAX_BYTES, Day, Limits, read, replay
from hub.settings import PolicySettings, Settings

USUAL = Limits()
LISTINGS = Path(__file__).parents[2] / "../shared/data/hub-snapshots/llmfit-snapshots"


def _entry(name: str, downloads: int | None = 1000, **more: Any) -> dict[str, Any]:
    usual = {"hf_likes": 10, "parameters_raw": 10**9, "pipeline_tag": "text-generation", "format": "gguf", "quantization": "Q4_K_M"}
    return {"name": name, "hf_downloads": downloads, **usual, **more}


def _write(folder: Path, day: str, *entries: dict[str, Any]) -> Path:
    path = folder / f"hf_models.{day}.abc.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def _days(*paths: Path, limits: Limits = USUAL, **policy: Any) -> list[Day]:
    return list(replay(read(paths), Settings(policy=PolicySettings(**policy)), limits))


def _names(day: Day) -> list[str]:
    return [pick.repo_id for pick in day.picks]


def test_each_day_presses_the_best_that_is_not_pressed_yet(tmp_path: Path) -> None:
    models = [_entry("a/one", 9000), _entry("a/two", 500), _entry("a/three", 700), _entry("a/four", 90)]
    for day in ("2026-01-03", "2026-01-01", "2026-01-02"):
        _write(tmp_path, day, *models)
    (tmp_path / "notes.json").write_text("not a listing", encoding="utf-8")
    days = _days(tmp_path, limits=Limits(models=2))
    assert [str(day.day) for day in days] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert [_names(day) for day in days] == [["a/one", "a/three"], ["a/two", "a/four"], []]
    assert [day.moved for day in days] == [4, 0, 0]
    assert [day.waiting for day in days] == [2, 0, 0]
    assert days[0].picks[1].reason == "rank 2: 700 downloads, 10 likes"


def test_a_rising_model_is_pressed_before_one_that_is_still_larger(tmp_path: Path) -> None:
    for number, day in enumerate(("2026-01-01", "2026-01-05", "2026-01-09")):
        others = [_entry("a/still", 5000 + number), _entry("a/big", 10**6 + number), _entry("a/bigger", 10**7 + number)]
        _write(tmp_path, day, _entry("a/rising", 1000 * 2**number), *others)
    days = _days(tmp_path, limits=Limits(models=1))
    assert [_names(day) for day in days] == [["a/bigger"], ["a/big"], ["a/rising"]]
    pick = days[2].picks[0]
    assert (pick.rank, pick.rank_by_level, pick.score.trend) == (3, 4, "rising")
    assert pick.reason.startswith("rank 3, rank 4 by level alone: 4,000 downloads, 10 likes; rising by +0.")
    assert (days[2].rising, days[2].falling) == (1, 0)


def test_what_a_listing_does_not_say_is_not_judged(tmp_path: Path) -> None:
    bare = {"name": "a/bare", "hf_downloads": None}
    path = _write(tmp_path, "2026-01-01", bare, _entry("a/unknown-task", 0, pipeline_tag="unknown", parameters_raw=0))
    day = _days(path, min_downloads=10, min_parameters=10, licenses=[], languages=["en"], architectures=["X"])[0]
    assert not day.refusals
    assert day.task_unknown == 2
    assert all("not listed that day" in pick.reason for pick in day.picks)


def test_refusals_are_those_of_policy(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "2026-01-01",
        _entry("a/huge", parameters_raw=10**12),
        _entry("a/model-AWQ"),
        _entry("a/plain-name", format="gptq"),
        _entry("a/apple-model", format="mlx"),
        _entry("a/masks", pipeline_tag="fill-mask"),
        _entry("a/few", 3),
        _entry("b/good"),
        _entry("b/banned"),
        _entry("no owner"),
        _entry("../evil"),
    )
    day = _days(path, min_downloads=10, banned=["b/ban*"])[0]
    assert _names(day) == ["b/good"]
    found = {refusal.repo_id: refusal.code for refusal in day.refusals}
    assert found == {
        "a/huge": "size", "a/model-AWQ": "derivative", "a/plain-name": "derivative", "a/apple-model": "derivative",
        "a/masks": "pipeline_tag", "a/few": "downloads", "b/banned": "banned", "no owner": "name", "../evil": "name",
    }  # fmt: skip
    assert day.refused == {"derivative": 3, "name": 2, "size": 1, "pipeline_tag": 1, "downloads": 1, "banned": 1}


def test_a_budget_lets_smaller_models_pass_a_large_one(tmp_path: Path) -> None:
    path = _write(tmp_path, "2026-01-01", *(_entry(f"a/{size}b", 1000 * size, parameters_raw=size * 10**9) for size in (8, 7, 3, 1)))
    day = _days(path, limits=Limits(models=9, parameters=12e9))[0]
    assert _names(day) == ["a/8b", "a/3b", "a/1b"]
    assert day.waiting == 1


def test_a_day_knows_nothing_of_later_ones(tmp_path: Path) -> None:
    first = _write(tmp_path, "2026-01-01", _entry("a/one", 100), _entry("a/two", 200))
    alone = _days(first)
    _write(tmp_path, "2026-01-02", _entry("a/one", 10**6), _entry("a/two", 200))
    assert _days(tmp_path)[0] == alone[0]


def _bad(folder: Path) -> Iterator[tuple[str, bytes, str]]:
    yield "x.2026-01-01.json", b"", "is no listing"
    yield "x.2026-01-01.json", b"{}", "is no listing"
    yield "x.2026-01-01.json", b"[1]", r"is no listing of models: 0"
    yield "x.2026-01-01.json", b'[{"name": "a/b"}, {"hf_downloads": 1}]', r"1\.name"
    yield "x.2026-01-01.json", b'[{"name": "a/b", "hf_downloads": "many"}]', r"0\.hf_downloads"
    yield "x.2026-01-01.json", b'[{"name": "a/b", "hf_downloads": -1}]', r"0\.hf_downloads"
    yield "x.2026-01-01.json", b'[{"name": "a/b", "hf_likes": 1e400}]', r"0\.hf_likes"
    yield "x.2026-01-01.json", b'[{"name": "a/b", "hf_likes": NaN}]', r"0\.hf_likes"
    yield "x.2026-01-01.json", b"[" * 200_000, "is no listing"
    yield "x.2026-01-01.json", b"\xff\xfe", "is no listing"
    yield "x.2026-01-01.json", b"[]", "lists no model"
    yield "x.json", b"[]", "no date in its name"
    yield "x.2026-13-41.json", b"[]", "no date in its name"


@pytest.mark.parametrize("number", range(13))
def test_bad_listings_are_told_in_a_sentence(tmp_path: Path, number: int) -> None:
    name, content, words = list(_bad(tmp_path))[number]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelPressError, match=words) as caught:
        read([tmp_path / name])
    assert isinstance(caught.value, BadDocument | UsageError)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_bad_sets_of_listings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no dated listing"):
        read([tmp_path])
    with pytest.raises(UsageError, match="cannot be read"):
        read([tmp_path / "2026-01-01.json"])
    huge = tmp_path / "2026-01-01.json"
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(BadDocument, match="at most"):
        read([huge])
    twice = [_write(tmp_path, "2026-01-02", _entry("a/b"))] * 2
    with pytest.raises(UsageError, match=r"both of 2026-01-02"):
        read(twice)
    many = tmp_path / "2026-01-03.json"
    many.write_text("[" + '{"name":"a/b"},' * 100_000 + '{"name":"a/b"}]', encoding="utf-8")
    with pytest.raises(BadDocument, match="at most 100000"):
        read([many])


def test_counts_that_are_absurd_break_nothing(tmp_path: Path) -> None:
    path = _write(tmp_path, "2026-01-01", _entry("a/b", 10**15, hf_likes=10**15, release_date="yesterday", parameters_raw=1))
    path2 = _write(tmp_path, "2026-01-02", _entry("a/b", 1, hf_likes=1, release_date="9999-12-31"), _entry("a/b", 7))
    days = _days(path, path2)
    assert _names(days[0]) == ["a/b"]
    assert days[1].listed == 1


# -- the command, on real listings


def _run(*words: str) -> Any:
    from modelpress.cli import app

    return CliRunner().invoke(app, ["replay", *words])


def test_the_command_prints_days_or_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = _write(tmp_path, "2026-01-01", _entry("a/one", 9000), _entry("a/two-GGUF"))
    done = _run(str(path), "--per-day", "1")
    assert done.exit_code == 0, done.output
    for words in ("2026-01-01  2 listed", "1 may be pressed", "refused: 1 derivative", "a/one", "rank 1: 9,000 downloads", "Not judged"):
        assert words in done.output
    assert not (tmp_path / "press").exists()
    found = json.loads(_run(str(path), "--json").output)
    assert found["days"][0]["picks"][0]["repo_id"] == "a/one"
    assert found["days"][0]["refusals"][0]["code"] == "derivative"
    assert "license" in found["not_judged"]
    bad = _run(str(tmp_path / "2026-01-09.json"))
    assert bad.exit_code == UsageError.exit_code
    assert "cannot be read" in bad.output


@pytest.mark.shared
@pytest.mark.skipif(not LISTINGS.exists(), reason="needs ../shared/data/hub-snapshots")
def test_real_listings_replay_without_pressing_anything_twice() -> None:
    days = _days(LISTINGS)
    assert len(days) == 26
    assert max(day.listed for day in days) == 1852
    picked = [name for day in days for name in _names(day)]
    assert len(picked) == len(set(picked)) == 130
    assert {"2026-02-28", "2026-04-15", "2026-05-11"} <= {str(day.day) for day in days if not day.moved}
    early = [pick for day in days for pick in day.picks if pick.score.trend == "rising" and pick.rank < pick.rank_by_level]
    assert len(early) > 10
    for day in days:
        assert day.accepted + len(day.refusals) == day.listed
        assert {"size", "pipeline_tag"} <= set(day.refused)
