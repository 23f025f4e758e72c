"""What a look at a repository gives: passed, failed, or not checked, which is never told as passed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hub.history import Check

State = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One question by its stable name, and its answer in a sentence; of a question that could not be asked, why not."""

    name: str
    state: State
    detail: str


def passed(name: str, detail: str) -> Finding:
    """Return the finding of a question that was answered well."""
    return Finding(name=name, state="passed", detail=detail)


def failed(name: str, detail: str) -> Finding:
    """Return the finding of a question that was answered badly."""
    return Finding(name=name, state="failed", detail=detail)


def unchecked(name: str, why: str) -> Finding:
    """Return the finding of a question that could not be asked."""
    return Finding(name=name, state="not checked", detail=why)


def of_check(check: Check) -> Finding:
    """Return a check of the gate as a finding."""
    return Finding(name=check.name, state="passed" if check.passed else "failed", detail=check.detail)


def checks(findings: Iterable[Finding]) -> tuple[Check, ...]:
    """Return the answered questions as checks of the gate, in order."""
    return tuple(Check(name=one.name, passed=one.state == "passed", detail=one.detail) for one in findings if one.state != "not checked")
