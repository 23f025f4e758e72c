"""Tasks through lm-eval: the same prompts and numbers as its own, intervals that cover, and clear refusals."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import re
import runpy
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub.errors import BadCheckpoint, BadDocument, Unavailable, UnfitModel, UnknownName, Unstable
from hub.local.process import LocalHub
from hub.protocol import Tasks
from runners import engines, harness, harness_models, intervals, tasks, work
from runners.harness import Harnessed

LOCAL = ("lambada_openai", "arc_easy", "piqa", "boolq")
TEN = Tasks(names=LOCAL, limit=10, shots=0, seed=1234)
AGREEMENT = Path(__file__).resolve().parents[1] / "benchmarks" / "agreement.py"


@pytest.fixture(scope="module")
def data(shared: Path) -> Path:
    return shared / "data"


@pytest.fixture(scope="module")
def llama(samples: Path) -> Path:
    return samples / "sample-llama"


@pytest.fixture(scope="module")
def loaded(llama: Path) -> Any:
    return engines.load("transformers").load(llama, dtype="float32")


@pytest.fixture(scope="module")
def pages(data: Path) -> list[str]:
    return tasks.pages((data / "wikitext-2-raw" / tasks.file_name("wikitext2")).read_text("utf-8"))


@pytest.fixture(scope="module")
def ran(loaded: Any, llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Harnessed, Path]:
    """Ten documents of each task and two of WikiText-2, and where their samples lie."""
    folder = tmp_path_factory.mktemp("samples")
    found = harness.run(loaded, llama, TEN, data, folder)
    other = harness.run(loaded, llama, replace(TEN, names=("wikitext2",), limit=2), data, folder)
    return Harnessed(results=found.results + other.results, scores=found.scores + other.scores, notes=found.notes + other.notes), folder


@pytest.mark.shared
def test_wikitext_is_the_original_file_by_document(pages: list[str]) -> None:
    assert len(pages) == 62
    assert sum(len(page.encode()) for page in pages) == 1_290_527, "wiki.test.raw has 1,290,590 bytes, 62 line ends and one space more"
    assert sum(len(page.split()) for page in pages) == 241_211, "the words that the makers of WikiText-2 count"
    assert all(page.startswith(" = ") for page in pages)
    assert pages[0].startswith(" = Robert Boulter = \n \n Robert Boulter is")


def test_rows_that_were_joined_otherwise_are_refused() -> None:
    assert tasks.pages(" = A = \n\n\n\n\n text \n") == [" = A = \n \n text \n"]
    with pytest.raises(BadDocument, match="character 8"):
        tasks.pages(" = A = \n text \n")


@pytest.mark.integration
@pytest.mark.shared
def test_prompts_and_targets_are_lm_evals_own(data: Path, pages: list[str]) -> None:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    assert sorted(tasks.OWN) == tasks.names()
    given = harness._load(replace(TEN, names=tuple(tasks.OWN)), data)
    for name, place in tasks.OWN.items():
        config = load_yaml(Path(sys.modules["lm_eval.tasks"].__file__ or "").parent / place)
        config["custom_dataset"] = lambda name=name, **_: _theirs(name, data, pages)
        [theirs] = TaskManager(include_defaults=False).load([config])["tasks"].values()
        mine, wanted = (_requests(task) for task in (given[name], theirs))
        assert len(mine) >= 30, name
        assert mine == wanted, name
        assert {one: function.__name__ for one, function in given[name].aggregation().items()} == {
            one: function.__name__ for one, function in theirs.aggregation().items()
        }
        assert given[name].VERSION == theirs.VERSION


def _theirs(name: str, data: Path, pages: list[str]) -> dict[str, Any]:
    """Return documents in the form of the dataset that lm-eval itself fetches, under all splits."""
    from datasets import Dataset

    if name == "wikitext2":
        rows: list[dict[str, Any]] = [{"page": page} for page in pages[:30]]
    else:
        rows = [_their_form(name, json.loads(line)) for line in (data / "tasks" / f"{name}.jsonl").read_text("utf-8").split("\n")[:30]]
    return dict.fromkeys(("train", "validation", "test"), Dataset.from_list(rows))


def _their_form(name: str, row: dict[str, Any]) -> dict[str, Any]:
    if name == "lambada_openai":
        return {"text": f"{row['context']} {row['continuation']}"}
    if name == "boolq":
        passage, question = re.fullmatch(r"Passage: (.*)\nQuestion: (.*)\?", row["query"], re.DOTALL).groups()  # type: ignore[union-attr]
        return {"passage": passage, "question": question, "label": row["gold"]}
    asked = row["query"].removeprefix("Question: ")
    if name == "piqa":
        return {"goal": asked.removesuffix("\n"), "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}
    labels = ["A", "B", "C", "D", "E"][: len(row["choices"])]
    return {"question": asked, "choices": {"text": row["choices"], "label": labels}, "answerKey": labels[row["gold"]]}


def _requests(task: Any) -> list[Any]:
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(limit=30)
    return [(one.request_type, one.args, str(task.doc_to_target(one.doc))) for one in task.instances]


@pytest.mark.integration
@pytest.mark.shared
def test_numbers_are_those_of_lm_eval(
    ran: tuple[Harnessed, Path], loaded: Any, data: Path, pages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # its bootstrap, two draws of which suffice for errors of means, forks
    given = harness._load(replace(TEN, names=(*LOCAL, "wikitext2")), data)
    plain = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1)
    found = {result.task: result.estimates for result in ran[0].results}
    for names, limit in ((LOCAL, 10), (("wikitext2",), 2)):
        manager = TaskManager(include_defaults=False)
        raw = lm_eval.simple_evaluate(plain, tasks=[given[name] for name in names], limit=limit, task_manager=manager, bootstrap_iters=2)
        assert raw is not None
        for name in names:
            ours = {metric: estimate.value for metric, estimate in found[name].items()}
            assert ours == pytest.approx({metric: raw["results"][name][f"{metric},none"] for metric in ours}, rel=1e-5)
            for estimate in found[name].values():
                assert math.isfinite(estimate.low)
                assert estimate.low <= estimate.value <= estimate.high
                assert estimate.samples == limit
            if "acc" in ours:
                error = raw["results"][name]["acc_stderr,none"]
                assert found[name]["acc"].interval.endswith(f"lm-eval's standard error {error:.4g}")
        if names == ("wikitext2",):
            assert raw["results"]["wikitext2"]["word_perplexity_stderr,none"] == "N/A", "which is why the interval is ours"
            lines = raw["samples"]["wikitext2"]
            nats, words = -sum(line["resps"][0][0] for line in lines), sum(len(re.split(r"\s+", page)) for page in pages[:2])
            assert found["wikitext2"]["word_perplexity"].value == pytest.approx(math.exp(nats / words), rel=1e-5)


@pytest.mark.integration
@pytest.mark.shared
def test_what_is_kept_lets_two_models_be_compared_by_document(ran: tuple[Harnessed, Path], loaded: Any, llama: Path, data: Path) -> None:
    import gzip

    found, folder = ran
    scores = {one.source: one for one in found.scores}
    assert set(scores) == {*LOCAL, "wikitext2"}
    for result in found.results:
        names = {"acc": "accuracy", "acc_norm": "normalized_accuracy"}
        for metric in names.keys() & result.estimates.keys():
            values = scores[result.task].values[names[metric]]
            assert set(values) <= {0.0, 1.0}
            assert sum(values) / len(values) == pytest.approx(result.estimates[metric].value)
    wiki = scores["wikitext2"]
    total = sum(value * size for value, size in zip(wiki.values["word_perplexity"], wiki.sizes["words"], strict=True))
    by_name = {result.task: result for result in found.results}
    assert math.exp(total / sum(wiki.sizes["words"])) == pytest.approx(by_name["wikitext2"].estimates["word_perplexity"].value)
    rows = [json.loads(line) for line in gzip.decompress((folder / "piqa.jsonl.gz").read_bytes()).splitlines()]
    assert [row["doc_id"] for row in rows] == list(range(10))
    assert rows[0]["arguments"][0][0].startswith("Question: How do I ready a guinea pig cage")
    assert len(rows[0]["resps"]) == 2
    again = harness.run(loaded, llama, replace(TEN, names=("piqa",)), data, folder / "again")
    assert again.scores == (scores["piqa"],)
    assert (folder / "again" / "piqa.jsonl.gz").read_bytes() == (folder / "piqa.jsonl.gz").read_bytes()
    fewer = harness.run(loaded, llama, replace(TEN, names=("piqa",), limit=9), data, None)
    assert fewer.scores[0].fingerprint != scores["piqa"].fingerprint, "other documents make no pairs"


@pytest.mark.integration
@pytest.mark.shared
def test_a_run_says_what_it_did_and_nothing_else(
    ran: tuple[Harnessed, Path], loaded: Any, llama: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("lm_eval")
    before = log.level, list(log.handlers), log.propagate
    harness.run(loaded, llama, replace(TEN, names=("piqa",), limit=2, shots=2), data, None)
    assert capfd.readouterr().out == ""
    assert (log.level, list(log.handlers), log.propagate) == before
    version = next(result.version for result in ran[0].results if result.task == "arc_easy")
    data_said, run_said = r"arc_easy\.jsonl \(SHA-256 d2d12e59[0-9a-f]{56}\)", "10 of 2376 documents, 0 shots, seed 1234"
    assert re.fullmatch(rf"lm-eval 0\.4\.\d+, definition 1\.0, {data_said}, {run_said}", version)
    cut = re.compile(r"boolq: [1-9] of 10 documents are longer than 512 tokens and were cut from the left\.")
    assert any(cut.fullmatch(note) for note in ran[0].notes)


@pytest.mark.integration
@pytest.mark.shared
def test_the_adapter_on_logits_and_hflm_say_the_same(loaded: Any, data: Path) -> None:
    given = harness._load(replace(TEN, names=(*LOCAL, "wikitext2")), data)
    mine, theirs = harness_models.through_logits(loaded), harness_models.adapt(loaded)
    for name, task in given.items():
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=1 if name == "wikitext2" else 6)
        kind = task.instances[0].request_type
        answers, wanted = (getattr(model, kind)(task.instances) for model in (mine, theirs))
        if kind == "loglikelihood_rolling":
            assert answers == pytest.approx(wanted, rel=1e-6)
        else:
            assert [value for value, _ in answers] == pytest.approx([value for value, _ in wanted], rel=1e-5)
            assert [greedy for _, greedy in answers] == [greedy for _, greedy in wanted]
    assert mine.truncated == theirs.truncated != set()
    asked = [_Asked(("import os\n\ndef read(path", {"until": ["\n\n"], "max_gen_toks": 12})), _Asked(("class A", {"max_gen_toks": 5}))]
    assert mine.generate_until(asked) == theirs.generate_until(asked)
    assert any(mine.generate_until(asked))


@pytest.mark.integration
def test_a_task_that_lets_the_model_write_is_run_and_what_was_cut_is_said(
    loaded: Any, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

    def given(tokens: int) -> dict[str, Any]:
        documents = Dataset.from_list([{"asked": "import os\n" * times, "wanted": "import os"} for times in (1, 400, 2)])
        config = {
            "task": "writes",
            "custom_dataset": lambda **_: {"test": documents},
            "output_type": "generate_until",
            "test_split": "test",
            "doc_to_text": "{{asked}}",
            "doc_to_target": "{{wanted}}",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": tokens},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1},
        }
        return dict(TaskManager(include_defaults=False).load([config])["tasks"])

    section = Tasks(names=("writes",), limit=0, shots=0, seed=1)
    monkeypatch.setattr(harness, "_load", lambda *_: given(8))
    as_hflm = harness.run(loaded, llama, section, None, None)
    assert "writes: 1 of 3 documents are longer than 512 tokens and were cut from the left." in as_hflm.notes
    assert as_hflm.scores[0].samples == 3
    with monkeypatch.context() as patch:
        patch.setattr(harness_models, "adapt", harness_models.through_logits)
        assert harness.run(loaded, llama, section, None, None) == as_hflm
    monkeypatch.setattr(harness, "_load", lambda *_: given(512))
    with pytest.raises(UnfitModel, match="The task writes 512 tokens"):
        harness.run(loaded, llama, section, None, None)


class _Asked:
    """A request as lm-eval hands it over."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args


@pytest.mark.integration
@pytest.mark.shared
@pytest.mark.parametrize("name", ["sample-llama", "sample-qwen3-chat", "sample-gpt2"])
def test_perplexity_agrees_with_lm_eval_and_float64(name: str, samples: Path, data: Path) -> None:
    compare: Callable[..., Any] = runpy.run_path(str(AGREEMENT))["compare"]
    found = compare(samples / name, (data / "wikitext-2-raw" / tasks.file_name("wikitext2")).read_text("utf-8"), 3, "float32")
    assert found.ours == pytest.approx(found.lm_eval, rel=1e-3)
    assert found.ours == pytest.approx(found.float64, rel=1e-6)


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (10, 10), (3, 10), (500, 1838), (1, 2)])
def test_wilsons_interval_is_scipys(successes: int, count: int) -> None:
    from scipy.stats import binomtest

    wanted = binomtest(successes, count).proportion_ci(method="wilson")
    assert harness.wilson(successes, count) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_the_interval_of_a_ratio_covers_what_it_says() -> None:
    """62 documents of very unequal length, as WikiText-2's, whose loss per word differs from document to document."""
    chance, rate, runs, covered = random.Random(1), 3.0, 2000, 0
    for _ in range(runs):
        words = [math.exp(chance.gauss(8, 0.8)) for _ in range(62)]
        nats = [size * (rate + chance.gauss(0, 0.3)) for size in words]
        found = intervals.ratio(nats, words, of="documents")
        covered += found.low <= rate <= found.high
    assert 0.92 <= covered / runs <= 0.97


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[str], Path]:
    def write(content: str) -> Path:
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "arc_easy.jsonl").write_text(content, "utf-8")
        return tmp_path

    return write


GOOD = json.dumps({"query": "Question: Which?", "choices": ["this", "that"], "gold": 0})


@pytest.mark.integration
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no documents"),
        ("\n\n", "holds no documents"),
        (f"{GOOD}\n{{", "Line 2 .* is no JSON"),
        ("[]", "no JSON object"),
        ('{"query": "Question: Which?"}', "its fields are neither"),
        (GOOD.replace("0", "2"), "gold is 2, of 2 choices"),
        (GOOD.replace('"this", ', ""), "choices are not two texts"),
    ],
)
def test_documents_that_are_none_are_refused(broken: Callable[[str], Path], content: str, message: str) -> None:
    with pytest.raises(BadDocument, match=message):
        harness._load(replace(TEN, names=("arc_easy",)), broken(content))


@pytest.mark.integration
def test_an_answer_longer_than_the_model_is_refused(broken: Callable[[str], Path], loaded: Any, llama: Path) -> None:
    place = broken(f"{GOOD}\n{GOOD.replace('that', 'that and ' * 600)}")
    with pytest.raises(UnfitModel, match="the model takes 512"):
        harness.run(loaded, llama, replace(TEN, names=("arc_easy",)), place, None)
    with pytest.raises(UnfitModel, match="an interval needs two"):
        harness.run(loaded, llama, replace(TEN, names=("arc_easy",), limit=1), place, None)


@pytest.mark.integration
def test_a_model_that_gives_no_numbers_is_a_bad_checkpoint(broken: Callable[[str], Path], llama: Path) -> None:
    import torch

    ruined = engines.load("transformers").load(llama, dtype="float32")
    with torch.no_grad():
        ruined.model.model.norm.weight.fill_(math.nan)  # type: ignore[attr-defined]
    place = broken(f"{GOOD}\n{GOOD}")
    with pytest.raises(Unstable, match="no finite log-likelihoods"):
        harness.run(ruined, llama, replace(TEN, names=("arc_easy",)), place, None)


def test_a_model_that_writes_nothing_is_a_bad_checkpoint() -> None:
    with pytest.raises(BadCheckpoint, match="writes nothing"):
        harness._check("gsm8k", [{"resps": [[""]]}, {"resps": [["\n"]]}])


@pytest.mark.integration
def test_no_documents_is_said_with_what_helps() -> None:
    with work.offline(), pytest.raises(Unavailable, match="without the network") as caught:
        harness._load(replace(TEN, names=("arc_easy",)), None)
    assert "arc_easy.jsonl with --data" in caught.value.hint
    with pytest.raises(UnknownName, match="arc_esay") as unknown:
        harness._load(replace(TEN, names=("arc_esay",)), None)
    assert "Did you mean arc_easy?" in unknown.value.hint


HUB = """
import sys
from pathlib import Path
from hub.codec import to_json
from hub.protocol import Tasks
from runners import engines, harness
folder = Path(sys.argv[1])
loaded = engines.load("transformers").load(folder, dtype="float32")
found = harness.run(loaded, folder, Tasks(names=("lambada_openai",), limit=4, shots=0, seed=1234), None, None)
sys.stderr.flush()
print(to_json([found.scores[0].values, found.results[0].version]))
"""


@pytest.mark.integration
@pytest.mark.shared
def test_without_local_documents_they_come_from_the_hub(loaded: Any, llama: Path, data: Path, tmp_path: Path) -> None:
    lines = (data / "tasks" / "lambada_openai.jsonl").read_text("utf-8").split("\n")[:8]
    rows = "".join(json.dumps(_their_form("lambada_openai", json.loads(line))) + "\n" for line in lines)
    with lm_evals_dataset(tmp_path, rows.encode()) as endpoint:
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", HUB, str(llama)], env=os.environ | settings, capture_output=True, text=True, timeout=300, check=False
        )
    assert done.returncode == 0, done.stderr[-2000:]
    values, version = json.loads(done.stdout)
    assert "EleutherAI/lambada_openai as lm-eval fetches it, 4 of 8 documents" in version
    local = harness.run(loaded, llama, replace(TEN, names=("lambada_openai",), limit=4), data, None)
    for metric, there in local.scores[0].values.items():
        assert values[metric] == pytest.approx(there, rel=1e-5)


@contextlib.contextmanager
def lm_evals_dataset(folder: Path, rows: bytes) -> Iterator[str]:
    """Run an embedded hub that has the dataset which lm-eval's lambada_openai names; its one account owns no such name, so it is moved."""
    from huggingface_hub import HfApi

    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: test, path: data/test.jsonl}\n---\n"
    with LocalHub(folder / "hub", port=0, samples=False) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
        api.create_repo("modelpress/lambada_openai", repo_type="dataset")
        for path, content in (("data/test.jsonl", rows), ("README.md", card)):
            api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="modelpress/lambada_openai", repo_type="dataset")
        with contextlib.closing(sqlite3.connect(folder / "hub" / "hub.db")) as database, database:
            database.execute("UPDATE repos SET owner = 'EleutherAI'")
        yield hub.endpoint
