"""Plain transformers loads a model from the hub, in a process that knows nothing but HF_ENDPOINT."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hub.local.process import LocalHub

pytestmark = pytest.mark.integration

CODE = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("def read(path):", return_tensors="pt")["input_ids"]
out = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
assert out.shape[1] > ids.shape[1]
print(sum(p.numel() for p in model.parameters()), tokenizer.decode(out[0]).replace("\\n", " "))
"""


def load(hub: LocalHub, repo_id: str, home: Path) -> str:
    pytest.importorskip("transformers")
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": hub.read_token}
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", CODE, repo_id], env=environment, cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_sample_model(hub: LocalHub, samples: Path, tmp_path: Path) -> None:
    there = sorted(folder.name for folder in samples.glob("*") if (folder / "README.md").exists())
    if not there:
        pytest.skip("no sample models in this checkout")
    assert "def read" in load(hub, f"modelpress-samples/{there[0]}", tmp_path)


@pytest.mark.shared
def test_an_uploaded_real_model(api: Any, hub: LocalHub, repo: str, shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "stories260K"
    if not source.is_dir():
        pytest.skip("no stories260K among the real models")
    api.upload_folder(repo_id=repo, folder_path=source)
    assert load(hub, repo, tmp_path)
