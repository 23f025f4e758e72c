"""A checkpoint's chat templates, rendered once as a card's reader will: in a process of its own, under limits that honest ones keep.

A template is a program of strangers. Jinja's sandbox keeps it from files and from Python, but not from running for days or from filling the
memory; and the card tells its reader to render it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hub.errors import JobDied, TimedOut
from runners.confined import Limits, run_confined

# One message renders in milliseconds and takes no memory to speak of. The time is the processor's, from when the renderer is imported: what
# else a busy machine does is not the template's fault. The memory is many times what that import holds (about 65 MB).
SECONDS = 60.0
# In so long even a machine that does much else imports the renderer and gives a template its time; past it nothing is known of that.
WAIT_S = 1800.0
MEMORY_BYTES = 2**30
# The prompts of real templates have a few thousand characters; one of this length alone would keep a model busy for hours.
CHARACTERS = 2**18

_NO_MEMORY, _TOO_LONG = 77, 78
# What a template's own error means is not asked here: some want a system message, some tools, and say so.
_RENDER = """
import json, signal, sys
from transformers.utils.chat_template_utils import render_jinja_template
told = json.load(open(sys.argv[1], encoding="utf-8"))
signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends Python wherever it is
signal.setitimer(signal.ITIMER_PROF, told["seconds"])
for template in told["templates"]:
    try:
        made = render_jinja_template(conversations=[told["messages"]], chat_template=template, add_generation_prompt=True, **told["tokens"])
    except MemoryError:
        sys.exit(told["no_memory"])
    except Exception:
        continue
    if len(made[0][0]) > told["characters"]:
        sys.exit(told["too_long"])
"""
_MESSAGES = [{"role": "user", "content": "What does a list comprehension do?"}]


def fault(folder: Path) -> str:
    """Return in a sentence which limit was broken when a folder's chat templates rendered one user message; empty where none was.

    All templates share `SECONDS` and `MEMORY_BYTES`. Only a broken limit is a fault, not a template that ends with an error; so is one that
    brings Python down. What is not the template's fault is raised: `TimedOut` where the machine was too busy to try it in `WAIT_S`,
    `JobDied` where the process could not do its work.
    """
    config = _json(folder / "tokenizer_config.json")
    templates = [*_files(folder), *_named(config), *_named(_json(folder / "chat_template.json"))]
    if not templates:
        return ""
    tokens = {name: _text(value) for name, value in config.items() if name.endswith("_token")}
    with TemporaryDirectory(prefix="modelpress-template-") as scratch:
        told, allowed = (
            Path(scratch, "told.json"),
            {"characters": CHARACTERS, "no_memory": _NO_MEMORY, "too_long": _TOO_LONG, "seconds": SECONDS},
        )
        told.write_text(json.dumps({"templates": templates, "messages": _MESSAGES, "tokens": tokens, **allowed}), encoding="utf-8")
        place = {"PATH": os.environ.get("PATH", os.defpath), "HOME": scratch, "HF_HOME": scratch, "HF_HUB_OFFLINE": "1"}
        limits = Limits.until(WAIT_S, MEMORY_BYTES)
        end = run_confined(
            [sys.executable, "-I", "-c", _RENDER, str(told)],
            cwd=Path(scratch),
            environment=place,
            limits=limits,
            logs=Path(scratch),
        )
    if end.exit_code == -signal.SIGPROF:
        return f"It took longer than the {SECONDS:g} s of the processor that are allowed, and was ended."
    if end.excess and time.monotonic() > limits.deadline:
        raise TimedOut(f"the chat template could not be tried within {WAIT_S:g} s", hint="Run the command again when less else runs here.")
    if end.excess or end.exit_code == 0:
        return end.excess
    if end.exit_code == _NO_MEMORY:
        return "It asked for more memory than there is."
    if end.exit_code == _TOO_LONG:
        return f"It makes more than {CHARACTERS} characters of it."
    if end.exit_code in (-signal.SIGSEGV, -signal.SIGABRT):
        return f"It ended Python by signal {-end.exit_code}."
    raise JobDied(f"the chat template could not be rendered: code {end.exit_code}. {end.last_words}", hint="Run the command again.")


def _files(folder: Path) -> list[str]:
    paths = [folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))]
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()]


def _named(config: dict[str, Any]) -> list[str]:
    """Return the templates of a config: one text, or a list of such with names."""
    found = config.get("chat_template")
    entries = [entry.get("template") if isinstance(entry, dict) else entry for entry in (found if isinstance(found, list) else [found])]
    return [entry for entry in entries if isinstance(entry, str)]


def _text(token: Any) -> str:
    """Return a special token, which lies there as a text or as an object with its content."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty where there is none: whether it can be read is asked by what loads the tokenizer."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
