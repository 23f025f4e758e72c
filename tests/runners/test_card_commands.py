"""What a card prints is run as a stranger would run it: nothing of ours reaches it, limits hold, and each format's commands work."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hub.client import HubClient
from hub.domain import ModelRef
from hub.errors import GateRefusal
from hub.local.process import LocalHub
from runners import card_commands, press, recipes
from runners.card_commands import Outcome, TrustedCard

NOWHERE = "http://127.0.0.1:9"
TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
SECRETS = {
    "HF_TOKEN": "hf_canary",
    "HUGGING_FACE_HUB_TOKEN": "hf_canary",
    "MODELPRESS_WRITE_TOKEN": "canary",
    "AWS_SECRET_ACCESS_KEY": "canary",
    "HTTPS_PROXY": "http://me:canary@proxy:1",
    "PYTHONPATH": "/canary",
    "HF_HOME": "/canary",
    "HOME": "/canary",
}


def trusted(text: str) -> TrustedCard:
    return TrustedCard(content=text.encode(), expected_sha256=hashlib.sha256(text.encode()).hexdigest())


def card(*blocks: str, endpoint: str = NOWHERE) -> TrustedCard:
    """A card that runs these blocks, each with its language in the first line."""
    said = [f"bash\nexport HF_ENDPOINT={endpoint}", *blocks]
    return trusted("# Tiny\n\n## Use it\n\n" + "\n\n".join(f"```{block}\n```" for block in said) + "\n\n## Limits\n")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Outcome, ...]]:
    def go(made: TrustedCard, *, seconds: float = 120, memory: int = 0, endpoint: str = NOWHERE) -> tuple[Outcome, ...]:
        scratch = tmp_path / "scratch"
        found = card_commands.run(made, endpoint=endpoint, scratch=scratch, timeout_s=seconds, memory_bytes=memory)
        assert not scratch.exists()
        return found

    return go


def test_only_the_card_on_record_is_run() -> None:
    content = b"## Use it\n```python\nprint(1)\n```\n"
    with pytest.raises(GateRefusal, match="not the one that was written from the record"):
        TrustedCard(content=content + b" ", expected_sha256=hashlib.sha256(content).hexdigest())


def test_blocks_are_those_of_the_section_alone() -> None:
    before, after = "## Which one\n```bash\nrm -rf /\n```\n", "## Recipe\n```bash\nmake it\n```\n"
    section = "## Use it\n```bash\n## Limits\na\n\nb\n```\ntext\n```python\nc\n```\n### More\n```bash\nd\n```\n"
    found = card_commands.blocks(trusted(before + section + after))
    assert [(block.language, block.code) for block in found] == [("bash", "## Limits\na\n\nb\n"), ("python", "c\n"), ("bash", "d\n")]


def test_a_strangers_process_has_nothing_of_ours(run: Callable[..., tuple[Outcome, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    look = "import json, os, sys\nprint(json.dumps([dict(os.environ), os.listdir(), sys.path]))"
    look += "\nopen('torch.py', 'w').write('print(1)')"
    second = "import json, sys\nprint(json.dumps([__name__, sys.argv[0], 'json' in dir()]))\nimport colorsys as torch"
    outcomes = run(card(f"python\n{look}", f"python\n{second}"))
    assert card_commands.check(outcomes).passed, outcomes
    environment, listed, path = json.loads(outcomes[1].text)
    assert "canary" not in outcomes[1].text
    assert listed == []
    assert not {"", str(Path.cwd())} & set(path)
    home = Path(environment["HOME"])
    assert Path(environment["HF_HOME"]).is_relative_to(home)
    assert Path(environment["HF_HUB_CACHE"]).is_relative_to(home)
    assert environment["HF_ENDPOINT"] == NOWHERE
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert json.loads(outcomes[2].text)[0] == "__main__"


def test_limits_hold_and_nothing_outlives_them(run: Callable[..., tuple[Outcome, ...]]) -> None:
    mark = f"canary-{os.getpid()}"
    child = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)', '{mark}'])"
    slow = run(card(f"python\n{child}\ntime.sleep(300)"), seconds=3)[-1]
    assert (slow.passed, slow.over_limit, "longer than the 3 s" in slow.detail) == (False, True, True)
    left = run(card(f"python\n{child}\nprint('done')"))[-1]
    assert left.passed
    assert not [one.pid for one in psutil.process_iter(["cmdline"]) if mark in (one.info["cmdline"] or ())]
    large = run(card("python\nimport time\nheld = b'x' * 400_000_000\ntime.sleep(300)"), memory=200_000_000)[-1]
    assert (large.passed, large.over_limit, "of memory" in large.detail) == (False, True, True)
    endless = run(card("python\nwhile True:\n    print('x' * 10_000)"))[-1]
    assert (endless.passed, endless.over_limit, "printed more" in endless.detail) == (False, True, True)
    assert len(endless.output) < 10_000
    full = run(card("python\nimport errno, os\nraise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))"))[-1]
    assert (full.passed, full.over_limit) == (False, True)
    killed = run(card("python\nimport os\nos.kill(os.getpid(), 9)"))[-1]
    assert (killed.passed, killed.over_limit, killed.exit_code) == (False, True, -9)


def test_what_fails_is_named_and_ends_it(run: Callable[..., tuple[Outcome, ...]]) -> None:
    outcomes = run(card("python\nimport os\nraise ValueError(os.getcwd())", "python\nprint('never')"))
    assert [(one.ran, one.passed) for one in outcomes] == [(False, True), (True, False), (False, False)]
    assert (outcomes[1].exit_code, outcomes[1].over_limit) == (1, False)
    assert "ValueError" in outcomes[1].detail
    found = card_commands.check(outcomes)
    assert not found.passed
    assert "`import os` …" in found.detail
    silent = run(card("python\nimport sys\nsys.stdout.write('a library says something')"))
    assert card_commands.check(silent).detail.endswith("It ran, but printed nothing.")
    blank = card_commands.check(run(card("python\nprint('\\n\\n')")))
    assert blank.passed, "a poor model's answer may be an end of text or line breaks alone"
    assert blank.detail.endswith("It ran, and the model's answer is blank.")
    unknown = run(card("bash\nrm -rf ."))
    assert "no command that is tried" in card_commands.check(unknown).detail
    assert not card_commands.check(run(card())).passed, "nothing was run"
    elsewhere = run(trusted("## Use it\n```bash\nhf download a/b\n```\n"))
    assert "its commands would ask https://huggingface.co" in card_commands.check(elsewhere).detail


def test_what_pip_would_install_is_compared(run: Callable[..., tuple[Outcome, ...]]) -> None:
    here = f"psutil=={psutil.__version__}"
    assert run(card(f'bash\npip install "{here}"'))[-1].detail == "Not run: all of it is installed here."
    other = run(card("bash\npip install psutil==0.1"))[-1]
    assert (other.passed, other.ran) == (True, False)
    assert f"psutil {psutil.__version__} is installed here" in other.detail
    absent = card("bash\npip install psutil no-such-package-anywhere==1", "python\nprint(1)")
    assert card_commands.missing(absent) == ("no-such-package-anywhere",)
    outcomes = run(absent)
    assert [one.missing for one in outcomes[1:]] == [("no-such-package-anywhere",), ()]
    assert not outcomes[2].ran


def test_a_command_ends_with_the_process_that_runs_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)"
    made = card(f"python\n{code}")
    program = (
        "import hashlib, sys\nfrom pathlib import Path\nfrom runners import card_commands\n"
        f"made = card_commands.TrustedCard(content={made.content!r}, expected_sha256={made.expected_sha256!r})\n"
        f"card_commands.run(made, endpoint={NOWHERE!r}, scratch=Path({str(tmp_path / 'scratch')!r}), timeout_s=0, memory_bytes=0)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait(lambda: pid.exists() and pid.read_text() != "")
        child = psutil.Process(int(pid.read_text()))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def used(template: str, repo_id: str, *, endpoint: str, chat: bool = False) -> TrustedCard:
    """The card's section as the publisher writes it, for one repository."""
    from jinja2 import Environment, PackageLoader

    jinja = Environment(loader=PackageLoader("leaderboard.templates", ""), trim_blocks=True, lstrip_blocks=True, autoescape=False)
    jinja.filters["code"] = str
    words = {"requirements": "torch transformers", "recipe": {"format": "x"}, "engines": [], "weights": "model.bin"}
    text = jinja.get_template(f"use/{template}.md.j2").render(repo_id=repo_id, endpoint=endpoint, chat=chat, **words)
    return trusted(f"# Tiny\n\n## Use it\n\n{text}\n## Limits\n")


@pytest.mark.parametrize("template", sorted(path.name.removesuffix(".md.j2") for path in (TEMPLATES / "use").iterdir()))
def test_no_template_prints_what_is_not_tried(template: str) -> None:
    found = card_commands.blocks(used(template, "a/b", endpoint=NOWHERE))
    lines = [line for block in found if block.language == "bash" for line in block.code.splitlines()]
    known = ("pip install ", "export HF_ENDPOINT=", "hf download ", "llama-server ")
    assert lines
    assert not [line for line in lines if not line.startswith(known)]
    assert {block.language for block in found} <= {"bash", "python"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub"), port=0) as running:
        yield running


@pytest.mark.integration
@pytest.mark.parametrize(
    ("template", "recipe", "sample"),
    [("transformers", None, "sample-qwen3-chat"), ("gguf", "gguf-q8-0", "sample-llama"), ("low-rank", "svd-80", "sample-llama")],
)
def test_the_cards_commands_work(
    template: str, recipe: str | None, sample: str, hub: LocalHub, samples: Path, tmp_path: Path, run: Callable[..., tuple[Outcome, ...]]
) -> None:
    name = f"modelpress-samples/{sample}"
    if recipe:
        press.press(ModelRef(repo_id=name, sha="0" * 40), samples / sample, recipes.load(recipe), tmp_path / "made")
        client = HubClient(endpoint=hub.endpoint, token=hub.write_token, cache_dir=tmp_path / "cache")
        name = f"{client.account().name}/{sample}-{recipe}"
        client.create(name)
        client.commit(name, {path.name: path for path in (tmp_path / "made").iterdir()}, message="made", parent=None)
    outcomes = run(used(template, name, endpoint=hub.endpoint, chat="chat" in sample), endpoint=hub.endpoint, seconds=500, memory=4 * 2**30)
    assert card_commands.check(outcomes).passed, outcomes
    assert all(one.ran for one in outcomes if "Python" in one.command or "hf download" in one.command)
    wrote = next(one.text for one in outcomes if "Python" in one.command)
    assert wrote.strip()
    assert "list comprehension" not in wrote, "the prompt is not what the model wrote"
    if template == "gguf":  # the quickest
        gone = run(used(template, f"{name}-gone", endpoint=hub.endpoint), endpoint=hub.endpoint)
        assert "repository not found" in card_commands.check(gone).detail
