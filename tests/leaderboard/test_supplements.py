"""What lies beside a card: the same bytes for the same record, true to it, readable by those for whom it is made."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from hub.codec import from_json
from hub.domain import ArtifactFile, Calibration, Environment, Measurement, Recipe, Step, StepRecord
from hub.errors import PolicyRefusal
from hub.history import BaseRecord, VariantRecord
from hub.protocol import Protocol, Tasks, Text
from leaderboard import card_chart, cards, charts, eval_results
from leaderboard.cards import Extras
from leaderboard.supplements import is_supplement, supplements

T = TypeVar("T")
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</title><script>alert(1)</script>\"'&amp;<!--]]>\u202e\x07\n---\n=cmd()"
FURTHER = (Protocol(name="tasks", tasks=Tasks(names=("gsm8k", "piqa"), limit=0, shots=5, seed=1234)),)


def numbered(make: SimpleNamespace, name: str, place: int) -> Recipe:
    """One of several recipes that make different variants."""
    return make.recipe(f"{name}-{place}", steps=(Step(method="awq", scheme="W4A16", params={"seed": place}),))


def variants(make: SimpleNamespace) -> list[VariantRecord]:
    shown = Calibration(text="stdlib-calibration", samples=64, sequence_length=512)
    told = (StepRecord(method="gptq", text_sha256="1" * 64, samples_sha256="2" * 64),)
    first = make.variant(make.recipe(steps=(Step(method="gptq", scheme="W4A16", calibration=shown),)), steps=told)
    others = [make.variant(numbered(make, "awq", place), kl=0.02, ratio=1 + place / 50, size=3_000_000) for place in range(4)]
    return [make.judged(record) for record in (first, *others)]


def made(make: SimpleNamespace, record: VariantRecord | None = None, base: BaseRecord | None = None, **extras: Any) -> dict[str, bytes]:
    found = variants(make)
    record = record or found[0]
    return supplements(
        record,
        base or make.base(),
        found,
        repo_id="modelpress/x",
        hub_url=cards.PUBLIC_HUB,
        extras=Extras(**{"further": FURTHER, **extras}),
    )


def read(kind: type[T], value: object) -> T:
    """Read a part of a document as the type that it was written from; unknown keys are refused."""
    return from_json(kind, json.dumps(value))


def with_task(make: SimpleNamespace, record: VariantRecord, task: str, protocol: str = "tasks") -> VariantRecord:
    one = replace(make.measured("accuracy", 0.412, 0.03, protocol=protocol), conditions={"task": task}, samples=1319)
    return replace(record, measurements=(*record.measurements, one))


def test_the_same_record_gives_the_same_bytes_in_another_process_and_order(make: SimpleNamespace) -> None:
    record = with_task(make, variants(make)[0], "gsm8k")
    files = made(make, record)
    assert set(files) == {"chart.svg", "bench.json", "sbom.cdx.json", ".eval_results/gsm8k.yaml"}
    assert all(is_supplement(path) for path in files)
    assert made(make, record) == files
    assert made(make, replace(record, measurements=record.measurements[::-1])) == files
    assert not [path for path, content in files.items() if b"\r" in content or not content.endswith(b"\n")]


@pytest.mark.parametrize(
    "path",
    [
        *("chart.SVG", "a/chart.svg", "bench.json ", "sbom.json", "README.md", ""),
        *(f".eval_results/{name}" for name in ("a.py", "../x.yaml", ".x.yaml", "a/b.yaml", "a.yaml\n", "A.yaml")),
    ],
)
def test_nothing_else_is_a_supplement(path: str) -> None:
    assert not is_supplement(path)


def test_names_are_told_without_a_heavy_import() -> None:
    program = (
        "import sys, leaderboard.supplements; print([n for n in ('leaderboard.cards', 'jinja2', 'torch', 'yaml') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# The chart


def test_the_chart_stands_alone_with_its_words_intervals_and_both_schemes(make: SimpleNamespace) -> None:
    content = made(make)["chart.svg"].decode()
    svg = ET.fromstring(content)
    assert svg.get("role") == "img"
    named = {element.get("id"): element.text or "" for element in svg if element.get("id")}
    assert (svg.get("aria-labelledby") or "").split() == list(named)
    assert "gptq-w4a16-g128 among the variants of tiny-llama" in named["title"]
    assert "Protocol stdlib-heldout@512; bars are 95 % intervals." in named["desc"]
    assert "gptq-w4a16-g128: 2.71 MB, perplexity +2.1 ± 0.4 %" in named["desc"]
    labels = [element.text for element in svg.iter(f"{SVG}text") if "label" in (element.get("class") or "")]
    assert sorted(filter(None, labels)) == ["awq-0", "awq-1", "awq-2", "awq-3", "base", "gptq-w4a16-g128 (this one)"]
    assert len([mark for mark in svg.iter(f"{SVG}g") if mark.find(f"{SVG}path[@class='err']") is not None]) == 5
    assert "prefers-color-scheme: dark" in content
    backdrop = next(svg.iter(f"{SVG}rect"))
    assert [backdrop.get(key) for key in ("x", "y", "width", "height")] == [*(svg.get("viewBox") or "").split()], "opaque on any page"
    assert not re.search(r"(?:href|src|url\(|@import|<script|on\w+=)", content), "nothing is fetched or run"


def test_labels_of_a_crowd_do_not_collide(make: SimpleNamespace) -> None:
    crowd = [
        make.judged(
            make.variant(make.recipe(f"gptq-w4a16-g{place}", format=f"f{place}"), ratio=1.02 + place / 2000, size=2_700_000 + place * 9000)
        )
        for place in range(11)
    ]
    svg = ET.fromstring(card_chart.draw(crowd[5], make.base(), crowd))
    boxes = []
    for text in svg.iter(f"{SVG}text"):
        if "label" in (text.get("class") or ""):
            width, x, y = len(text.text or "") * charts.GLYPH, float(text.get("x") or 0), float(text.get("y") or 0)
            left = x - {"start": 0, "middle": width / 2, "end": width}[text.get("text-anchor") or "start"]
            boxes.append((left, y - 12, left + width, y + 3))
    assert len(boxes) >= 10
    assert not [(a, b) for a, b in combinations(boxes, 2) if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]]
    low, _, width, _ = map(float, (svg.get("viewBox") or "").split())
    assert all(box[0] >= low and box[2] <= low + width for box in boxes)


def test_a_variant_without_quality_or_size_has_no_chart_and_its_card_shows_none(make: SimpleNamespace) -> None:
    record = variants(make)[0]
    for lacking in ("perplexity_ratio", "disk_size"):
        bare = replace(record, measurements=tuple(one for one in record.measurements if one.metric != lacking))
        assert "chart.svg" not in made(make, bare)
        assert "chart.svg" not in cards.render(bare, make.base(), (), repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB)
    assert "(chart.svg)" in cards.render(record, make.base(), (), repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB)


# bench.json


def test_bench_holds_every_number_with_all_that_makes_it_one(make: SimpleNamespace) -> None:
    record = with_task(make, variants(make)[0], "piqa")
    gpu = replace(make.machine, hardware="Example GPU")
    record = replace(record, environments={"tasks": gpu}, layers=make.layers(**{"1": 0.2, "0": 0.1}))
    base = make.base()
    protocol = Protocol(name=make.protocol, text=Text(name="stdlib-heldout", sha256="e" * 64))
    bench = json.loads(made(make, record, base, protocol=protocol)["bench.json"])
    assert bench["schema"] == "modelpress-bench/1"
    assert bench["base"] == {"repo_id": "sample-org/tiny-llama", "sha": make.ref.sha}
    assert record.artifact is not None
    assert (bench["variant"]["artifact"], bench["variant"]["bytes"]) == (record.artifact.digest, record.artifact.bytes)
    assert {check["name"] for check in bench["checks"]} >= {"loads", "kl_divergence"}
    assert [layer["layer"] for layer in bench["layers"]] == ["model.layers.0", "model.layers.1"]
    assert {name: read(Protocol, one) for name, one in bench["protocols"].items()} == {protocol.name: protocol, "tasks": FURTHER[0]}
    environments = {name: read(Environment, one) for name, one in bench["environments"].items()}
    for measured, key in ((record, "results"), (base, "base_results")):
        where = [environments[one.pop("environment")].hardware for one in bench[key]]
        found = [read(Measurement, one) for one in bench[key]]
        assert sorted(found, key=repr) == sorted(measured.measurements, key=repr)
        assert [place == "Example GPU" for place in where] == [one.protocol == "tasks" for one in found]


def test_a_number_that_is_not_finite_is_null_and_breaks_nothing(make: SimpleNamespace) -> None:
    record = variants(make)[0]
    overflown = replace(make.measured("bits_per_weight", float("inf")), metric="bits_per_byte", ci_low=0.0, ci_high=float("nan"))
    files = made(make, replace(record, measurements=(*record.measurements, overflown)))
    found = next(one for one in json.loads(files["bench.json"])["results"] if one["metric"] == "bits_per_byte")
    assert (found["value"], found["ci_low"], found["ci_high"]) == (None, 0.0, None)
    metrics = json.loads(files["sbom.cdx.json"])["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert not [metric for metric in metrics if metric["type"].startswith("bits_per_byte")]


# The bill of materials


def test_the_bill_of_materials_is_cyclonedx_and_names_base_files_texts_and_libraries(make: SimpleNamespace) -> None:
    record = variants(make)[0]
    bom = json.loads(made(make, record)["sbom.cdx.json"])
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", bom["serialNumber"])
    assert set(bom) <= {"$schema", "bomFormat", "specVersion", "version", "serialNumber", "metadata", "components", "dependencies"}
    model = bom["metadata"]["component"]
    ancestor = model["pedigree"]["ancestors"][0]
    assert (ancestor["group"], ancestor["name"], ancestor["version"]) == ("sample-org", "tiny-llama", make.ref.sha)
    assert ancestor["purl"] == f"pkg:huggingface/sample-org/tiny-llama@{make.ref.sha}"
    assert model["licenses"] == ancestor["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    every = [model, ancestor, *bom["components"]]
    assert len({one["bom-ref"] for one in every}) == len(every)
    assert {one["type"] for one in every} == {"machine-learning-model", "file", "library"}
    assert all(reference in {one["bom-ref"] for one in every} for reference in bom["dependencies"][0]["dependsOn"])
    assert record.artifact is not None
    hashes = {one["name"]: one["hashes"] for one in bom["components"] if one["type"] == "file"}
    assert hashes == {file.path: [{"alg": "SHA-256", "content": file.sha256}] for file in record.artifact.files}
    libraries = {one["name"]: (one["version"], one["scope"]) for one in bom["components"] if one["type"] == "library"}
    assert libraries["gptqmodel"] == ("7.6.0", "required")
    data = model["modelCard"]["modelParameters"]["datasets"][0]
    assert (data["type"], data["name"]) == ("dataset", "stdlib-calibration")
    assert {"name": "modelpress:text_sha256", "value": "1" * 64} in data["contents"]["properties"]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert all(set(metric) <= {"type", "value", "slice", "confidenceInterval"} for metric in metrics)
    divergence = next(metric for metric in metrics if metric["type"] == "kl_divergence [nat/token]")
    assert divergence["value"] == "0.0123"
    assert divergence["confidenceInterval"] == {"lowerBound": "0.0115", "upperBound": "0.0131"}


def test_the_serial_number_follows_the_content(make: SimpleNamespace) -> None:
    record = variants(make)[0]
    assert record.artifact is not None
    other = replace(record.artifact, files=(ArtifactFile(path="config.json", size=1, sha256="f" * 64),))
    serials = [json.loads(made(make, one)["sbom.cdx.json"])["serialNumber"] for one in (record, record, replace(record, artifact=other))]
    assert serials[0] == serials[1] != serials[2]


@pytest.mark.parametrize(
    ("licence", "name", "told"),
    [
        ("mit", None, {"id": "MIT"}),
        ("llama3.2", None, {"name": "llama3.2", "url": "https://www.llama.com/llama3_2/license/"}),
        ("other", "tiny-licence", {"name": "tiny-licence"}),
    ],
)
def test_a_licence_without_an_spdx_id_is_told_by_name(make: SimpleNamespace, licence: str, name: str | None, told: dict[str, str]) -> None:
    bom = json.loads(made(make, base=make.base(license=licence, license_name=name))["sbom.cdx.json"])
    assert bom["metadata"]["component"]["licenses"] == [{"license": told}]
    unknown = json.loads(made(make, base=make.base(license=None))["sbom.cdx.json"])
    assert unknown["metadata"]["component"]["licenses"] == []


# Results for the Hub's benchmarks


def test_a_whole_benchmark_is_told_as_the_hubs_client_reads_it(make: SimpleNamespace) -> None:
    record = with_task(make, with_task(make, variants(make)[0], "gsm8k"), "piqa")
    other = make.base()
    base = replace(other, measurements=(*other.measurements, replace(record.measurements[-2], value=0.5)))
    files = {path: content for path, content in made(make, record, base).items() if path.startswith(eval_results.FOLDER)}
    assert set(files) == {".eval_results/gsm8k.yaml"}, "piqa is no benchmark of the Hub"
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/gsm8k.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value, entry.date) == ("openai/gsm8k", "gsm8k", 41.2, "2026-11-20")
    assert entry.source_url == f"{cards.PUBLIC_HUB}/modelpress/x"
    for words in ("interval 38.2 to 44.2", "1319 documents, 5 examples", "Example CPU 2000", "has 50 measured the same way"):
        assert words in (entry.notes or "")


def test_a_part_of_a_benchmark_is_no_result(make: SimpleNamespace) -> None:
    record = with_task(make, variants(make)[0], "gsm8k")
    partly = replace(FURTHER[0], tasks=Tasks(names=("gsm8k",), limit=100, shots=5, seed=1))
    for known in ((), (partly,)):
        assert not [path for path in made(make, record, further=known) if path.startswith(eval_results.FOLDER)]


# All of them


def test_text_from_outside_stays_text(make: SimpleNamespace) -> None:
    step = Step(method=HOSTILE, scheme=HOSTILE, calibration=Calibration(text=HOSTILE, samples=1, sequence_length=1))
    record = make.judged(make.variant(make.recipe(HOSTILE, title=HOSTILE, summary=HOSTILE, steps=(step,))))
    record = with_task(make, record, "gsm8k")
    record = replace(record, environment=replace(make.machine, hardware=HOSTILE, libraries={HOSTILE: HOSTILE}))
    base = make.base(license="other", license_name=HOSTILE, pipeline_tag=HOSTILE, architecture=HOSTILE)
    files = supplements(record, base, [record], repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB, extras=Extras(further=FURTHER))
    svg = ET.fromstring(files["chart.svg"])
    assert {element.tag.removeprefix(SVG) for element in svg.iter()} == {
        "svg",
        "title",
        "desc",
        "style",
        "rect",
        "path",
        "text",
        "tspan",
        "g",
        "circle",
    }
    for path, content in files.items():
        assert content.isascii() or path == "chart.svg"
        assert "\u202e" not in content.decode()
        assert b"\x07" not in content
    assert len(yaml.safe_load(files[".eval_results/gsm8k.yaml"])) == 1
    json.loads(files["sbom.cdx.json"])


@pytest.mark.parametrize("name", ["modelpress/a b", "modelpress", 'a/b"); import os'])
def test_a_name_that_no_hub_allows_is_refused(make: SimpleNamespace, name: str) -> None:
    with pytest.raises(PolicyRefusal, match="no card can be written"):
        supplements(variants(make)[0], make.base(), (), repo_id=name, hub_url=cards.PUBLIC_HUB, extras=Extras())
