"""The tables of docs/providers.md that are the readers' own. ``python -m tests.workers.providers.test_documents``
writes them."""

from collections.abc import Iterable, Iterator

from tests.stack import ROOT
from workers.providers.contentparts import PART_TYPES, REASONING_FIELDS, Kind
from workers.providers.errorbodies import ERROR_FORMS
from workers.providers.finishreasons import REASONS, Finish
from workers.providers.usagecounts import CACHED, INPUT, OUTPUT, REASONING, USAGE_PLACES, UsageField

DOCUMENT = ROOT / "docs" / "providers.md"
BEGIN, END = "<!-- tables of the readers: begin -->\n", "<!-- tables of the readers: end -->\n"
MEANINGS = {
    Finish.STOP: "`stop`",
    Finish.LENGTH: "`length`",
    Finish.FILTERED: "`content_filtered`, not retried",
    Finish.FAILED: "`overloaded`, retried; the text so far is booked",
    Finish.OTHER: "`stop` if there is text, else `overloaded`",
}
KINDS = {
    Kind.TEXT: "text of the answer",
    Kind.REASONING: "reasoning: counted, not shown",
    Kind.REFUSAL: "`content_filtered`",
}


def reader_tables() -> str:
    """The tables, from the code that reads by them."""
    return "\n".join(
        [
            "### Finish reasons",
            "",
            "In any letter case, with or without Google's `FINISH_REASON_`. Of two in one answer the worse holds.",
            "A word that is not here is read as those of the last row. Null, an empty text and `null` as a text say",
            "that the answer goes on.",
            "",
            *_table(("means", "`finish_reason`, `native_finish_reason` or `stop_reason`", "said by"), _finish_rows()),
            "",
            "### Errors inside an answer of status 200",
            "",
            "In a whole body, in a list (Google), in an event of a stream, in an event named `error`, inside a choice.",
            "",
            *_table(("form", "sent by"), ((form.form, form.said_by) for form in ERROR_FORMS)),
            "",
            "### Parts of a message",
            "",
            *_table(("`content` has a part of type", "with its text in", "which is", "sent by"), _part_rows()),
            "",
            *_table(
                ("reasoning beside `content` is in", "sent by"),
                ((f"`{field.name}`", field.said_by) for field in REASONING_FIELDS),
            ),
            "",
            "`<think>` within a text stays there: set the server's reasoning parser to have it apart.",
            "",
            "### Usage",
            "",
            *_table(("what", "is in", "sent by"), _usage_rows()),
        ]
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _finish_rows() -> Iterator[tuple[str, ...]]:
    for finish, meaning in MEANINGS.items():
        groups: dict[str, list[str]] = {}
        for reason in REASONS:
            if reason.finish is finish:
                groups.setdefault(reason.said_by, []).append(f"`{reason.word}`")
        for said_by, words in groups.items():
            yield meaning, ", ".join(words), said_by


def _part_rows() -> Iterator[tuple[str, ...]]:
    for part in PART_TYPES:
        yield f"`{part.name}`", f"`{part.field}`", KINDS[part.kind], part.said_by


def _usage_rows() -> Iterator[tuple[str, ...]]:
    groups: dict[str, tuple[UsageField, ...]] = {
        "the usage object": USAGE_PLACES,
        "input tokens": INPUT,
        "output tokens": OUTPUT,
        "cached input tokens": CACHED,
        "reasoning tokens": REASONING,
    }
    for what, fields in groups.items():
        for field in fields:
            yield what, f"`{'.'.join(field.path)}`", field.said_by


def with_tables(text: str) -> str:
    """The document with the tables between their marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{reader_tables()}\n\n{END}{after}"


def test_the_document_has_the_readers_own_tables() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert BEGIN in text
    assert text == with_tables(text)


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
