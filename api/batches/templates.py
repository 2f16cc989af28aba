"""Prompt templates: text with ``{{column}}`` in it, and nothing else.

A name may have spaces within and around it. ``{{{{`` stands for two braces of text. There is no other syntax, so a
template computes nothing and cannot be made to.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.bodies import shorten

_PIECE = re.compile(r"\{\{\{\{|\{\{([^{}]*)\}\}")


class TemplateProblem(ValueError):
    """What is wrong with a template, as a sentence."""


@dataclass(frozen=True, slots=True)
class Template:
    """A template for the cells of a row: its texts and, between them, the places of columns, counted from 0."""

    parts: tuple[str | int, ...]

    @property
    def places(self) -> tuple[int, ...]:
        """The places of the columns that it shows, in the order that it does."""
        return tuple(part for part in self.parts if isinstance(part, int))

    @property
    def text(self) -> str:
        """All of its own text."""
        return "".join(part for part in self.parts if isinstance(part, str))

    def render(self, cells: Sequence[str]) -> str:
        """The text that a row makes of it."""
        return "".join([part if isinstance(part, str) else cells[part] for part in self.parts])

    def as_stored(self) -> list[dict[str, str | int]]:
        """As ``batches.template`` keeps it."""
        return [{"text": part} if isinstance(part, str) else {"column": part} for part in self.parts]


def compile_template(text: str, columns: Sequence[str]) -> Template:
    """A template for rows with these columns; raises TemplateProblem."""
    places: Mapping[str, int] = {name: place for place, name in enumerate(columns)}
    parts: list[str | int] = []
    end = 0
    for piece in _PIECE.finditer(text):
        _add_text(parts, _literal(text[end : piece.start()]))
        end = piece.end()
        if piece[1] is None:
            _add_text(parts, "{{")
            continue
        name = piece[1].strip()
        if name not in places:
            raise TemplateProblem(f"There is no column {shorten(name)!r}. {_the_columns(columns)}")
        parts.append(places[name])
    _add_text(parts, _literal(text[end:]))
    return Template(tuple(parts))


def _literal(text: str) -> str:
    if "{{" in text:
        at = text.index("{{")
        raise TemplateProblem(
            f"{shorten(text[at:], 20)!r} is not a {{{{column}}}}; write {{{{{{{{ for two braces of text."
        )
    return text


def _add_text(parts: list[str | int], text: str) -> None:
    if not text:
        return
    if parts and isinstance(last := parts[-1], str):
        parts[-1] = last + text
    else:
        parts.append(text)


def _the_columns(columns: Sequence[str]) -> str:
    return f"The columns are {shorten(', '.join(map(repr, columns)), 300)}."
