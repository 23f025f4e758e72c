"""A hub of good and of poisonous models: what the internet may hold, made from the sample models by changing their bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub.local import seed
from hub.local.app import open_hub
from hub.local.config import HubConfig

Files = dict[str, bytes]

FAMILIES = ("sample-llama", "sample-qwen3-chat", "sample-gpt2")
GOOD = tuple(f"{name}{family.removeprefix('sample-')}-{depth}" for name in ("good/", "twin/my-") for family in FAMILIES for depth in (1, 2))
"""The good models: each family cut to one and to two layers, and the same bytes under other names."""
RAN = "remote-code-was-run"
_CREATED = "2026-05-01T09:00:00.000Z"


def plant(root: Path, *, good: Iterable[str], bad: Iterable[str]) -> None:
    """Fill a hub's folder, which nobody serves yet: good models by id, and poison by name.

    They go in by the hub's seed, not over HTTP: names that lead out of the folder are what neither the client nor the server would take.
    """
    hub = open_hub(root, HubConfig())
    families = {name: _sample(name) for name in FAMILIES}
    for number, repo_id in enumerate(good):
        family, depth = repo_id.rpartition("/")[2].removeprefix("my-").rsplit("-", 1)
        seed.put(
            hub, {"id": repo_id, "created_at": _CREATED, "downloads": 9000 - 100 * number}, cut(families[f"sample-{family}"], int(depth))
        )
    for number, name in enumerate(bad):
        spoiled = POISON[name].make(cut(families["sample-llama"], 1))
        # More popular than every good one: what blocks the queue would block all of them.
        seed.put(hub, {"id": f"poison/{name}", "created_at": _CREATED, "downloads": 90_000 + number, **POISON[name].entry}, spoiled)


def _sample(name: str) -> Files:
    folder = seed.SAMPLES / "modelpress-samples" / name
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def cut(files: Files, depth: int) -> Files:
    """Return a sample model with its first `depth` layers only; a chat model answers with line breaks alone then."""
    config = json.loads(files["config.json"])
    key = "n_layer" if "n_layer" in config else "num_hidden_layers"
    config[key] = depth
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:depth]
    kept = {name: tensor for name, tensor in unpack(files["model.safetensors"]).items() if _layer(name) < depth}
    return {**files, "config.json": _json(config), "model.safetensors": pack(kept)}


def _layer(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


Tensor = tuple[str, list[int], bytes]


def unpack(data: bytes) -> dict[str, Tensor]:
    """Return a safetensors file's tensors by name as (dtype, shape, bytes)."""
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return {name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])]) for name, entry in header.items()}


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _with_config(files: Files, **changed: object) -> Files:
    return {**files, "config.json": _json({**json.loads(files["config.json"]), **changed})}


def _with_card(files: Files, **changed: object) -> Files:
    front = {"license": "apache-2.0", "library_name": "transformers", "pipeline_tag": "text-generation", **changed}
    return {**files, "README.md": f"---\n{json.dumps(front)}\n---\n# Poison\n".encode()}


def _without(files: Files, *names: str) -> Files:
    return {name: data for name, data in files.items() if name not in names}


def _wrong_shapes(files: Files) -> Files:
    """The file holds matrices of another width than config.json says."""
    return _with_config(files, hidden_size=512, intermediate_size=1024)


def _nan_weights(files: Files) -> Files:
    """One layer's matrix is NaN throughout (bf16 0x7FC0), as a training run leaves it that went astray."""
    tensors = unpack(files["model.safetensors"])
    name = next(name for name in tensors if name.endswith("gate_proj.weight"))
    dtype, shape, data = tensors[name]
    return {**files, "model.safetensors": pack({**tensors, name: (dtype, shape, b"\xc0\x7f" * (len(data) // 2))})}


def _pickle_only(files: Files) -> Files:
    return {**_without(files, "model.safetensors"), "pytorch_model.bin": b"\x80\x02cposix\nsystem\n."}


def _remote_code(files: Files) -> Files:
    code = f'from pathlib import Path\n\nPath("{RAN}").touch()\nraise SystemExit("remote code was run")\n'.encode()
    mapped = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    return {**_with_config(files, auto_map=mapped), "modeling_own.py": code}


def _oversize(files: Files) -> Files:
    """The header declares 70 thousand million parameters; the bytes are not there."""
    entry = {"dtype": "BF16", "shape": [70_000, 1_000_000], "data_offsets": [0, 140_000_000_000]}
    text = json.dumps({"model.embed_tokens.weight": entry}).encode()
    return {**files, "model.safetensors": struct.pack("<Q", len(text)) + text + b"\0" * 4096}


def _truncated(files: Files) -> Files:
    data = files["model.safetensors"]
    return {**files, "model.safetensors": data[: len(data) * 6 // 10]}


def _header_bomb(files: Files) -> Files:
    """The header's length is 2^60 bytes."""
    return {**files, "model.safetensors": struct.pack("<Q", 2**60) + files["model.safetensors"][8:]}


def _absent_shards(files: Files) -> Files:
    tensors = unpack(files["model.safetensors"])
    half = dict(list(tensors.items())[: len(tensors) // 2])
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = {"metadata": {"total_size": 1}, "weight_map": {name: first if name in half else second for name in tensors}}
    return {**_without(files, "model.safetensors"), first: pack(half), "model.safetensors.index.json": _json(index)}


def _deep_config(files: Files) -> Files:
    return {**_with_card(files), "config.json": b'{"a":' * 50_000 + b"1" + b"}" * 50_000}


def _unknown_architecture(files: Files) -> Files:
    return _with_config(files, architectures=["NoSuchForCausalLM"], model_type="no-such")


def _quantized(files: Files) -> Files:
    return _with_card(files, base_model="good/llama-2", base_model_relation="quantized")


def _template_bomb(files: Files) -> Files:
    """Rendered, it would run for days. The gate tries it under limits before a card tells anybody to."""
    bomb = "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endfor %}"
    return {**files, "chat_template.jinja": bomb.encode()}


def _foreign_tokenizer(files: Files) -> Files:
    """The tokenizer gives numbers for which the model has no embedding: the first 64 rows are all there are."""
    tensors = unpack(files["model.safetensors"])
    rows = {
        name: (dtype, [64, shape[1]], data[: 64 * shape[1] * 2]) if "embed_tokens" in name or "lm_head" in name else (dtype, shape, data)
        for name, (dtype, shape, data) in tensors.items()
    }
    return {**_with_config(files, vocab_size=64), "model.safetensors": pack(rows)}


def _no_offsets(files: Files) -> Files:
    """One tensor's header does not say where its bytes lie."""
    data = files["model.safetensors"]
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    del header[next(name for name in header if name.endswith("down_proj.weight"))]["data_offsets"]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return {**files, "model.safetensors": struct.pack("<Q", len(text)) + text + data[8 + length :]}


@dataclass(frozen=True, kw_only=True)
class Poison:
    """How the files of a one-layer Llama are spoiled, what the hub says of the repository, and what must come of it.

    `expected` is the code of a refusal, the class of a failed job, or the name of the gate's check that fails.
    """

    make: Callable[[Files], Files]
    expected: str
    entry: Mapping[str, object] = field(default_factory=dict)


POISON: dict[str, Poison] = {
    "wrong-shapes": Poison(make=_wrong_shapes, expected="unsupported"),
    "nan-weights": Poison(make=_nan_weights, expected="unstable"),
    "pickle-only": Poison(make=_pickle_only, expected="no_safetensors"),
    "remote-code": Poison(make=_remote_code, expected="remote_code"),
    "gated": Poison(make=dict, expected="gated", entry={"gated": "manual"}),
    "oversize": Poison(make=_oversize, expected="size"),
    "bad-licence": Poison(make=lambda files: _with_card(files, license="cc-by-nc-4.0"), expected="license"),
    "no-licence": Poison(make=lambda files: _with_card(files, license=None), expected="license"),
    "truncated": Poison(make=_truncated, expected="unsupported"),
    "header-bomb": Poison(make=_header_bomb, expected="size"),
    "traversal": Poison(make=lambda files: {**files, "../../../escaped.json": b"{}\n"}, expected="name"),
    "config-no-json": Poison(make=lambda files: {**_with_card(files), "config.json": b"{not json"}, expected="config"),
    "config-deep": Poison(make=_deep_config, expected="config"),
    "config-list": Poison(make=lambda files: {**_with_card(files), "config.json": b"[1, 2]\n"}, expected="config"),
    "config-types": Poison(make=lambda files: _with_config(files, hidden_size="wide", num_hidden_layers=[1]), expected="config"),
    "config-absurd": Poison(make=lambda files: _with_config(files, vocab_size=10**12, num_hidden_layers=10**9), expected="config"),
    "config-endless": Poison(make=lambda files: _with_config(files, n_inner=10**400), expected="config"),
    "config-negative": Poison(make=lambda files: _with_config(files, n_positions=-5), expected="config"),
    "no-offsets": Poison(make=_no_offsets, expected="unfit"),
    "no-such-architecture": Poison(make=_unknown_architecture, expected="unfit"),
    "no-tokenizer": Poison(make=lambda files: _without(files, "tokenizer.json", "tokenizer_config.json"), expected="no_tokenizer"),
    "broken-tokenizer": Poison(make=lambda files: {**files, "tokenizer.json": b'{"version": "1.0", "model": 7}'}, expected="unsupported"),
    "foreign-tokenizer": Poison(make=_foreign_tokenizer, expected="unsupported"),
    "absent-shards": Poison(make=_absent_shards, expected="size"),
    "template-bomb": Poison(make=_template_bomb, expected="chat_template"),
    "quantized": Poison(make=_quantized, expected="derivative"),
    "adapter": Poison(make=lambda files: {**_with_card(files), "adapter_config.json": b'{"peft_type": "LORA"}'}, expected="derivative"),
}
