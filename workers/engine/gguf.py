"""What the header of a GGUF file says of its model, read without the native library.

The native loader trusts a file more than it should: it may end the process over a header that lies. So the header is
read here first, within bounds: every length is compared with what is left of the file before anything is read, and
the tensors must lie within it. Source: ggml's specification of the format, versions 2 and 3.
"""

import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from workers.engine.errors import ModelError
from workers.engine.ggml import BLOCKS, FILE_TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_MAX_HEADER = 128 << 20
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_KEY = 1 << 16
_MAX_TEXT = 16 << 20
_MAX_ITEMS = 1 << 22
_MAX_DIMENSIONS = 4
_KEPT_ITEMS = 1024
"""Longer arrays belong to the vocabulary; they are passed over."""

_STRING, _ARRAY = 8, 9
_SCALARS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}
_KV_BYTES = 2  # keys and values are kept as 16-bit floats

Value = str | int | float | bool | list["Value"] | None


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A GGUF file that is whole, as its header describes it; sizes in bytes, None where it does not say."""

    path: Path
    size_bytes: int
    architecture: str
    quantization: str
    context_length: int | None
    layers: int
    kv_heads: tuple[int, ...]
    """Heads of keys and values in each layer."""

    key_length: int
    value_length: int

    @property
    def bytes_per_cell(self) -> int:
        """What one token takes in the KV cache over all layers; 0 when the header does not tell."""
        return sum(self.kv_heads) * (self.key_length + self.value_length) * _KV_BYTES


def read_model_file(path: Path) -> ModelFile:
    """Read and check a file's header. Raises ModelError, saying what is wrong with the file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _Reader(file, path, size).read()
    except FileNotFoundError:
        raise ModelError(f"there is no model file {path}") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a directory, not a model file") from None
    except OSError as error:
        raise ModelError(f"cannot read the model file {path}: {error.strerror}") from error


class _Reader:
    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self._size = size
        self._order = "<"
        self._at = 0

    def read(self) -> ModelFile:
        version = self._version()
        if version not in VERSIONS:
            raise self._wrong(f"is of GGUF version {version}, which this version of Headrace does not know")
        tensors, keys = self._count(_MAX_TENSORS, "tensors"), self._count(_MAX_KEYS, "metadata keys")
        metadata = dict(self._pair() for _ in range(keys))
        if not tensors:
            raise self._wrong("has a vocabulary and no weights")
        if _whole(metadata, "split.count") > 1:
            raise self._wrong("is one part of a split model; merge the parts into one file")
        kinds = self._tensors(tensors, _whole(metadata, "general.alignment") or 32)
        return _describe(self._path, self._size, metadata, kinds)

    def _version(self) -> int:
        if self._size < len(MAGIC) or self._take(len(MAGIC)) != MAGIC:
            raise self._wrong("is not a GGUF file")
        version = int(self._number("I"))
        if version & 0xFFFF == 0:
            raise self._wrong("is written for machines of the other byte order")
        return version

    def _tensors(self, count: int, alignment: int) -> Counter[int]:
        """Read the tensor table; every tensor must end within the file. Bytes by type."""
        if alignment % 8 or alignment > 1 << 20:
            raise self._wrong(f"has an impossible alignment of {alignment} bytes")
        tensors = [self._tensor() for _ in range(count)]
        begin = -(-self._at // alignment) * alignment
        kinds: Counter[int] = Counter()
        for name, kind, weights, offset in tensors:
            per_block, block = BLOCKS.get(kind, (max(1, weights), 0))  # of an unknown type: only its beginning
            stored = -(-weights // per_block) * block
            if begin + offset + stored > self._size:
                need = begin + offset + stored
                raise self._wrong(f"is cut off: it has {self._size} bytes and tensor {name!r} ends at {need}")
            kinds[kind] += stored
        return kinds

    def _tensor(self) -> tuple[str, int, int, int]:
        name = self._text(_MAX_KEY)
        dimensions = int(self._number("I"))
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._wrong(f"gives tensor {name!r} {dimensions} dimensions")
        weights = prod(int(self._number("Q")) for _ in range(dimensions))
        return name, int(self._number("I")), weights, int(self._number("Q"))

    def _pair(self) -> tuple[str, Value]:
        key = self._text(_MAX_KEY)
        return key, self._value(int(self._number("I")), key)

    def _value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self._text(_MAX_TEXT)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._wrong(f"has a value of unknown type {kind} under {key!r}")
        return self._number(_SCALARS[kind])

    def _array(self, key: str) -> Value:
        kind, count = int(self._number("I")), self._count(_MAX_ITEMS, f"items under {key!r}")
        if kind == _ARRAY:
            raise self._wrong(f"has arrays within an array under {key!r}")
        if count <= _KEPT_ITEMS:
            return [self._value(kind, key) for _ in range(count)]
        if kind == _STRING:
            for _ in range(count):
                self._skip(self._length(_MAX_TEXT))
        elif kind in _SCALARS:
            self._skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
        else:
            raise self._wrong(f"has values of unknown type {kind} under {key!r}")
        return None

    def _count(self, most: int, of: str) -> int:
        count = int(self._number("Q"))
        if count > most:
            raise self._wrong(f"claims to have {count} {of}")
        return count

    def _length(self, most: int) -> int:
        length = int(self._number("Q"))
        if length > most:
            raise self._wrong(f"claims to have a text of {length} bytes in its header")
        return length

    def _text(self, most: int) -> str:
        return self._take(self._length(most)).decode(errors="replace")

    def _number(self, code: str) -> int | float | bool:
        form = _FORMS[code]
        (number,) = form.unpack(self._take(form.size))
        value: int | float | bool = number
        return value

    def _take(self, length: int) -> bytes:
        self._advance(length)
        taken = self._file.read(length)
        if len(taken) != length:
            raise self._wrong("is cut off within its header")
        return taken

    def _skip(self, length: int) -> None:
        self._advance(length)
        self._file.seek(length, os.SEEK_CUR)

    def _advance(self, length: int) -> None:
        self._at += length
        if self._at > self._size:
            raise self._wrong("is cut off within its header")
        if self._at > _MAX_HEADER:
            raise self._wrong(f"has a header of more than {_MAX_HEADER >> 20} MiB")

    def _wrong(self, what: str) -> ModelError:
        return ModelError(f"the model file {self._path} {what}")


_FORMS = {code: struct.Struct(f"<{code}") for code in _SCALARS.values()}


def _describe(path: Path, size: int, metadata: Mapping[str, Value], kinds: Counter[int]) -> ModelFile:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ModelError(f"the model file {path} does not say its architecture")

    def whole(key: str) -> int:
        return _whole(metadata, f"{architecture}.{key}")

    heads, layers = whole("attention.head_count"), whole("block_count")
    head_size = whole("embedding_length") // heads if heads else 0
    return ModelFile(
        path=path,
        size_bytes=size,
        architecture=architecture,
        quantization=_quantization(metadata, kinds),
        context_length=whole("context_length") or None,
        layers=layers,
        kv_heads=_kv_heads(metadata.get(f"{architecture}.attention.head_count_kv"), layers, heads),
        key_length=whole("attention.key_length") or head_size,
        value_length=whole("attention.value_length") or head_size,
    )


def _kv_heads(stated: Value, layers: int, heads: int) -> tuple[int, ...]:
    if isinstance(stated, list):
        return tuple(item for item in stated if isinstance(item, int))
    layers = min(layers, _KEPT_ITEMS)
    return (stated if isinstance(stated, int) and stated > 0 else heads,) * layers


def _quantization(metadata: Mapping[str, Value], kinds: Counter[int]) -> str:
    stated = metadata.get("general.file_type")
    if isinstance(stated, int) and stated in FILE_TYPES:
        return FILE_TYPES[stated]
    return f"type {kinds.most_common(1)[0][0]}"


def _whole(metadata: Mapping[str, Value], key: str) -> int:
    value = metadata.get(key)
    return max(0, value) if isinstance(value, int) else 0
