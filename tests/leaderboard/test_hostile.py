"""Hostile metadata: every input of the corpus goes through every output, and comes out as text in the same structure as a harmless name."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import unicodedata
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from huggingface_hub.hf_api import ModelInfo
from lxml import etree
from markdown_it import MarkdownIt

from hub import listing, names, policy
from hub.catalog import Discovery
from hub.codec import from_json, to_json
from hub.domain import Calibration, Candidate, Job, LayerError, Refusal, Step, StepRecord
from hub.errors import PolicyRefusal
from hub.history import Audit, BaseRecord, Check, VariantRecord, Verdict
from hub.overview import Blocked, JobLine, Overview
from hub.popularity import Score
from hub.protocol import Memory, Protocol, Quality, Speed, Tasks, Text
from hub.scheduling import Plan
from hub.settings import BudgetSettings, Settings
from leaderboard import cards, exports, frontmatter, supplements, text
from leaderboard.cards import Change, Extras
from modelpress import cli, discover, plan, status
from modelpress.options import console, echo
from modelpress.progress import Reporter

from .hostile import CHARACTERS, CORPUS, HTML, JSON, KINDS, LONG, PATHS, URL, XML

REPO = "modelpress/tiny-llama-harmless"
CALM = "harmless"
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
SHELL_LINES = re.compile(r"(?:pip install|export|hf download|llama-server|modelpress) ")


def sound(word: str) -> str:
    """The word as far as a recipe can hold it: TOML has no halves of surrogate pairs; elsewhere they are let through below."""
    return word.encode("utf-8", "replace").decode()


def unseen(shown: str) -> set[str]:
    """Characters that are not seen where they stand, or change how others are; lines aside."""
    return {char for char in shown if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")}


def family(make: SimpleNamespace, word: str) -> tuple[VariantRecord, BaseRecord, VariantRecord, Extras]:
    """A variant, its base, a sibling and the extras of a card with the same word in every place that text from outside can have."""
    shown = Calibration(text=word, samples=4, sequence_length=8)
    recipe = make.recipe(word, title=word, summary=word, steps=(Step(method="gptq", scheme=word, params={word: word}, calibration=shown),))
    step = StepRecord(
        method=word, text_sha256=word, samples_sha256=word, layers={word: {"kept": word}, f"{word}.2": {"rank": word}}, notes=(word,)
    )
    machine = replace(make.machine, hardware=word, system=word, python=word, libraries=dict.fromkeys(("torch", "gptqmodel", word), word))
    points = [
        replace(make.measured("accuracy", 0.5, 0.1), conditions={"task": word}),
        replace(make.measured("decode_tokens_per_second", 5.0, 0.1), conditions={"mode": word, "batch": 1, "context": 8}),
    ]

    def renamed(record: Any) -> Any:
        numbers = [replace(one, protocol=word, engine=word, interval=word) for one in record.measurements]
        return replace(record, measurements=(*numbers, *(replace(one, protocol=word) for one in points)), environment=machine)

    record = renamed(make.variant(recipe, steps=(step,), layers=(LayerError(layer=word, error=0.1, tokens=8, protocol=word),)))
    artifact = replace(record.artifact, libraries={word: word})
    check = Check(name=word, passed=True, detail=word)
    verdict = Verdict(variant_id=record.variant_id, stage="artifact", subject=artifact.digest, checks=(check,), judged_at=make.at)
    record = replace(record, artifact=artifact, verdicts=(verdict,))
    other = renamed(make.judged(make.variant(make.recipe(f"{word} other", format="dense", steps=(Step(method=word, scheme=word),)))))
    words = {"license": word, "license_name": word, "pipeline_tag": word, "architecture": word, "library_name": word}
    base = renamed(make.base(**words, tags=(word,), languages=(word,)))
    protocol = Protocol(
        name=word,
        text=Text(name=word, sha256=word, dataset=word, revision=word, file=word),
        quality=Quality(sequence_length=8, windows=2),
        tasks=Tasks(names=(word,), limit=2, shots=0, seed=0),
        speed=Speed(batches=(1,), contexts=(8,), modes=(word,), new_tokens=4, repeats=2, seconds=0.0, warmup=1),
        memory=Memory(contexts=(), loads=1),
    )
    extras = Extras(
        protocol=protocol,
        further=(protocol,),
        changes=(Change(day=word, what=word),),
        sibling_repos=((other.variant_id, f"{REPO}-b"),),
        audit=Audit(variant_id=record.variant_id, repo_id=REPO, sha=word, at=make.at, passed=False, reason=word, libraries={word: word}),
    )
    return record, base, other, extras


def rendered(make: SimpleNamespace, word: str, **changes: object) -> tuple[str, str]:
    """The front matter and the body of a card."""
    record, base, other, extras = family(make, word)
    base = replace(base, candidate=replace(base.candidate, **changes))
    card = cards.render(record, base, [other], repo_id=REPO, hub_url=cards.PUBLIC_HUB, extras=extras)
    assert card.startswith("---\n")
    front, _, body = card.removeprefix("---").partition("\n---\n")
    return front, body


def skeleton(body: str) -> list[str]:
    """What a Markdown reader makes of a card but for its words: blocks, links, emphasis; no inline code, which a pipe turns into text."""
    found = []
    for token in PARSER.parse(body):
        found.append(f"{token.type} {token.tag} {token.attrs}")
        if token.type == "fence" and not SHELL_LINES.match(token.content):
            found.append(token.content)
        for child in token.children or ():
            if child.type not in ("text", "code_inline", "text_special"):
                found.append(f"  {child.type} {child.attrs}")
    return found


def shell_words(body: str) -> list[list[str]]:
    """The words of every command of a card, as a shell takes them apart."""
    fences = [token.content for token in PARSER.parse(body) if token.type == "fence" and SHELL_LINES.match(token.content)]
    return [shlex.split(line) for fence in fences for line in fence.splitlines()]


def in_commands(commands: list[list[str]], word: str) -> list[list[str]]:
    """The words of a card's commands that name a recipe and versions: what may stand in a command as it is, and nothing else."""
    recipe = word if re.fullmatch(r"\w[\w.:-]{0,95}", word, re.ASCII) else "RECIPE"
    version = f"=={word}" if re.fullmatch(r"\w[\w.!-]{0,63}", word, re.ASCII) else ""
    return [[recipe if part == CALM else part.replace(f"=={CALM}", version) for part in line] for line in commands]


def test_the_corpus_is_large_and_each_input_is_another() -> None:
    assert len(CORPUS) >= 300
    assert sum(map(len, KINDS.values())) == len(CORPUS)
    assert {"markdown", "html", "yaml", "jinja", "csv", "characters", "long", "terminal", "shell", "url", "xml", "paths"} < set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_keeps_its_structure_its_matter_and_its_commands(make: SimpleNamespace, kind: str) -> None:
    front, body = rendered(make, CALM)
    expected, commands, keys = skeleton(body), shell_words(body), set(yaml.safe_load(front))
    assert len(expected) > 300
    assert ["modelpress", "compress", f"{make.ref.repo_id}@{make.ref.sha}", "--recipe", CALM, "--out", "DIR"] in commands
    for word in map(sound, KINDS[kind]):
        front, body = rendered(make, word)
        assert skeleton(body) == expected, ascii(word[:80])
        assert shell_words(body) == in_commands(commands, word), ascii(word[:80])
        data = yaml.safe_load(front)
        assert set(data) - {"language"} == keys, ascii(word[:80])
        assert text.plain(word).startswith(data["license"]), ascii(word[:80])
        assert data["license"] == data["license_name"] == data["pipeline_tag"]
        assert data["base_model"] == [make.ref.repo_id]
        assert all(isinstance(tag, str) for tag in data["tags"])
        assert not unseen(front + body), ascii(word[:80])
        assert len(body) < 400_000


def test_a_link_of_the_licence_leads_to_a_page_or_nowhere(make: SimpleNamespace) -> None:
    calm = links(rendered(make, CALM)[1])
    record, base, _, _ = family(make, CALM)
    page = f"{make.ref.repo_id}/blob/{make.ref.sha}"
    for word in CORPUS:
        found = frontmatter.license_link(record, replace(base, candidate=replace(base.candidate, license_link=word)), cards.PUBLIC_HUB)
        if found:
            parts = urlsplit(found)
            assert parts.scheme == "https", found
            assert parts.username is None, found
            assert found in (word, f"{cards.PUBLIC_HUB}/{page}/{word}")
            assert re.fullmatch(r"[!-~]+", found), found
            assert not set("()<>\"'\\`") & set(found), found
        if word in URL:
            front, body = rendered(make, CALM, license_link=word)
            assert yaml.safe_load(front).get("license_link") == found
            assert links(body) - calm == Counter([found] if found else []), ascii(word[:80])


def links(body: str) -> Counter[str]:
    """The addresses that a card links to."""
    return Counter(str(child.attrs["href"]) for token in PARSER.parse(body) for child in token.children or () if child.type == "link_open")


def test_what_stands_in_commands_is_let_in_or_no_card_is_made(make: SimpleNamespace) -> None:
    """Names of repositories and commits: policy refuses them when they are pulled, and the card once more."""
    record, base, _, _ = family(make, CALM)
    for word in CORPUS:
        for repo_id in (word, f"owner/{word}", f"{word}/name"):
            plain = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo_id, re.ASCII)
            assert plain or names.repo_id_fault(repo_id), ascii(repo_id[:80])
            if not plain:
                with pytest.raises(PolicyRefusal, match="no card"):
                    cards.render(record, base, (), repo_id=repo_id, hub_url=cards.PUBLIC_HUB)
        if not re.fullmatch(r"\w[\w.-]{0,63}", word, re.ASCII):
            with pytest.raises(PolicyRefusal, match="no card"):
                cards.render(replace(record, base=replace(record.base, sha=word)), base, (), repo_id=REPO, hub_url=cards.PUBLIC_HUB)
        assert names.path_fault(word) or re.fullmatch(r"[A-Za-z0-9._+@=,()/ -]{1,240}", word), ascii(word)
        recipe = replace(record.recipe, name=word)
        name = policy.release_name(replace(base.candidate, ref=replace(base.candidate.ref, repo_id=f"o/{sound(word)}")), recipe, "us")
        assert names.repo_id_fault(name) is None, ascii(word[:80])


def test_what_lies_beside_the_card_keeps_its_structure(make: SimpleNamespace) -> None:
    def beside(word: str) -> dict[str, bytes]:
        record, base, other, extras = family(make, word)
        return supplements.supplements(record, base, [other], repo_id=REPO, hub_url=cards.PUBLIC_HUB, extras=extras)

    calm = beside(CALM)
    assert {"chart.svg", "bench.json"} <= set(calm)
    drawn = shape(calm["chart.svg"])
    for word in map(sound, (*HTML, *CHARACTERS, *LONG, *XML, *PATHS, *JSON)):
        files = beside(word)
        assert set(files) == set(calm)
        assert shape(files["chart.svg"]) == drawn, ascii(word[:80])
        for path, content in files.items():
            assert supplements.is_supplement(path)
            if path.endswith(".json"):
                assert content.isascii() or not unseen(content.decode().replace("\n", "")), path
                found, other = json.loads(content), json.loads(calm[path])
                assert set(found) == set(other), path
                assert path != "bench.json" or same_keys(found, other, word), ascii(word[:80])


HASH = re.compile(r"\A[0-9a-f]{16}\Z")


def shape(svg: bytes) -> list[tuple[str, list[str]]]:
    """The elements of a strictly read SVG with the names of their attributes; labels, which find room or do not, are left out."""
    root = etree.fromstring(svg, etree.XMLParser(resolve_entities=False))
    kept = (item for item in root.iter() if item.get("class", "").split(" ")[0] not in ("label", "leader"))
    return [(str(item.tag), sorted(map(str, item.keys()))) for item in kept]


def same_keys(found: Any, calm: Any, word: str) -> bool:
    """Whether two documents have the same shape: keys are the same, or the word in the one where `harmless` is in the other."""
    if isinstance(calm, dict):
        keys = {HASH.sub("hash", key.replace(CALM, word)): value for key, value in calm.items()}
        theirs = {HASH.sub("hash", key): value for key, value in found.items()}
        return set(keys) == set(theirs) and all(same_keys(theirs[key], keys[key], word) for key in keys)
    if isinstance(calm, list):
        return isinstance(found, list) and len(found) == len(calm) and all(map(same_keys, found, calm, [word] * len(calm)))
    return type(found) is type(calm)


def test_a_spreadsheet_reads_the_same_columns_and_runs_nothing(make: SimpleNamespace) -> None:
    rows = []
    for word in map(sound, CORPUS):
        record, base, _, _ = family(make, word)
        base = replace(base, candidate=replace(base.candidate, ref=replace(base.candidate.ref, repo_id=word, sha=word)))
        rows += [exports.base_results(base)[0], exports.variant_results(record, word)[0]]
    written = exports.results_csv(rows)
    for parted in (",", ";"):
        read = list(csv.reader(io.StringIO(written, newline=""), delimiter=parted))
        for row in read:
            assert parted == ";" or len(row) == len(exports.RESULT_COLUMNS)
            for cell in row:
                first = unicodedata.normalize("NFKC", cell.lstrip()[:1])
                assert first not in ("=", "+", "@", "-") or re.fullmatch(r"-?[\d.e-]+", cell), ascii(cell[:80])
                assert not unseen(cell), ascii(cell[:80])
    assert len(read) == len(rows) + 1


def test_a_terminal_shows_and_does_not_obey(make: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables, lines and errors of commands, as they are printed where no terminal is and build services read along."""
    corpus = [word for word in CORPUS if len(word) < 3_500]  # names are cut long before
    lines = [
        JobLine(
            id=f"{index:016x}", kind="press", repo_id=word, recipe=word, protocol=word, state="failed", attempts=1, economy=0, waits_for=0,
            due=None, cancel=False, owner=word, since=None, updated_at=make.at, seconds=1.0, category="bug", error=word, reason=word,
            hint=word, expected=None,
        )
        for index, word in enumerate(corpus)
    ]  # fmt: skip
    candidates = [replace(make.base().candidate, ref=replace(make.ref, repo_id=word), license_name=word) for word in map(sound, corpus)]
    refusals = tuple(Refusal(repo_id=word, sha="", code="x", reason=word, recipe=word) for word in corpus)
    jobs_planned = tuple(Job(kind="press", base=one.ref, recipe=replace(make.recipe(), name=one.ref.repo_id)) for one in candidates)
    seen = Overview(
        at=0.0, states={"failed": 1}, failures={}, running=tuple(lines), waiting=tuple(lines), waiting_count=0,
        blocked=(Blocked(job=lines[0], jobs=1),), paused=CORPUS[0], paused_at=None, releases=0, verified=0, refused=0,
    )  # fmt: skip
    console().print(status.job_table(lines))
    console().print(status.glance(seen, []))
    console().print("[" * 10_000, "(" * 10_000, " " * 10_000, sep="")  # looked through for what to colour, that would take minutes
    budget = BudgetSettings()
    plan.show(Plan(jobs=jobs_planned, refusals=refusals, done=0), {job.id: job.recipe.name for job in jobs_planned}, budget, whole=True)
    scores = {one.ref.repo_id: Score(downloads=1.0, likes=1.0, trending=1.0) for one in candidates}
    discover.show(Discovery(accepted=tuple(candidates), refused=refusals, scores=scores))
    reporter = Reporter()
    with reporter.phase("work", len(corpus)) as phase:
        for word in corpus:
            phase.begin(word)
            phase.fail(word, word)
    for word in corpus:
        cli.say(word, word)
        echo(word)
    said = "".join(capsys.readouterr())
    hidden, orders = unseen(said), [line for line in said.splitlines() if re.match(r"\s*::", line) or re.search(r"##(\[|vso\[)", line)]
    assert hidden == set()
    assert orders == []
    lost = [word for word in corpus if word.isprintable() and len(word) < 40 and text.terminal(word) not in said]
    assert lost == []


def test_what_the_hub_lists_is_read_whole_and_judged(make: SimpleNamespace) -> None:
    for word in CORPUS:
        lists = [word, word]
        info = ModelInfo(
            id=word, sha=word, author=word, tags=lists, pipeline_tag=word, library_name=word, gated=word, private=False,
            config={"architectures": lists, "model_type": word}, siblings=[{"rfilename": word, "blobId": word, "size": 1}],
            cardData={"license": word, "license_name": word, "license_link": word, "language": lists, "base_model": word},
        )  # fmt: skip
        found = listing.candidate(info)
        assert from_json(Candidate, to_json(found)) == found, ascii(word[:80])
        assert len(to_json(found)) < 40_000
        refusal = policy.screen(found, Settings())
        assert refusal is not None
        assert refusal.reason.isascii(), ascii(word[:80])
        assert refusal.reason.isprintable(), ascii(word[:80])
        assert len(refusal.reason) < 1000
