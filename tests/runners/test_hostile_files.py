"""Weight files that lie: each is refused at once, from its header, and nothing outside its folder is looked at."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hub.errors import BadCheckpoint, BadDocument
from runners import checkpoint

Harm = Callable[[Path], object]
CONSTANT = '<net><layer name="{}" type="Const"><data element_type="u8" shape="{}" offset="0" size="4"/></layer></net>'


def safetensors(*entries: str, data: int = 4) -> Harm:
    text = "{" + ",".join(f'"{place}": {entry}' for place, entry in enumerate(entries)) + "}"
    return lambda folder: (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text.encode() + bytes(data))


def entry(shape: str, offsets: str = "[0, 4]") -> str:
    return f'{{"dtype": "U8", "shape": {shape}, "data_offsets": {offsets}}}'


def index(name: object) -> Harm:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))


def gguf(body: bytes, *, tensors: int = 0, keys: int = 0) -> Harm:
    return lambda folder: (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body)


def field(number: int, data: bytes) -> bytes:
    """Return a field of a protocol buffer."""
    size, length = len(data), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def onnx(tensor: bytes) -> Harm:
    return lambda folder: (folder / "model.onnx").write_bytes(field(7, field(5, tensor)))


def elsewhere(location: bytes) -> Harm:
    told = {b"location": location, b"offset": b"0", b"length": b"16"}
    pairs = b"".join(field(13, field(1, key) + field(2, value)) for key, value in told.items())
    return onnx(b"\x08\x10\x10\x03" + field(8, b"a") + pairs)


def openvino(xml: str) -> Harm:
    def write(folder: Path) -> None:
        (folder / "openvino_model.bin").write_bytes(bytes(4))
        (folder / "openvino_model.xml").write_text(xml)

    return write


def nested_entities() -> str:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    return f'<!DOCTYPE a [<!ENTITY e0 "{"x" * 99}">{entities}]><net><layer name="&e11;" type="Const"/></net>'


LIES: dict[str, Harm] = {
    "safetensors: a header longer than the file": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{}"),
    "safetensors: dimensions that take hours to multiply": safetensors(entry(f"[{','.join(['9' * 18] * 200_000)}]")),
    "safetensors: sizes of thousands of digits": safetensors(entry(f"[{','.join(['9' * 4000] * 200)}]")),
    "safetensors: negative sizes": safetensors(entry("[-2, -2]")),
    "safetensors: sizes that are no whole numbers": safetensors(entry("[4.5]")),
    "safetensors: sizes in a text": safetensors(entry('"4"')),
    "safetensors: places that are no whole numbers": safetensors(entry("[4]", "[0.0, 4.0]")),
    "safetensors: two tensors in one place": safetensors(entry("[4]"), entry("[4]")),
    "safetensors: bytes of no tensor": safetensors(entry("[4]", "[2, 6]"), data=6),
    "safetensors: a shard in another folder": index("../model.safetensors"),
    "safetensors: a shard that is the folder above": index(".."),
    "safetensors: a shard of a name too long": index("a" * 5000),
    "safetensors: a shard of a name that no terminal shows": index("\ud800\x1b[2J"),
    "gguf: millions of dimensions": gguf(
        struct.pack("<Q", 1) + b"a" + struct.pack("<I", 400_000) + b"\xff" * 3_200_000 + struct.pack("<IQ", 0, 0), tensors=1
    ),
    "gguf: more keys than a file has": gguf(b"", keys=2**63),
    "gguf: a text longer than the file": gguf(struct.pack("<Q", 2**62), keys=1),
    "gguf: millions of empty texts": gguf(struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**22) + bytes(2**25), keys=1),
    "gguf: lists of lists of lists": gguf(struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 10_000, keys=1),
    "gguf: a folder": lambda folder: (folder / "model.gguf").mkdir(),
    "onnx: dimensions that take hours to multiply": onnx(field(1, b"\xff" * 9 + b"\x01") * 200_000 + b"\x10\x03" + field(9, bytes(4))),
    "onnx: packed dimensions that do": onnx(field(1, (b"\xff" * 9 + b"\x01") * 200_000) + b"\x10\x03" + field(9, bytes(4))),
    "onnx: millions of fields": lambda folder: (folder / "model.onnx").write_bytes(b"\x08\x01" * 2**22),
    "onnx: data in another folder": elsewhere(b"../secret"),
    "onnx: data by an absolute path": elsewhere(b"/etc/passwd"),
    "onnx: data in the folder above": elsewhere(b".."),
    "onnx: data in the folder itself": elsewhere(b"."),
    "onnx: data of a name that no terminal shows": elsewhere(b"\x1b[2J"),
    "openvino: dimensions that take hours to multiply": openvino(CONSTANT.format("a", ",".join(["9" * 18] * 50_000))),
    "openvino: negative sizes": openvino(CONSTANT.format("a", "-2,-2")),
    "openvino: entities of entities": openvino(nested_entities()),
    "openvino: an entity in another file": openvino(
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><net><layer name="&x;" type="Const"/></net>'
    ),
    "openvino: numbers that are a folder": lambda folder: (
        (folder / "openvino_model.bin").mkdir(),
        (folder / "openvino_model.xml").write_text(CONSTANT.format("a", "4")),
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}')
    LIES[name](folder)
    began = time.process_time()
    with pytest.raises(BadCheckpoint) as caught:
        checkpoint.check(folder)
    assert time.process_time() - began < 5  # of the processor, however busy the machine is
    assert caught.value.hint
    assert len(caught.value.message) < 600
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../secret"])
def test_a_manifest_that_lists_files_elsewhere_is_not_followed(tmp_path: Path, path: str) -> None:
    from hub.domain import ModelRef
    from runners import recipes

    (tmp_path / "config.json").write_text("{}")
    base = ModelRef(repo_id="a/b", sha="0" * 40)
    checkpoint.write(tmp_path, base=base, recipe=recipes.load("bnb-nf4"), parameters=1, libraries={})
    manifest = tmp_path / checkpoint.MANIFEST
    manifest.write_text(manifest.read_text().replace('"config.json"', json.dumps(path)))
    with pytest.raises(BadDocument, match="outside its folder"):
        checkpoint.read_manifest(tmp_path)


def test_the_model_of_another_engine_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    gguf(b"")(tmp_path)
    with pytest.raises(BadCheckpoint, match="format gguf; a dense one was expected"):
        checkpoint.shape(tmp_path)
