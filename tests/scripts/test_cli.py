"""The command line: help is fast, errors are one sentence with their own exit code, every command is documented."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from modelpress.session import Session

REPO = Path(__file__).resolve().parents[2]
COMMANDS = (
    "discover",
    "plan",
    "work",
    "publish",
    "verify",
    "audit",
    "retire",
    "site",
    "run",
    "status",
    "jobs",
    "jobs show",
    "retry",
    "cancel",
    "pause",
    "resume",
    "prune",
    "compress",
    "measure",
    "compare",
    "reproduce",
    "replay",
    "methods",
    "recipes",
    "doctor",
    "bench",
    "hub serve",
)


def modelpress(*words: str, cwd: Path, timeout: float = 120, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, in a process of its own."""
    command = [sys.executable, "-m", "modelpress.cli", *words]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MODELPRESS_", "HF_"))}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env={**clean, **(env or {})}, check=False)


def test_the_command_list_is_complete(tmp_path: Path) -> None:
    from modelpress.cli import app, hub_app
    from modelpress.jobs import jobs_app

    groups = {"hub": hub_app, "jobs": jobs_app}
    assert {group.name for group in app.registered_groups} == set(groups)
    names = {f"{name} {command.name}" for name, group in groups.items() for command in group.registered_commands}
    assert names | {command.name for command in app.registered_commands} | {"jobs"} == set(COMMANDS)


def test_every_command_is_documented() -> None:
    text = (REPO / "docs" / "commands.md").read_text(encoding="utf-8")
    missing = [command for command in COMMANDS if f"`modelpress {command}" not in text]
    assert not missing


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_nothing_heavy(command: str) -> None:
    """--help imports neither torch nor the hub client nor the database layer; the time follows from that."""
    probe = (
        "import sys\nfrom typer.testing import CliRunner\nfrom modelpress.cli import app\n"
        f"result = CliRunner().invoke(app, {[*command.split(), '--help']!r})\n"
        "assert result.exit_code == 0, result.output\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'sqlalchemy', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_help_takes_little_more_than_python_itself() -> None:
    """As a ratio against an interpreter that imports the command-line library alone, best of three each, in processor time."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    def best(*command: str) -> float:
        times = []
        for _ in range(3):
            before = used()
            subprocess.run([sys.executable, *command], capture_output=True, check=True)
            times.append(used() - before)
        return min(times)

    ratio = best("-m", "modelpress.cli", "run", "--help") / best("-c", "import typer, rich.console, pydantic")
    print(f"--help / importing typer, rich and pydantic: {ratio:.2f}")
    assert ratio < 4


def test_unknown_command_and_option(tmp_path: Path) -> None:
    assert modelpress("preess", cwd=tmp_path).returncode == 2
    assert modelpress("run", "--quik", cwd=tmp_path).returncode == 2


def test_wrong_setting_is_named_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "modelpress.toml").write_text('[hub]\nendpont = "local"\n')
    done = modelpress("status", cwd=tmp_path)
    assert done.returncode == 3
    assert "endpont" in done.stderr
    assert "endpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "press").exists()


def test_unknown_recipe_is_named_with_its_neighbour(tmp_path: Path) -> None:
    done = modelpress("compress", str(tmp_path), "--recipe", "bnb-nf5", "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 5
    assert "bnb-nf4" in done.stderr
    assert not (tmp_path / "out").exists()
    started = modelpress("compress", str(tmp_path), "--recipe", "openvino", "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert "Did you mean openvino-int4 or openvino-int8?" in started.stderr
    assert len(started.stderr) < 400, "more than a hundred recipes are not listed in a sentence"


def test_compress_of_nothing(tmp_path: Path) -> None:
    done = modelpress("compress", "./nowhere", "--recipe", "bnb-nf4", "--out", "out", cwd=tmp_path)
    assert done.returncode == 8
    assert "./nowhere" in done.stderr


def test_a_second_process_in_the_same_folder_is_told(tmp_path: Path) -> None:
    from hub.settings import load
    from modelpress.session import Session

    settings = load(None)
    settings = settings.model_copy(update={"press": settings.press.model_copy(update={"work_dir": tmp_path / "press"})})
    with Session(settings, exclusive=True):
        done = modelpress("plan", cwd=tmp_path)
    assert done.returncode == 15
    assert str(os.getpid()) in done.stderr


def test_status_of_an_empty_folder(tmp_path: Path) -> None:
    done = modelpress("status", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "modelpress run" in done.stdout
    assert json.loads(modelpress("status", "--json", cwd=tmp_path).stdout)["jobs"] == []


def test_status_of_many_jobs_lists_what_needs_a_look(tmp_path: Path) -> None:
    from hub.domain import Job, ModelRef
    from hub.scheduling import Plan
    from hub.store import Store
    from runners import recipes

    base = ModelRef(repo_id="a/b", sha="0" * 40)
    jobs = tuple(Job(kind="press", base=base, recipe=recipes.load(name)) for name in recipes.names()[:70])
    (tmp_path / "press").mkdir()
    with Store(tmp_path / "press" / "modelpress.db") as store:
        store.record_plan(Plan(jobs=jobs, refusals=(), done=0))
        store.start(jobs[3])
    done = modelpress("status", cwd=tmp_path)
    assert "69 jobs that are done or waiting are not listed; --all lists them" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) < 10
    assert jobs[69].label in modelpress("status", "--all", cwd=tmp_path).stdout


def test_plan_of_an_empty_folder_says_what_comes_first(tmp_path: Path) -> None:
    done = modelpress("plan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "modelpress discover" in done.stdout


def test_site_of_an_empty_folder(tmp_path: Path) -> None:
    done = modelpress("site", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "press" / "site" / "index.html").is_file()


def test_methods_and_recipes_are_listed_by_family(tmp_path: Path) -> None:
    from runners import methods, recipes

    listed = modelpress("methods", cwd=tmp_path)
    assert [name for name in methods.names() if f" {name} " not in listed.stdout] == []
    assert {"quantization", "pruning", "distillation"} <= set(listed.stdout.splitlines())
    assert {entry["name"] for entry in json.loads(modelpress("methods", "--json", cwd=tmp_path).stdout)} == set(methods.names())
    table = modelpress("recipes", cwd=tmp_path).stdout
    assert [name for name in recipes.names() if f" {name} " not in table] == []
    assert max(map(len, table.splitlines())) <= 200
    told = json.loads(modelpress("recipes", "--json", cwd=tmp_path).stdout)
    assert {entry["recipe"]["name"]: entry["family"] for entry in told}["gptq-w4a16-g128"] == "quantization"
    assert len(told) == len(recipes.names())


def test_doctor_names_families(tmp_path: Path) -> None:
    report = json.loads(modelpress("doctor", "--json", cwd=tmp_path).stdout)
    assert {entry["name"]: entry["family"] for entry in report["methods"]}["wanda"] == "pruning"
    assert "  pruning" in modelpress("doctor", cwd=tmp_path).stdout.splitlines()


def test_doctor_knows_all_libraries_by_the_extra_that_brings_them() -> None:
    from modelpress import doctor

    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, names in doctor.LIBRARIES.items():
        brought = {line.split("==")[0].lower() for line in (project["optional-dependencies"][extra] if extra else project["dependencies"])}
        assert not {name.lower() for name in names} - brought, extra
    assert doctor.library("no-such-package", "export")["install"] == "pip install 'modelpress[export]'"


def test_all_recipes_go_with_one_of_your_own(tmp_path: Path) -> None:
    from modelpress import pipeline
    from runners import recipes

    own = tmp_path / "own.toml"
    own.write_bytes((REPO / "runners" / "recipes" / "bnb-nf4.toml").read_bytes())
    selection = pipeline.Selection(recipes=("all", str(own), "bnb-nf4"))
    chosen = pipeline.chosen_recipes(cast("Session", None), selection)
    assert [recipe.name for recipe in chosen] == [*recipes.names(), "own"]


def test_an_artifact_that_cannot_be_inspected_is_no_success(tmp_path: Path) -> None:
    from hub.domain import Failure, ModelRef
    from modelpress import pipeline
    from modelpress.progress import Reporter
    from runners import recipes

    base, artifact = ModelRef(repo_id="a/b", sha="0" * 40), SimpleNamespace(digest="d" * 16)
    recipe = recipes.load("bnb-nf4")
    record = SimpleNamespace(base=base, recipe=recipe, variant_id="v", artifact=artifact, measurements=(1,), verdicts=())
    failure = Failure(job_id="j", error="OutOfMemory", reason="It needs 9 GB.", hint="Use less.", log_tail="", seconds=1.0, retryable=False)
    session = SimpleNamespace(
        store=SimpleNamespace(variants=lambda: [record], bases=list),
        farm=SimpleNamespace(run=lambda job, folder: failure),
        report=Reporter(),
        artifacts=tmp_path,
    )
    refused, not_judged = pipeline.gate(cast("Session", session))
    assert refused == []
    assert [(one.variant, one.error, one.reason) for one in not_judged] == [("v", "OutOfMemory", "It needs 9 GB.")]


def test_the_marks_for_results_are_demanded(tmp_path: Path) -> None:
    (tmp_path / "methods.md").write_text("# Methods\n")
    done = modelpress("methods", "--write", "methods.md", cwd=tmp_path)
    assert done.returncode == 2
    assert "does not hold the two marks" in done.stderr
    assert modelpress("methods", "--write", "none.md", cwd=tmp_path).returncode == 2


def test_doctor_never_shows_the_token(tmp_path: Path) -> None:
    done = modelpress("doctor", cwd=tmp_path, env={"HF_TOKEN": "hf_secret_value"})
    assert done.returncode == 0, done.stderr
    assert "token      set" in done.stdout
    assert "hf_secret_value" not in done.stdout + done.stderr
    report = json.loads(modelpress("doctor", "--json", cwd=tmp_path).stdout)
    assert {"machine", "libraries", "methods", "engines"} <= set(report)


def test_hub_that_is_down(tmp_path: Path) -> None:
    done = modelpress("discover", cwd=tmp_path, env={"MODELPRESS_HUB__ENDPOINT": "http://127.0.0.1:9"})
    assert done.returncode == 21, done.stderr
    assert "127.0.0.1:9" in done.stderr
