"""Whatever can be named has its line in the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from runners import engines, methods, metrics, protocols

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_line_with_its_paper(name: str) -> None:
    info = next(info for info in methods.available() if info.name == name)
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(f"| `{name}` | {info.family} |")]  # openvino is an engine, too
    assert len(lines) == 1
    assert info.paper in lines[0]


@pytest.mark.parametrize("name", engines.names())
def test_every_engine_has_a_line(name: str) -> None:
    assert f"| `{name}` |" in (DOCS / "methods.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*metrics.names(), *protocols.names()])
def test_every_metric_and_protocol_has_a_line(name: str) -> None:
    assert f"| `{name}` |" in (DOCS / "metrics.md").read_text(encoding="utf-8")


def test_every_method_is_in_the_list_of_families() -> None:
    listed = (DOCS.parent / "README.md").read_text(encoding="utf-8").split("| Family | Methods |")[1].split("\n\n")[0]
    assert not [name for name in methods.names() if f"(`{name}`)" not in listed]


def test_every_metric_can_be_asked_for_in_sql() -> None:
    line = next(line for line in (DOCS / "results.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `metric` |"))
    assert not [name for name in metrics.names() if f"`{name}`" not in line]


@pytest.mark.parametrize("name", engines.names())
def test_every_engine_lists_what_it_reads(name: str) -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    formats = next(info.formats for info in engines.available() if info.name == name)
    assert f"| `{name}` | {', '.join(formats)} |" in text


def test_every_direct_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (DOCS / "dependencies.md").read_text(encoding="utf-8").lower()
    extras = project["optional-dependencies"]
    direct = [*project["dependencies"], *extras["press"], *extras["export"]]
    missing = [line for line in direct if line.split("==")[0].split(">=")[0].lower() not in text]
    assert not missing
