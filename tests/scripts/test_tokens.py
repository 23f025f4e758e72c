"""Two canaries in the cage: after a whole small run, and failures on purpose, neither token stands anywhere that the run left behind."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from hub.history import Release
from hub.local.process import LocalHub
from hub.store import Store
from modelpress.cli import app

from . import faults
from .conftest import Folder
from .faults import Running, ask, fault

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
READ, WRITE = "hf_CanaryThatReads0123456789", "hf_CanaryThatWrites987654321"
BOTH = {"HF_TOKEN": READ, "MODELPRESS_WRITE_TOKEN": WRITE}
NOTHING = {name: None for name in os.environ if name.startswith(("MODELPRESS_", "HF_"))}
SETTINGS = """
[hub]
endpoint = "{endpoint}"
[press]
recipes = ["bnb-nf4"]
protocol = "stdlib-heldout@512-quick"
[farm]
threads = 1
"""


def told(where: Path) -> list[str]:
    """The files below a folder that hold a canary, or a part of one long enough to be of use."""
    found = []
    for path in where.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != "credentials.json":
            content = path.read_bytes()
            found += [f"{path.relative_to(where)}: {name}" for name, part in parts().items() if part in content]
    return found


def parts() -> dict[str, bytes]:
    return {"the reading one": READ[:20].encode(), "the writing one": WRITE[:20].encode()}


def test_no_token_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = faults.plant(tmp_path / "hub", good=("good/qwen3-chat-1",), bad=("pickle-only",))
    (root / "credentials.json").write_text(json.dumps({"write_token": WRITE, "read_token": READ, "secret": "0" * 64}))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    folder, said = Folder(home, 0), []

    def command(*words: str, code: int | None = 0, env: dict[str, str] | None = None) -> str:
        done = CliRunner().invoke(app, words, env={**NOTHING, **(env or BOTH)})
        assert code in (None, done.exit_code), done.output
        said.append(done.output)
        return done.stdout if "--json" in words else done.output

    with LocalHub(root, port=0, samples=False, faults=True) as hub:
        (home / "modelpress.toml").write_text(SETTINGS.format(endpoint=hub.endpoint))
        run = Running(folder, "run", env=BOTH)
        handed = []
        for process in [run.job(), *run.family()]:
            with suppress(psutil.Error):
                handed.append(process.environ())
        assert any(environment.get("HF_TOKEN") == READ for environment in handed), "what a job may have"
        assert not [name for environment in handed for name, value in environment.items() if WRITE in value]
        run.end()
        assert "done publish" in run.text, run.text
        said.append(run.text)
        (release,) = releases(folder)

        with Store(folder.press / "modelpress.db") as store:
            store.published.retire(release.variant_id, at="2026-11-24T00:00:00+00:00", why="to have something to publish")
        (proposal,) = json.loads(command("publish", "--dry-run", "--json", env={"HF_TOKEN": READ}))["proposals"]
        assert proposal["kind"] == "retired"
        refused = json.loads(command("publish", "--json", env={"HF_TOKEN": READ}))
        assert not refused["cards_renewed"], "what reads does not write"
        for status in (401, 403):
            fault(hub, "status", "/commit/", method="POST", status=status, headers={"X-Error-Message": f"no such token: {WRITE}"}, times=0)
            assert "no such token: [token]" in command("publish", code=30)
            ask(hub, "DELETE")
        fault(hub, "status", "^/api/models", method="GET", status=403, headers={"X-Error-Message": f"not with {READ}"}, times=0)
        traced = folder.run("--debug", "discover", env=BOTH)
        assert "Traceback" in traced.stderr
        assert "not with [token]" in traced.stderr
        said += [traced.stdout, traced.stderr]
        ask(hub, "DELETE")
        for words in (("doctor",), ("doctor", "--json"), ("status",), ("publish", "--dry-run"), ("publish",)):
            command(*words)
    (tmp_path / "said").write_text("\n".join(said))
    assert (tmp_path / "said").stat().st_size > 10_000
    assert told(tmp_path) == []


def releases(folder: Folder) -> list[Release]:
    with Store(folder.press / "modelpress.db") as store:
        return store.releases()
