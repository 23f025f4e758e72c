"""The facts that the gate judges: each kind of defect is seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Artifact, ModelRef
from hub.errors import BadCheckpoint, TimedOut, Unavailable
from runners import chat_template, checkpoint, formats, headers, readers, recipes, secrets, unsafe
from runners.inspection import inspect
from runners.readers import gguf

pytestmark = [pytest.mark.integration, pytest.mark.shared]

RECIPE = recipes.load("bnb-nf4")
BASE = ModelRef(repo_id="local/stories260K", sha="local-0")


@pytest.fixture
def base(shared: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(shared / "models" / "stories260K", folder, copy_function=shutil.copyfile)
    (folder / "SOURCES.md").unlink()
    (folder / "LICENSE").write_text("MIT")
    return folder


@pytest.fixture
def variant(base: Path, tmp_path: Path) -> Path:
    """A checkpoint that claims to be NF4 and is the dense base: it loads, and nothing is packed."""
    folder = tmp_path / "variant"
    shutil.copytree(base, folder)
    _write(folder)
    return folder


def _write(folder: Path) -> Artifact:
    (folder / checkpoint.MANIFEST).unlink(missing_ok=True)
    return checkpoint.write(folder, base=BASE, recipe=RECIPE, parameters=260_032, libraries={})


def test_a_checkpoint_that_was_not_packed_is_seen_through(variant: Path, base: Path) -> None:
    facts = inspect(variant, RECIPE, base)
    assert facts.loads
    assert facts.packed_expected == 35
    assert facts.packed_found == 0
    assert len(facts.not_packed) == 20
    assert facts.tensor_bytes_found > 1.5 * facts.tensor_bytes_expected
    assert (facts.missing_files, facts.unexpected_files, facts.checksum_errors, facts.non_finite) == ((), (), (), ())
    assert len(facts.generated_ids) == 16
    assert facts.generated_text
    assert set(facts.layers.values()) == {(7, 0)}
    assert len(facts.layers) == 5
    assert facts.outlines["model.norm.weight"] == ("F32", (64,))
    assert '"model_type": "llama"' in facts.config


def test_files_that_should_not_be_there_and_files_that_should(variant: Path, base: Path) -> None:
    (variant / "weights.bin").write_bytes(b"pickle")
    (variant / "modeling_x.py").write_text("")
    (variant / "notes.txt").write_text("")
    (variant / "license.evil").write_text("")
    disguised = {
        "a.json": b"\x80\x04\x95",
        "b.txt": b"#!/bin/sh\n",
        "c.model": b"\x7fELF\x02",
        "d": b"PK\x03\x04",
        "e.safetensors": b"\x1f\x8b\x08",
    }
    for name, head in {**disguised, "f.dat": b"MZ" + bytes(58) + b"\x40\0\0\0PE\0\0"}.items():
        (variant / name).write_bytes(head)
    (variant / "run.sh").write_text("")
    (variant / "link.json").symlink_to("/etc/hostname")
    (variant / "openvino_model.xml").write_text("<net/>")
    (variant / "openvino_model.bin").symlink_to("/etc/hostname")
    (variant / "link.bin").symlink_to("/etc/hostname")
    (variant / "LICENSE").unlink()
    (variant / "tokenizer_config.json").write_text("{}")
    facts = inspect(variant, RECIPE, base)
    assert facts.missing_files == ("LICENSE",)
    code = ("a.json", "b.txt", "c.model", "d", "e.safetensors", "f.dat", "link.bin", "modeling_x.py", "run.sh", "weights.bin")
    assert set(facts.unexpected_files) == {
        *(f"{name}: pickle or code" for name in code),
        "link.json: symbolic link",
        "openvino_model.bin: symbolic link",
        "openvino_model.xml: not in the manifest",
        "license.evil: not in the manifest",
        "notes.txt: not in the manifest",
    }
    assert set(facts.checksum_errors) == {
        "LICENSE: missing",
        "tokenizer_config.json: not the bytes that the manifest lists",
    }
    assert facts.unlike_base == ("tokenizer_config.json",)


def test_which_gguf_file_is_meant(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(Unavailable, match=r"^the only GGUF file lies in a folder of its own \(deep/a\.gguf\)"):
        readers.require_one(tmp_path)
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    readers.require_one(tmp_path)
    (tmp_path / "c.gguf").write_bytes(b"GGUF")
    with pytest.raises(Unavailable, match=r"there are 3 \(b\.gguf, c\.gguf, deep/a\.gguf\)"):
        readers.require_one(tmp_path)


def test_weights_of_every_format_are_no_code(tmp_path: Path) -> None:
    import gguf as library
    import onnx

    header = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    for length in (0x280, 0x8B1F, 0x288280):  # as little-endian numbers these look like marks of pickles and archives
        (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header.ljust(length))
        assert headers.read_header(tmp_path / "model.safetensors")
        assert not unsafe.could_run(tmp_path / "model.safetensors")
    (tmp_path / "other.dat").write_bytes(b"\x80\x02}q\x00.")
    assert unsafe.could_run(tmp_path / "other.dat")
    writer = library.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.write_header_to_file()
    writer.close()
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), tmp_path / "model.onnx")
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".gguf", ".onnx", ".model") and unsafe.could_run(path)]


def test_a_chat_template_that_never_ends_or_takes_all_memory_is_a_fault(
    variant: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token + 'a' }}"}))
    assert chat_template.fault(tmp_path) == ""
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('only with tools') }}")
    assert chat_template.fault(tmp_path) == "", "an error of the template's own harms nobody"
    bomb = "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endfor %}"
    named = [{"name": "default", "template": "{{ messages[0].content }}"}, {"name": "tools", "template": "{{ 'x' * 10 ** 6 }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert "more than 262144 characters" in chat_template.fault(tmp_path)
    named[1]["template"] = bomb
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    with monkeypatch.context() as quick:
        quick.setattr(chat_template, "MEMORY_BYTES", 128 << 20)
        assert "0.12 GiB are allowed" in chat_template.fault(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ 'x' * 10 ** 15 }}")
    assert "more memory than there is" in chat_template.fault(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with monkeypatch.context() as busy:
        busy.setattr(chat_template, "WAIT_S", 0.01)
        with pytest.raises(TimedOut, match="could not be tried within"):
            chat_template.fault(tmp_path)
    monkeypatch.setattr(chat_template, "SECONDS", 0.2)  # much less than the import of what renders it takes, which does not count
    assert chat_template.fault(tmp_path) == ""
    (variant / "chat_template.jinja").write_text(bomb.replace("{{ 'x' * 99999 }}", ""))
    facts = inspect(variant, RECIPE, base)
    assert facts.loads
    assert "longer than the 0.2 s" in facts.template_fault


def test_numbers_that_are_not_finite(variant: Path, base: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(variant / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, variant / "model.safetensors", metadata={"format": "pt"})
    _write(variant)
    facts = inspect(variant, RECIPE, base)
    assert facts.loads
    assert set(facts.non_finite) == {name, "logits"}
    assert facts.looked_at == facts.tensors


def test_scales_of_blocks_that_are_not_finite(tmp_path: Path) -> None:
    """Every type of llama.cpp's, as its own Python reads it: a place of a scale is one that spoils the block."""
    import gguf as library
    import numpy as np

    chance = np.random.default_rng(5)
    wrong, types = set(), [name for name in headers.BLOCKS if formats.can_be_non_finite(name)]
    assert set(headers.BLOCKS) - set(types) == {"IQ1_M", "MXFP4"}
    writer = library.GGUFWriter(tmp_path / "model.gguf", "llama")
    for name in types:
        kind = library.GGMLQuantizationType[name]
        sound = chance.integers(0, 256, (3, headers.BLOCKS[name][1]), dtype=np.uint8)
        places = [at for at in range(sound.shape[1] - 1) if spoils(sound, at, kind)]
        for at in places:
            sound[:, at : at + 2] = (0, 0x38)  # 0.5
        assert np.isfinite(library.quants.dequantize(sound, kind)).all()
        writer.add_tensor(f"{name}.sound", sound, raw_dtype=kind)
        for at in places:
            spoilt = sound.copy()
            spoilt[1, at : at + 2] = (0, 0x7C)
            writer.add_tensor(f"{name}.{at}", spoilt, raw_dtype=kind)
            wrong.add(f"{name}.{at}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(wrong) >= len(types)
    assert set(formats.non_finite(tmp_path)) == wrong

    header = b'{"w":{"dtype":"F8_E8M0","shape":[3],"data_offsets":[0,3]}}'
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00\x7f\xfe")
    assert formats.non_finite(tmp_path) == ()
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00\x7f\xff")
    assert formats.non_finite(tmp_path) == ("w",)


def spoils(blocks: Any, at: int, kind: Any) -> bool:
    """Whether an infinity in two bytes of the blocks makes weights of them that are not finite, and a half does not."""
    import gguf as library
    import numpy as np

    finite = []
    for high in (0x7C, 0x38):
        changed = blocks & 0x3F  # no other pair of bytes is an infinity
        changed[:, at : at + 2] = (0, high)
        with np.errstate(invalid="ignore"):
            finite.append(bool(np.isfinite(library.quants.dequantize(changed, kind)).all()))
    return finite == [False, True]


def test_a_cut_file_does_not_load_and_raises_nothing(variant: Path, base: Path) -> None:
    weights = variant / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300_000])
    facts = inspect(variant, RECIPE, base)
    assert not facts.loads
    assert "truncated" in facts.load_error
    assert facts.checksum_errors == ("model.safetensors: not the bytes that the manifest lists",)


def test_without_a_manifest_a_checkpoint_is_not_whole(variant: Path, base: Path) -> None:
    (variant / checkpoint.MANIFEST).unlink()
    assert inspect(variant, RECIPE, base).missing_files == (checkpoint.MANIFEST,)
    (variant / checkpoint.MANIFEST).write_text("{}")
    assert inspect(variant, RECIPE, base).checksum_errors[0].startswith(checkpoint.MANIFEST)


def test_secrets_are_found_by_their_form_and_words_are_not(tmp_path: Path) -> None:
    drawn = "aB3dE6fG9hJ2kL5mN8pQ1rS4tU7vW0xYzA"
    pem = "-----BEGIN {}PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ"
    real = {
        "Hugging Face token": f"token: hf_{drawn}",
        "AWS access key": "aws_access_key_id=AKIAQ3EGRZN7WLTK2MHV",
        "GitHub token": f"https://ghp_{drawn}X9@github.com",
        "private key": pem.format("RSA "),
        "Google API key": "AIzaSyD4kT9wQ2mZ7xVbN1cR6uHpL3gJfYsE8oA",
        "Weights & Biases key": "WANDB_API_KEY=0f3a9c1e7b2d8465f0a1c3e5b7d9284603f1a5c7",
    }
    files = {}
    for number, (what, text) in enumerate(real.items()):
        files[f"{number}.txt"] = tmp_path / f"{number}.txt"
        files[f"{number}.txt"].write_text("x" * (1 << 20) + "\n" + text + "\n")  # over the border of what is read at once
        assert list(secrets.find({"a.txt": files[f"{number}.txt"]})) == [f"a.txt: {what}, line 2"], what
    innocent = [
        "hf_" + "x" * 34, "hf_hub_download_from_the_hugging_face_hub", "AKIAIOSFODNN7EXAMPLE", "-----BEGIN PUBLIC KEY-----",
        "the header is -----BEGIN RSA PRIVATE KEY----- and then the key", "sk-learn", "sha256: " + "0f3a9c1e" * 8, "ghp_" + "a" * 36,
        drawn, f"xhf_{drawn}", f"hf_{drawn}{drawn}",
    ]  # fmt: skip
    plain = tmp_path / "tokenizer.json"
    plain.write_text("\n".join(innocent))
    assert list(secrets.find({"tokenizer.json": plain})) == []
    (tmp_path / "link").symlink_to(files["0.txt"])
    assert list(secrets.find({"link": tmp_path / "link", "gone": tmp_path / "gone"})) == []


def test_without_recipe_and_base_nothing_is_promised_and_nothing_missed(variant: Path, base: Path) -> None:
    (variant / checkpoint.MANIFEST).unlink()
    (variant / "notes.txt").write_text("whatever")
    facts = inspect(variant, None, None)
    assert facts.loads
    assert (facts.packed_expected, facts.tensor_bytes_expected, facts.layers) == (0, 0, {})
    assert (facts.missing_files, facts.unexpected_files, facts.checksum_errors, facts.unlike_base) == ((), (), (), ())
    assert facts.tensor_bytes_found == sum(tensor.tensor.bytes for tensor in headers.stored_tensors(variant).values())


def test_the_keys_of_a_gguf_file_are_read(tmp_path: Path) -> None:
    import gguf as library

    writer = library.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert set(gguf.keys(tmp_path / "model.gguf")) == {"general.architecture", "llama.block_count", "tokenizer.ggml.tokens"}
    (tmp_path / "model.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:40])
    with pytest.raises(BadCheckpoint, match="truncated"):
        gguf.keys(tmp_path / "model.gguf")
