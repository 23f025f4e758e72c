"""The commands that a card prints under "Use it", run as a stranger would: in an empty folder, with an empty cache and no token.

No shell is started. `hf download` and the Python blocks run in processes of their own; `pip install` is compared with what is installed;
an unknown command fails, as nobody has tried it. Only a card that is ours is run: see `TrustedCard`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hub.errors import GateRefusal
from hub.history import Check
from hub.transport import PUBLIC_HUB
from runners import failures
from runners.confined import End, Limits, run_confined

SECTION = "Use it"
CHECK = "commands"
_SERVERS = ("llama-server",)
# Of this process's environment only these are passed on: where things are and how to reach the network, but no token and no settings.
_KEPT = (
    "LANG", "LC_ALL", "LC_CTYPE", "TZ", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME",
    "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
_MOST_TEXT = 4000
_BLANK = "It ran, and the model's answer is blank."
# Runs a script and notes what its own `print` is given.
_SCRIPT = """
import runpy, sys
def told(*words):
    print(*words)
    with open(sys.argv[2], "a", encoding="utf-8") as file:
        print(*words, file=file)
runpy.run_path(sys.argv[1], {"print": told}, "__main__")
"""
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass(frozen=True, kw_only=True)
class TrustedCard:
    """A card that may be run: `content`, its bytes, have the SHA-256 that the caller expects.

    The expected one comes from the record (`Release.card_sha256`, or the card rendered from the record), never from where the card came
    from. Raises `GateRefusal` where the two differ.
    """

    content: bytes = field(repr=False)
    expected_sha256: str

    def __post_init__(self) -> None:
        """Compare the two."""
        found = hashlib.sha256(self.content).hexdigest()
        if found != self.expected_sha256:
            raise GateRefusal(
                f"the card has SHA-256 {found[:12]}, not {self.expected_sha256[:12]}: it is not the one that was written from the record, "
                "so its commands are not run",
                hint="see who changed README.md on the hub",
            )

    @property
    def text(self) -> str:
        """The card as text."""
        return self.content.decode("utf-8")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a card: the language that it names, and its lines."""

    language: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one command: a line of a shell block, or a Python block.

    `detail` says why it was not run (`ran` False), or what came of it. `output` is the end of all that was printed, without absolute paths,
    `text` what a Python block printed itself: what the model wrote.
    Neither `missing` packages, which the card asks for and which are not installed here, nor what this machine did not give (`over_limit`:
    time, memory, disk, output, or its process was killed from outside) are the card's fault.
    """

    command: str
    ran: bool
    passed: bool
    detail: str
    exit_code: int | None = None
    seconds: float = 0.0
    output: str = ""
    text: str = ""
    missing: tuple[str, ...] = ()
    over_limit: bool = False


def blocks(card: TrustedCard) -> tuple[Block, ...]:
    """Return the fenced blocks of the card's section "Use it", in order."""
    found: list[Block] = []
    lines: list[str] = []
    inside, language = False, None
    for line in card.text.splitlines():
        if language is not None:
            if line.rstrip() == "```":
                found += [Block(language=language, code="\n".join(lines) + "\n")] if inside else []
                language = None
            else:
                lines.append(line)
        elif fence := re.fullmatch(r"```(\w*)\s*", line):
            language, lines = fence[1], []
        elif heading := re.fullmatch(r"##? (.+?)\s*", line):
            inside = heading[1] == SECTION
    return tuple(found)


def run(card: TrustedCard, *, endpoint: str, scratch: Path, timeout_s: float, memory_bytes: int) -> tuple[Outcome, ...]:
    """Run what the card prints, in order, and return what came of each command; after the first that fails nothing more is run.

    `endpoint` is the hub's address, `timeout_s` (0: none) holds for all commands together, `memory_bytes` (0: none) for each. `scratch` is
    emptied before and removed after.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    place = _Place(scratch=scratch.absolute(), endpoint=endpoint.rstrip("/"), limits=Limits.until(timeout_s, memory_bytes))
    outcomes: list[Outcome] = []
    try:
        for folder in (place.here, place.home, place.temporary):
            folder.mkdir(parents=True)
        commands = _commands(blocks(card))
        if fault := _unreachable(commands, place.endpoint):
            return (fault,)
        for command in commands:
            if outcomes and not outcomes[-1].passed:
                outcomes.append(Outcome(command=_words(command), ran=False, passed=False, detail="Not run: the one before it failed."))
                break
            outcomes.append(_python(command, place) if command.language == "python" else _line(command.code, place))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return tuple(outcomes)


def missing(card: TrustedCard) -> tuple[str, ...]:
    """Return the packages that the card asks for and that are not installed here, without running anything."""
    lines = [shlex.split(line.code) for block in blocks(card) if block.language != "python" for line in _lines(block)]
    asked = [_requirements(words[2:], "") for words in lines if words[:2] == ["pip", "install"]]
    return tuple(name for one in asked for name in one.missing)


def check(outcomes: Sequence[Outcome]) -> Check:
    """Return the gate's check on a card's commands: all that can be run here were, none failed, and something was."""
    ran, wrong = [one for one in outcomes if one.ran], [one for one in outcomes if not one.passed]
    if wrong:
        return Check(name=CHECK, passed=False, detail=f"Of the card's commands {wrong[0].command} failed: {wrong[0].detail}")
    if not ran:
        return Check(name=CHECK, passed=False, detail=f"The card has no command under {SECTION} that could be run; at least 1 must be.")
    left = "".join(f" {one.command}: {one.detail}" for one in outcomes if not one.ran or one.detail == _BLANK)
    detail = f"{len(ran)} of the card's {len(outcomes)} commands ran in an empty folder without a token; 0 may fail.{left}"
    return Check(name=CHECK, passed=True, detail=detail)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a card's commands run, and what they may use."""

    scratch: Path
    endpoint: str
    limits: Limits

    @property
    def here(self) -> Path:
        return self.scratch / "here"

    @property
    def home(self) -> Path:
        return self.scratch / "home"

    @property
    def temporary(self) -> Path:
        return self.scratch / "tmp"

    @property
    def path(self) -> str:
        return os.pathsep.join((str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"))

    def environment(self) -> dict[str, str]:
        """Return what a stranger's environment has, with every folder for caches and settings inside the scratch folder."""
        given = {name: os.environ[name] for name in _KEPT if name in os.environ}
        for name in (*_PROXIES, *map(str.lower, _PROXIES)):
            if name in os.environ and "@" not in os.environ[name]:  # one with a password in it stays here
                given[name] = os.environ[name]
        given |= {"PATH": self.path, "HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / ".cache"), "TMPDIR": str(self.temporary)}
        given |= {"HF_HOME": str(self.home / "hf"), "HF_HUB_CACHE": str(self.home / "hf" / "hub"), "HF_ENDPOINT": self.endpoint}
        quiet = ("TELEMETRY", "IMPLICIT_TOKEN", "PROGRESS_BARS", "UPDATE_CHECK")
        given |= {"NO_COLOR": "1", **{f"HF_HUB_DISABLE_{what}": "1" for what in quiet}}
        if self.endpoint != PUBLIC_HUB:
            given["HF_HUB_DISABLE_XET"] = "1"
        return given


def _commands(found: Sequence[Block]) -> list[Block]:
    """Return Python blocks as they are, and each line of a shell block as a block of its own."""
    return [command for block in found for command in ([block] if block.language == "python" else _lines(block))]


def _lines(block: Block) -> Iterator[Block]:
    for line in block.code.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield Block(language=block.language, code=line.strip())


def _words(command: Block) -> str:
    if command.language != "python":
        return f"`{command.code}`"
    lines = command.code.strip().splitlines()
    return f"`{lines[0] if lines else ''}` … ({len(lines)} lines of Python)"


def _unreachable(commands: Sequence[Block], endpoint: str) -> Outcome | None:
    """Return the fault of a card that does not say which hub it means where that is not the public one."""
    if not commands or endpoint == PUBLIC_HUB or any(command.code.startswith("export HF_ENDPOINT=") for command in commands):
        return None
    detail = f"The card does not say that the hub is {endpoint}, so its commands would ask {PUBLIC_HUB}."
    return Outcome(command="`export HF_ENDPOINT=…`", ran=False, passed=False, detail=detail)


def _line(line: str, place: _Place) -> Outcome:
    words, shown = shlex.split(line), f"`{line}`"
    if words[:2] == ["pip", "install"]:
        return _requirements(words[2:], shown)
    if words[0] == "export" and len(words) == 2 and words[1].startswith("HF_ENDPOINT="):
        named = words[1].partition("=")[2].rstrip("/")
        detail = "Set for all that follows." if named == place.endpoint else f"The hub is asked at {place.endpoint} now."
        return Outcome(command=shown, ran=False, passed=True, detail=detail)
    if words[0] in _SERVERS:
        return Outcome(command=shown, ran=False, passed=True, detail="Not run: it is a server, which would not end.")
    if words[:2] == ["hf", "download"]:
        return _ran([shutil.which("hf", path=place.path) or "hf", *words[1:]], shown, place)
    return Outcome(command=shown, ran=False, passed=False, detail="Not run: it is no command that is tried before publishing.")


def _requirements(wanted: Sequence[str], shown: str) -> Outcome:
    """Compare what the card asks to install with what is installed; another version is told, a missing package is a failure."""
    from packaging.requirements import InvalidRequirement, Requirement

    told, missing = [], []
    for word in wanted:
        try:
            requirement = Requirement(word)
        except InvalidRequirement:
            return Outcome(command=shown, ran=False, passed=False, detail=f"{word} is no requirement that pip takes.")
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            told.append(f"{requirement.name} {there} is installed here")
    if missing:
        detail = f"Not installed here: {', '.join(missing)}."
        return Outcome(command=shown, ran=False, passed=False, detail=detail, missing=tuple(missing))
    detail = f"Not run: {'; '.join(told)}." if told else "Not run: all of it is installed here."
    return Outcome(command=shown, ran=False, passed=True, detail=detail)


def _python(block: Block, place: _Place) -> Outcome:
    """Run a Python block; it must also print something itself, whatever libraries print of their own.

    Blanks will do: a poor model ends its answer at once, or writes line breaks alone. Whether it generates is asked by the gate.
    """
    # The script lies beside the folder in which it runs, and Python is told not to import from either: files that the card's commands
    # download there are data, whatever their names.
    script, told = place.scratch / "use_it.py", place.scratch / "told.txt"
    script.write_text(block.code, encoding="utf-8")
    told.write_bytes(b"")
    outcome = _ran([sys.executable, "-I", "-c", _SCRIPT, str(script), str(told)], _words(block), place)
    text = told.read_text(encoding="utf-8", errors="replace")[:_MOST_TEXT]
    if outcome.passed and not text:
        return replace(outcome, passed=False, detail="It ran, but printed nothing.")
    if outcome.passed and not text.strip():
        return replace(outcome, detail=_BLANK)
    return replace(outcome, text=text)


def _ended_by_machine(end: End) -> bool:
    said = RuntimeError(end.output)
    return bool(end.excess) or end.exit_code == -signal.SIGKILL or failures.disk_full(said) or failures.out_of_memory(said)


def _ran(command: Sequence[str], shown: str, place: _Place) -> Outcome:
    began = time.monotonic()
    end = run_confined(command, cwd=place.here, environment=place.environment(), limits=place.limits, logs=place.scratch)
    seconds = round(time.monotonic() - began, 1)
    passed = end.exit_code == 0 and not end.excess
    last = f" Its last words: {end.last_words}" if end.last_words else ""
    detail = "It ran." if passed else end.excess or f"It ended with code {end.exit_code}.{last}"
    return Outcome(
        command=shown,
        ran=True,
        passed=passed,
        detail=detail,
        exit_code=end.exit_code,
        seconds=seconds,
        output=end.output,
        over_limit=not passed and _ended_by_machine(end),
    )
