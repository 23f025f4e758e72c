from __future__ import annotations

from pathlib import Path

import pytest

from hub.codec import from_json, to_json
from hub.domain import Calibration, Recipe
from hub.errors import BadDocument, CalibrationFailed, UnknownName, UsageError
from runners import methods, recipes, texts

GOOD = (Path(recipes.__file__).parent / "w8a8-dynamic.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_complete(name: str) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name
    assert recipe.title
    assert recipe.summary
    assert recipe.track in ("serving", "research")
    assert recipe.format == methods.get(recipe.steps[-1].method).FORMAT
    assert recipe.thresholds.kl_divergence > 0
    assert recipe.thresholds.perplexity_ratio > 1
    assert from_json(Recipe, to_json(recipe)) == recipe
    for step in recipe.steps:
        assert step.scheme in methods.get(step.method).SCHEMES
        assert step.calibration is None or step.calibration.text in texts.names()


def test_no_two_recipes_do_the_same() -> None:
    done = [to_json((recipe.format, recipe.steps)) for recipe in map(recipes.load, recipes.names())]
    assert len(done) == len(set(done))


def test_the_default_set_has_every_kind() -> None:
    made = "+".join(recipes.load(name).method for name in recipes.default_names())
    for method in ("gptq", "w8a8", "bitsandbytes", "wanda", "depth_prune", "distil"):
        assert method in made


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        recipes.load("gptq-w4a16-g12")
    assert "gptq-w4a16-g128" in caught.value.hint


def test_a_file_of_one_s_own_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert recipes.load(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("title = ", BadDocument, "not valid TOML"),
        ('title = "x"', BadDocument, "summary"),
        (GOOD.replace('track = "serving"', 'track = "fast"'), BadDocument, "track"),
        (GOOD.replace("default = true", "defualt = true"), BadDocument, "defualt"),
        (GOOD.replace("default = true", "default = 1"), BadDocument, "default must be"),
        (GOOD.replace('method = "w8a8"', 'method = "w8a9"'), UnknownName, "w8a9"),
        (GOOD.split("[[steps]]")[0] + "steps = []", BadDocument, "recipe"),
        (GOOD.replace('format = "compressed-tensors"', 'format = "gptq"'), BadDocument, "w8a8 leaves the format compressed-tensors"),
        (GOOD + '\n[[steps]]\nmethod = "distil"\nscheme = "logits"\n', BadDocument, "w8a8 packs the weights, and no step can follow"),
        (GOOD + "[steps.params]\nlearning_rate = inf\n", BadDocument, "not finite"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, error: type[Exception], says: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(error, match=says):
        recipes.load(str(path))


class Letters:
    """A tokenizer of one token a character."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_windows_are_seeded_whole_and_distinct(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("".join(map(chr, range(32, 127))))
    wanted = Calibration(text=str(path), samples=4, sequence_length=10, seed=1)
    found = texts.windows(wanted, Letters())
    assert found == texts.windows(wanted, Letters())
    assert len({window[0] for window in found}) == 4
    assert all(window == list(range(window[0], window[0] + 10)) for window in found)
    other = Calibration(text=str(path), samples=4, sequence_length=10, seed=2)
    assert texts.windows(other, Letters()) != found


def test_a_text_too_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("x" * 99)
    with pytest.raises(CalibrationFailed, match="9 windows of 10 tokens; the calibration asks for 10"):
        texts.windows(Calibration(text=str(path), samples=10, sequence_length=10), Letters())


def test_a_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("Käse".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8, from byte 1"):
        texts.read(str(path))


def test_an_unknown_text_names_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        texts.read("stdlib-helout")
    assert "stdlib-heldout" in caught.value.hint
    assert len(texts.sha256("stdlib-heldout")) == 64
