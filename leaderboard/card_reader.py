"""A model card read back as what it claims: metadata, title, numbers and names in words, its table of files. Nothing is believed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hub.local.cards import CardError, front_matter, parse, texts

MAX_CARD = 4 << 20
_KEY = re.compile(r"^([A-Za-z_][\w-]{0,60}):(?=\s|$)", re.MULTILINE)
_TITLE = re.compile(r"^# +(.{1,400})$", re.MULTILINE)
_ROW = re.compile(r"^\|(.{1,2000})\|\s*$", re.MULTILINE)
_SHA256 = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_CODE = re.compile(r"`+ ?([^`]{1,400}?) ?`+")
_SIZE = re.compile(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?) ?(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB|bytes)(?!\w)")
_UNITS = {"B": 1, "bytes": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12} | {
    f"{letter}iB": 1024.0**power for power, letter in enumerate("KMGT", start=1)
}
_BITS = re.compile(
    r"(?i)(?<![a-z0-9.])(?:w(\d{1,2})a\d{1,2}|(?:u?int|fp|nf|[mn][xv]fp|bf)(\d{1,2})|(\d{1,2})[- ]?bits?|t?q(\d)(?:_[0-9kslmx]+)+)(?![0-9])"
)
_COUNT = re.compile(r"(?<![A-Z0-9.x])(\d{1,4}(?:\.\d{1,3})?)([MBmb])(?![A-Za-z0-9])")  # 128k is a context, A3B and 8x7B a part
_REPOSITORY = re.compile(r"""(?:from_pretrained\(\s*["']|hf download +|huggingface-cli download +)([\w.-]{1,96}/[\w.-]{1,96})""")
_FORMAT = re.compile(r"(?i)(?<![a-z0-9])(gptq|awq|bitsandbytes|bnb|gguf|compressed-tensors|torchao|onnx|openvino|mlx|exl[23])(?![a-z0-9])")


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """A row of a table that names a file with its SHA-256 and, in bytes, the least and most that its stated size may stand for."""

    path: str
    sha256: str
    size: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class CardClaims:
    """A card as it was read: `data` is the front matter; `fault` says why that could not be read, and then it is empty."""

    text: str
    data: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""
    title: str = ""

    def strings(self, key: str) -> list[str]:
        """Return a value of the front matter as a list of texts."""
        return texts(self.data.get(key))

    @property
    def rows(self) -> list[FileRow]:
        """The table of files, wherever it stands."""
        return [row for match in _ROW.finditer(self.text) if (row := _file_row(match.group(1)))]

    @property
    def repositories(self) -> list[str]:
        """The repositories that the card's commands load or download, each once."""
        return list(dict.fromkeys(_REPOSITORY.findall(self.text)))

    @property
    def index_names(self) -> list[str]:
        """The names under `model-index`."""
        index = self.data.get("model-index")
        return [str(entry["name"]) for entry in index if isinstance(entry, dict) and "name" in entry] if isinstance(index, list) else []


def read(card: str) -> CardClaims:
    """Read a card with limits (size, depth, no aliases), then as huggingface_hub's `ModelCard` does."""
    if len(card) > MAX_CARD:
        return CardClaims(text=card[:MAX_CARD], fault=f"the card has {len(card)} characters; at most {MAX_CARD} are read")
    title = _TITLE.search(re.sub(r"\A---\n.*?\n---\n", "", card, count=1, flags=re.DOTALL))
    named = title.group(1).strip() if title else ""
    try:
        data = parse(card)
        if twice := [key for key, count in Counter(_KEY.findall(front_matter(card) or "")).items() if count > 1]:
            raise CardError(f"the key {twice[0]} stands there twice, and readers differ in which one they take")
        if data:
            from huggingface_hub import ModelCardData

            ModelCardData(**data, ignore_metadata_errors=False)  # raises where model-index is not one
    except (CardError, ValueError, TypeError, KeyError, AttributeError) as error:
        return CardClaims(text=card, title=named, fault=" ".join(str(error).split())[:300] or type(error).__name__)
    return CardClaims(text=card, data=data, title=named)


def _file_row(row: str) -> FileRow | None:
    digest, name = _SHA256.search(row), _CODE.search(row)
    if digest is None or name is None or _SHA256.search(name.group(1)):
        return None
    return FileRow(path=name.group(1), sha256=digest.group(), size=_size(row))


def _size(words: str) -> tuple[float, float] | None:
    found = _SIZE.search(words)
    if found is None:
        return None
    digits = found.group(1).replace(",", "")
    unit = _UNITS[found.group(2)]
    step = unit * 10.0 ** -len(digits.partition(".")[2]) if unit > 1 else 0.0
    value = float(digits) * unit
    return value - step, value + step


def bits_in(words: Iterable[str]) -> dict[int, str]:
    """Return the bits of a weight that some words claim (W4A16, 4-bit, INT4, NF4, FP8, Q4_K_M), each with the words that do."""
    found: dict[int, str] = {}
    for match in _BITS.finditer(" ".join(words).replace("_bit", "-bit")):
        found.setdefault(int(next(group for group in match.groups() if group)), match.group())
    return found


def formats_in(words: Iterable[str]) -> list[str]:
    """Return the formats that some words name, in lower case, each once; `bnb` is bitsandbytes."""
    named = (name.lower() for name in _FORMAT.findall(" ".join(words)))
    return list(dict.fromkeys("bitsandbytes" if name == "bnb" else name for name in named))


def counts_in(words: Iterable[str]) -> list[tuple[str, float]]:
    """Return the numbers of parameters that some words claim (135M, 1.1B), each with its words."""
    scale = {"m": 1e6, "b": 1e9}
    return [(number + letter, float(number) * scale[letter.lower()]) for number, letter in _COUNT.findall(" ".join(words))]
