"""Which file serves an LLM: where a catalogue's ``source`` is, and which of its variants fits the memory."""

from collections.abc import Mapping
from pathlib import Path

from models.catalog import LLM, Quantization
from models.errors import ConfigurationError
from models.sources import resolve_source
from workers.engine.errors import ModelError

GIB = 1 << 30
_BY_SIZE: tuple[Quantization, ...] = ("int4", "int8", "f16")
_BELOW: tuple[tuple[Quantization, int], ...] = (("int4", 2 * GIB), ("int8", 4 * GIB))


def variants_of(llm: LLM) -> dict[Quantization | None, Path]:
    """The files of an LLM that are there, by quantization; None for the one file of a plain ``source``.

    Raises ModelError when there is none, naming what is missing.
    """
    named: list[tuple[Quantization | None, str]] = [*llm.sources.items()]
    if llm.source is not None:
        named = [(None, llm.source)]
    found: dict[Quantization | None, Path] = {}
    problems = []
    for quantization, source in named:
        try:
            found[quantization] = resolve_source(source)
        except ConfigurationError as error:
            problems.append(str(error))
    if not found:
        raise ModelError("; ".join(problems) or "the catalogue names no model file")
    return found


def choose_variant(available_bytes: int, sizes: Mapping[Quantization, int], room_bytes: int) -> Quantization | None:
    """The variant for so much free memory, by the bytes that each takes; None when none fits into the room.

    Below 2 GiB it is int4, below 4 GiB int8, else f16. Where the preferred variant is not there or does not fit, the
    next smaller one is taken, else the next larger.
    """
    preferred = next((name for name, below in _BELOW if available_bytes < below), "f16")
    place = _BY_SIZE.index(preferred)
    in_turn = (*reversed(_BY_SIZE[: place + 1]), *_BY_SIZE[place + 1 :])
    return next((name for name in in_turn if name in sizes and sizes[name] <= room_bytes), None)
