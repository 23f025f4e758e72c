"""A dense GGUF file of a Hugging Face checkpoint, by llama.cpp's own converter, a tensor at a time.

The converter is no package of its own; auto-round ships it unchanged, as `auto_round/export/export_to_gguf/conversion`. It is loaded
from there under a name of its own: importing auto-round itself would take ten seconds and change nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hub.errors import BadCheckpoint, Unavailable, UnfitModel
from runners import failures
from runners.checkpoint import read_config

_NAME = "llama_cpp_conversion"
_FILE_TYPES = {"BF16": "MOSTLY_BF16", "F16": "MOSTLY_F16"}


def _converter() -> ModuleType:
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    found = importlib.util.find_spec("auto_round")
    roots = list(found.submodule_search_locations or ()) if found else []
    places = [place for root in roots if (place := Path(root, "export", "export_to_gguf", "conversion")).is_dir()]
    spec = places and importlib.util.spec_from_file_location(_NAME, places[0] / "__init__.py", submodule_search_locations=[str(places[0])])
    if not spec or not spec.loader:
        raise Unavailable("The installed auto-round holds no llama.cpp converter.", hint="pip install 'auto-round==0.15.1'")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


def _class_of(architecture: str) -> Any:
    module = _converter()
    _import(f"{_NAME}.{module.TEXT_MODEL_MAP[architecture]}")
    return module.ModelBase._model_classes[module.ModelType.TEXT][architecture]


def _import(name: str) -> None:
    """Import a file of the converter; models that it knows and the gguf package not yet get a name that stands for none."""
    import gguf

    while True:
        try:
            importlib.import_module(name)
            return
        except AttributeError as error:
            family = str(error.name)
            if error.obj is not gguf.MODEL_ARCH or hasattr(gguf.MODEL_ARCH, family):
                raise
            setattr(gguf.MODEL_ARCH, family, None)


def write(source: Path, target: Path, *, dtype: str, scratch: Path) -> None:
    """Write the dense checkpoint `source` as `target`, matrices in the safetensors dtype `dtype`, vectors in float32.

    Nothing in the file tells where `source` lay. `scratch` is an empty folder. Raises `UnfitModel` for a tokenizer llama.cpp has no
    word for, `BadCheckpoint` where the converter fails.
    """
    import gguf
    import torch

    config = read_config(source)
    architecture = str(config["architectures"][0])
    base = _class_of(architecture)
    members = {
        "model_arch": base.model_arch,
        "get_vocab_base_pre": _pre_tokenizer(base, source),
        "_set_vocab_llama_hf": _scored(base, source),
    }
    kind = type(base.__name__, (base,), members)
    file_type = getattr(gguf.LlamaFileType, _FILE_TYPES.get(dtype, "ALL_F32"))
    # transformers no longer writes n_ctx, which the converter takes GPT-2's context from.
    settings = {"n_ctx": config.get("n_positions"), **config}
    try:
        with torch.inference_mode():
            made = kind(source, file_type, target, model_name=architecture, hparams=settings)
            made.dir_model_card = scratch  # no words of a README, which later steps of a recipe do not have
            made.write()
    except (UnfitModel, MemoryError, OSError):
        raise
    except Exception as error:  # the converter raises whatever its parts raise
        raise BadCheckpoint(
            f"llama.cpp's converter fails on {architecture}: {type(error).__name__}: {failures.one_line(error)}",
            hint="Use a recipe of another format for this model.",
        ) from error


def _pre_tokenizer(base: Any, source: Path) -> Any:
    """The converter knows published tokenizers by a hash; one that cuts text as GPT-2's does is called that, whatever its words."""

    def named(self: Any, tokenizer: Any) -> str:
        try:
            return str(base.get_vocab_base_pre(self, tokenizer))
        except NotImplementedError:
            if _as_gpt2(_tokenizer_json(source).get("pre_tokenizer")):
                return "gpt-2"
            raise UnfitModel(
                "llama.cpp has no name for the way in which this model's tokenizer cuts text into words.",
                hint="Use a recipe of another format for this model.",
            ) from None

    return named


def _as_gpt2(settings: Any) -> bool:
    wanted = {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}
    return isinstance(settings, dict) and all(settings.get(key) == value for key, value in wanted.items())


def _scored(base: Any, source: Path) -> Any:
    """The converter gives all tokens of a tokenizer.json the same score; llama.cpp needs them to merge in the right order."""

    def scored(self: Any) -> None:
        base._set_vocab_llama_hf(self)
        rank: dict[str, float] = {}
        for place, pair in enumerate(_tokenizer_json(source)["model"]["merges"]):
            left, right = pair if isinstance(pair, list) else pair.split(" ", 1)
            rank.setdefault(left + right, -float(place + 1))
        values = self.gguf_writer.kv_data[-1]
        tokens, scores = values["tokenizer.ggml.tokens"].value, values["tokenizer.ggml.scores"].value
        texts = (token.decode("utf-8", errors="replace") if isinstance(token, bytes) else str(token) for token in tokens)
        values["tokenizer.ggml.scores"].value = [rank.get(text, score) for text, score in zip(texts, scores, strict=True)]

    return scored


def _tokenizer_json(source: Path) -> dict[str, Any]:
    path = source / "tokenizer.json"
    if not path.is_file():
        raise UnfitModel("The model has no tokenizer.json to read its merges from.", hint="Use a recipe of another format for this model.")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
