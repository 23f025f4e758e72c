"""Huffman coding: what it takes, that it gives back the same bytes, and that a hostile archive harms nobody."""

from __future__ import annotations

import hashlib
import heapq
import json
import random
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.domain import ModelRef
from hub.errors import BadCheckpoint
from runners import entropy, press, recipes, sizes


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> Path:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))
    return path


def huffman_bits(data: bytes) -> int:
    """Return the bits of an optimal Huffman code, by the algorithm as Huffman wrote it: merge the two rarest until one is left."""
    rest = list(Counter(data).values())
    heapq.heapify(rest)
    total = 0
    while len(rest) > 1:
        both = heapq.heappop(rest) + heapq.heappop(rest)
        total += both
        heapq.heappush(rest, both)
    return total


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    draw = random.Random(0)
    values = bytes(round(draw.gauss(0, 12)) % 256 for _ in range(40_000))
    return write(
        tmp_path / "model.safetensors", {"a": ("I8", [200, 200], values), "b": ("BF16", [0, 3], b""), "c": ("BF16", [3], b"abcdef")}
    )


def test_the_code_is_as_short_as_huffman_s(tmp_path: Path, weights: Path) -> None:
    data = weights.read_bytes()
    optimal = huffman_bits(data[-40_006:-6]) / 8
    assert optimal < 30_000
    assert entropy.coded_bytes(tmp_path) == pytest.approx(optimal, rel=0.03)
    assert entropy.coded_bytes(tmp_path) > optimal


def test_zeros_of_a_pruned_layer_cost_a_bit_a_byte_and_random_bytes_hardly_more_than_themselves(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"a": ("F32", [100_000], bytes(400_000))})
    assert entropy.coded_bytes(tmp_path) == pytest.approx(50_000, rel=0.01)
    write(tmp_path / "model.safetensors", {"a": ("F32", [100_000], random.Random(0).randbytes(400_000))})
    assert 400_000 < entropy.coded_bytes(tmp_path) < 400_600


def test_an_archive_unpacks_to_the_same_bytes_and_has_the_size_that_the_metric_says(tmp_path: Path, weights: Path) -> None:
    size = entropy.pack(weights, tmp_path / "a.huff")
    assert size == (tmp_path / "a.huff").stat().st_size == entropy.coded_bytes(tmp_path)
    entropy.unpack(tmp_path / "a.huff", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == weights.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "a.huff", "again"}


def test_a_file_of_another_engine_is_coded_tensor_by_tensor(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((64, 256), dtype=np.float32))
    for stage in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        stage()
    around = (tmp_path / "model.gguf").stat().st_size - 65_536
    assert around + 8_192 <= entropy.coded_bytes(tmp_path) < around + 8_192 + 200


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([("U8", 1), ("BF16", 2), ("I32", 4), ("F64", 8)]), st.binary(max_size=400)), max_size=5))
def test_any_tensors_come_back(tmp_path: Path, found: list[tuple[tuple[str, int], bytes]]) -> None:
    tensors = {str(n): (dtype, [len(data) // width], data[: len(data) // width * width]) for n, ((dtype, width), data) in enumerate(found)}
    source = write(tmp_path / "model.safetensors", tensors)
    entropy.pack(source, tmp_path / "a.huff")
    entropy.unpack(tmp_path / "a.huff", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == source.read_bytes()


def test_tensors_larger_than_a_chunk_come_back(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "CHUNK", 7)
    entropy.pack(weights, tmp_path / "a.huff")
    entropy.unpack(tmp_path / "a.huff", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == weights.read_bytes()


@pytest.mark.parametrize("what", ["coded", "safetensors"])
def test_files_that_are_cut_off_are_refused(tmp_path: Path, weights: Path, what: str) -> None:
    entropy.pack(weights, tmp_path / "a.huff")
    path = weights if what == "safetensors" else tmp_path / "a.huff"
    whole = path.read_bytes()
    for length in (0, 7, 8, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BadCheckpoint):
            entropy.pack(path, tmp_path / "b") if what == "safetensors" else entropy.unpack(path, tmp_path / "b")
        assert not (tmp_path / "b").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "a.huff"}


def test_a_flipped_byte_anywhere_is_seen(tmp_path: Path, weights: Path) -> None:
    entropy.pack(weights, tmp_path / "a.huff")
    whole = (tmp_path / "a.huff").read_bytes()
    for place in [*range(0, 200, 3), *range(200, len(whole), 997), len(whole) - 1]:
        (tmp_path / "b.huff").write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(BadCheckpoint):
            entropy.unpack(tmp_path / "b.huff", tmp_path / "again")
        assert not (tmp_path / "again").exists()


def deflated(data: bytes) -> bytes:
    coder = zlib.compressobj(9, wbits=-15)
    code = coder.compress(data) + coder.flush()
    return len(code).to_bytes(4, "little") + code


def archive(data: bytes, header: bytes, *planes: bytes, length: int | None = None, digest: bytes | None = None) -> bytes:
    whole = header + data
    parts = (entropy.MAGIC, (len(whole) if length is None else length).to_bytes(8, "little"), deflated(header), *planes)
    return b"".join((*parts, hashlib.sha256(whole).digest() if digest is None else digest))


def header_of(size: int, *, begin: int = 0) -> bytes:
    text = json.dumps({"a": {"dtype": "U8", "shape": [size - begin], "data_offsets": [begin, size]}}).encode()
    return len(text).to_bytes(8, "little") + text


ZEROS = bytes(2**20)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (b"PK\x03\x04" + bytes(100), "does not begin"),
        (archive(ZEROS, header_of(len(ZEROS)), deflated(ZEROS)), "can hold"),  # a bomb: deflate's repeats give a thousandfold
        (archive(b"", header_of(0), length=2**62), "can hold"),
        (archive(b"", b"\xff" * 8, bytes(64)), "does not begin with a safetensors header"),
        (archive(b"", bytes(1000), deflated(bytes(1000)), bytes(200)), "safetensors header"),
        (archive(b"x" * 40, header_of(40), deflated(b"x" * 41), bytes(20)), "does not give the 40 bytes"),
        (archive(b"x" * 40, header_of(40), deflated(b"x" * 39), bytes(20)), "does not give the 40 bytes"),
        (archive(b"x" * 40, header_of(40), (2**31).to_bytes(4, "little") + bytes(20)), "longer than any"),
        (archive(b"x" * 40, header_of(40), deflated(b"x" * 40), digest=bytes(32)), "checksum"),
        (archive(b"x" * 40, header_of(40), deflated(b"x" * 40)) + b"!", "checksum"),
        (archive(b"x" * 40, header_of(40, begin=8), deflated(b"x" * 32)), "overlap or leave gaps"),
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, made: bytes, says: str) -> None:
    (tmp_path / "a.huff").write_bytes(made)
    with pytest.raises(BadCheckpoint, match=says):
        entropy.unpack(tmp_path / "a.huff", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.huff"]


@pytest.mark.integration
def test_pruned_weights_stay_zero_when_rounded_and_code_shorter(samples: Path, tmp_path: Path) -> None:
    """Deep Compression's point: prune, quantize, and Huffman coding gains more than on the same bits alone."""
    import torch
    from transformers import AutoModelForCausalLM

    coded, packed = {}, {}
    for name in ("rtn-w4a16-g64", "deep-compression"):
        recipe = recipes.load(name)
        steps = [replace(step, calibration=step.calibration and replace(step.calibration, samples=4)) for step in recipe.steps]
        folder = tmp_path / name
        press.press(ModelRef(repo_id="x/y", sha="0" * 40), samples / "sample-llama", replace(recipe, steps=tuple(steps)), folder)
        coded[name], packed[name] = entropy.coded_bytes(folder), sizes.tensor_bytes(folder)
    print({"packed": packed, "coded": coded})
    assert packed["rtn-w4a16-g64"] == packed["deep-compression"]
    assert coded["deep-compression"] < 0.9 * coded["rtn-w4a16-g64"] < 0.9 * packed["rtn-w4a16-g64"]

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "deep-compression").eval()
    with torch.inference_mode():
        model(torch.arange(40, 50)[None])  # unpacks the weights
    weights = [module.weight for name, module in model.model.layers.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(weights) == 28
    assert all(float((weight == 0).float().mean()) >= 0.5 for weight in weights)
