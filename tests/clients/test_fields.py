"""Every field that OpenAI's clients can send has a row in the table of fields, and each row does what it says.

The lists of fields are facts of the packages, written by ``tests/clients/fields.py``.
"""

from collections.abc import Mapping
from pathlib import Path

import openai
import pytest

from api.fields.chat import CHAT_ROWS, TABLES, Surface
from api.fields.others import (
    BATCH_LIST_TABLE,
    BATCH_TABLE,
    EMBEDDING_TABLE,
    FILE_LIST_TABLE,
    FILE_TABLE,
)
from api.fields.table import Does, Field, Table
from tests.clients.document import DOCUMENT, document
from tests.clients.fields import ENDPOINTS, fields_of

HERE = Path(__file__).parent
TABLE_OF: Mapping[str, Table] = {
    "POST /v1/chat/completions": TABLES[Surface.CHAT],
    "POST /v1/embeddings": EMBEDDING_TABLE,
    "POST /v1/files": FILE_TABLE,
    "GET /v1/files": FILE_LIST_TABLE,
    "POST /v1/batches": BATCH_TABLE,
    "GET /v1/batches": BATCH_LIST_TABLE,
}


def listed(version: str) -> dict[str, set[str]]:
    """The fields of a version of the package by its list: those of each endpoint."""
    text = (HERE / f"openai-{version}.txt").read_text(encoding="utf-8")
    sections = [section.splitlines() for section in text.split("\n## ")[1:]]
    return {title: {line for line in lines if line} for title, *lines in sections}


def row_for(table: Table, path: str) -> Field | None:
    """The row that decides about a path: its own, or that of an object around it which is not looked into.

    An object that is used is looked into, so each of its fields needs a row, and each kind of a list's objects.
    """
    whole = path
    while path not in table:
        path, dot, _ = path.rpartition(".")
        path = path.removesuffix("[]")
        if not dot:
            return None
    row = table[path]
    return row if path == whole or row.does is not Does.USED or row.verbatim else None


def without_row(fields: Mapping[str, set[str]]) -> list[str]:
    """The fields that the tables do not have."""
    return sorted(
        f"{endpoint} {path}"
        for endpoint in fields
        for path in fields[endpoint]
        if not row_for(TABLE_OF[endpoint], path)
    )


@pytest.mark.parametrize("version", sorted(path.stem.removeprefix("openai-") for path in HERE.glob("openai-*.txt")))
def test_every_field_of_a_listed_client_has_a_row(version: str) -> None:
    assert without_row(listed(version)) == []


def test_every_field_of_the_installed_client_has_a_row() -> None:
    assert without_row({endpoint: fields_of(kinds) for endpoint, kinds in ENDPOINTS.items()}) == []


def test_a_new_field_of_a_client_is_told_by_its_name() -> None:
    new = {"messages[].content[].colour", "messages[].role=robot", "telepathy", "response_format.shape"}
    known = {"tools[].function.colour", "response_format.json_schema.schema.x", "audio.voice.id"}
    told = [path.split(" ")[-1] for path in without_row({"POST /v1/chat/completions": new | known})]
    assert told == sorted(new)


def test_the_list_of_the_installed_version_is_as_the_package_is() -> None:
    newest = listed(openai.__version__)
    assert newest == {endpoint: fields_of(kinds) for endpoint, kinds in ENDPOINTS.items()}


def test_every_row_of_a_field_that_is_not_used_says_why() -> None:
    assert [row.path for row in CHAT_ROWS if row.does is not Does.USED and not row.note] == []


def test_no_two_rows_are_of_the_same_field() -> None:
    paths = [row.path for row in CHAT_ROWS]
    assert sorted(paths) == sorted(set(paths))


def test_the_document_of_the_fields_is_that_of_the_tables() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document()
