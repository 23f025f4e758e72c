"""`modelpress verify REPO` on models that nobody here wrote, pushed by hand to the embedded hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hub.errors import GateRefusal, HubNotFound, PolicyRefusal
from hub.settings import FarmSettings, HubSettings, PressSettings, Settings
from modelpress.session import Session
from modelpress.verifying import CONFIG, Report, look

from .conftest import Folder

pytestmark = [pytest.mark.integration, pytest.mark.shared]
NAMES = (
    "loads generates same_tokens chat_template finite packed size config files no_code no_links like_base checksums no_secrets measured "
    "kl_divergence perplexity_ratio same_top_token"
)


def states(report: Report) -> dict[str, str]:
    return {finding.name: finding.state for finding in report.findings}


def test_models_of_others_are_judged_by_what_they_say_of_themselves(folder: Folder, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        press=PressSettings(work_dir=folder.press), hub=HubSettings(port=folder.port), farm=FarmSettings(threads=1, workers=1)
    )
    with Session(settings, exclusive=True) as session:
        client, local = session.client, session.local_hub
        assert local
        client = type(client)(endpoint=session.endpoint, token=local.write_token, cache_dir=folder.path / "cache")
        owner = client.account().name

        def push(name: str, source: str, **more: bytes) -> str:
            files = {path.name: path for path in sorted((shared / "models" / source).iterdir()) if path.is_file()}
            changed = {key.replace("__", "."): content for key, content in more.items()}
            client.create(f"{owner}/{name}")
            client.commit(f"{owner}/{name}", {**files, **changed}, message="by hand", parent=None)
            return f"{owner}/{name}"

        for name in ("stories260K", "tiny-rwkv-4v0-660K"):
            report = look(session, push(name, name), None)
            found = states(report)
            assert report.passed, report.findings
            assert (report.promised_by, " ".join(list(found)[: len(NAMES.split())])) == (CONFIG, NAMES)
            assert {found[one] for one in ("loads", "generates", "finite", "size", "config", "no_code", "no_secrets")} == {"passed"}
            assert {found[one] for one in ("same_tokens", "measured", "kl_divergence", "like_base", "commands")} == {"not checked"}

        card = b"---\nbase_model: someone/else\nbase_model_relation: quantized\ntags: [4-bit, gptq]\n---\n# stories42M GPTQ\n"
        config = json.loads((shared / "models" / "stories260K" / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq"}
        lying = push("stories42M-GPTQ", "stories260K", README__md=card, config__json=json.dumps(config).encode(), model__py=b"import os")
        found = states(look(session, lying, None))
        failed = {name for name, state in found.items() if state == "failed"}
        assert {"packed", "config", "no_code", "card_bits", "card_parameters"} <= failed, found
        # Files for llama.cpp that lie as others lay them: two in one repository, one of which is none.
        client.create(f"{owner}/two-GGUF")
        client.commit(f"{owner}/two-GGUF", {"a.gguf": b"GGUF", "b.gguf": b"GGUF"}, message="by hand", parent=None)
        report = look(session, f"{owner}/two-GGUF", None)
        assert report.passed, report.findings
        assert "there are 2 (a.gguf, b.gguf)" in next(one.detail for one in report.findings if one.name == "loads")
        assert states(report)["loads"] == "not checked"
        with pytest.raises(HubNotFound):
            look(session, f"{owner}/nothing", None)
        narrow = settings.model_copy(update={"policy": settings.policy.model_copy(update={"max_bytes": 1e5})})
        with monkeypatch.context() as limited:
            limited.setattr(session, "settings", narrow)
            limited.setattr(type(session.client), "download", None)
            with pytest.raises(PolicyRefusal, match=r"its \d+ files have .* bytes, and policy\.max_bytes allows 1e\+05$"):
                look(session, lying, None)
        sha = client.head(lying)

    done = folder.run("verify", lying, str(sha))
    assert done.returncode == GateRefusal.exit_code, done.stderr
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())
    assert rows["no_code"].startswith("failed")
    assert rows["measured"].startswith("not checked")
    assert f"{sum(state == 'failed' for state in found.values())} failed" in done.stdout
    assert "does not pass: " in done.stderr
