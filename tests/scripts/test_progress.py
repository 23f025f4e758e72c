"""Progress as plain lines: what comes from outside is shown as it is."""

from __future__ import annotations

import io

from rich.console import Console

from modelpress.progress import Reporter

HOSTILE = "a file named x[/dim][/b].py [red]not red[/] \\[bold]"


def reporter() -> tuple[Reporter, io.StringIO]:
    text = io.StringIO()
    return Reporter(Console(file=text, width=200)), text


def test_what_comes_from_outside_is_no_markup() -> None:
    report, text = reporter()
    report.say(HOSTILE)
    with report.phase("press", 2) as phase:
        phase.begin(HOSTILE)
        phase.end(HOSTILE, HOSTILE)
        phase.begin("second")
        phase.fail("second", HOSTILE)
    lines = text.getvalue().splitlines()
    assert lines[0] == HOSTILE
    assert lines[1] == "press: 2 to do"
    assert lines[2] == f"[1/2] done {HOSTILE} ({HOSTILE})"
    assert lines[3] == f"[2/2] failed second ({HOSTILE})"


def test_a_phase_without_work_says_nothing_and_is_timed() -> None:
    report, text = reporter()
    with report.phase("gate", 0):
        pass
    assert text.getvalue() == ""
    assert report.seconds["gate"] >= 0
