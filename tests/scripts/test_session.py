"""Who may work in a folder beside whom, and how a command ends when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hub.errors import Preempted, WorkFolderBusy
from hub.settings import PressSettings, Settings
from modelpress.session import Session
from modelpress.stopping import Stopping, Terminated

from .conftest import Folder


def session(folder: Path, **hold: bool) -> Session:
    return Session(Settings(press=PressSettings(work_dir=folder)), **hold)


HOLDS = [{"exclusive": True}, {"helper": True}, {"alone": True}, {}]


@pytest.mark.parametrize("first", HOLDS, ids=str)
@pytest.mark.parametrize("second", HOLDS, ids=str)
def test_one_plans_any_number_help_and_who_takes_away_is_alone(tmp_path: Path, first: dict[str, bool], second: dict[str, bool]) -> None:
    both = {*first, *second}
    busy = (first == second and both & {"exclusive", "alone"}) or ("alone" in both and both & {"exclusive", "helper"})
    with session(tmp_path, **first):
        if busy:
            with pytest.raises(WorkFolderBusy, match=f"process {os.getpid()}"), session(tmp_path, **second):
                pass
        else:
            with session(tmp_path, **second):
                pass
    with session(tmp_path, **second):  # all is free again
        pass


def test_a_helper_works_beside_who_planned_and_takes_the_plan_as_it_is(folder: Folder) -> None:
    with session(folder.press, exclusive=True):
        assert folder.json("work", "--no-plan") == {
            **dict.fromkeys(("done", "failed", "retried", "cancelled", "interrupted", "lost"), 0),
            "not_started": {},
            "reasons": {},
            "refused_by_gate": [],
            "not_judged": [],
        }
        assert folder.run("work").returncode == WorkFolderBusy.exit_code
        chosen = folder.run("work", "--no-plan", "--quick")
    assert chosen.returncode == 2
    assert "--no-plan takes what is planned as it is" in chosen.stderr


def interrupted(number: int) -> None:
    with Stopping():
        try:
            os.kill(os.getpid(), number)
        except Exception:
            pytest.fail("it was taken for a failure of what it interrupted")


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_interrupts_and_no_stage_takes_it_for_a_failure(number: int, kind: type[BaseException]) -> None:
    with pytest.raises(kind) as raised:
        interrupted(number)
    assert type(raised.value) is kind


def in_order(ended: list[bool]) -> None:
    with Stopping() as stopping, stopping.orderly() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        ended.append(stop.is_set())


def test_an_orderly_block_ends_first() -> None:
    ended: list[bool] = []
    with pytest.raises(Terminated):
        in_order(ended)
    assert ended == [True]


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stopping():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
from modelpress.stopping import Stopping
with Stopping() as stopping, stopping.orderly() as stop:
    print("ready", flush=True)
    while not stop.is_set():
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(600)
"""


def test_an_ignored_signal_stays_so_and_a_second_one_ends_at_once() -> None:
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "asked\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == Preempted.exit_code
