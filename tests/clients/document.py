"""docs/requests.md, written from the tables of fields. ``python -m tests.clients.document`` writes it anew."""

from collections.abc import Iterable, Iterator

from api.fields.chat import CHANGES, CHAT_ROWS, TABLES, Surface
from api.fields.others import BATCH_LIST_ROWS, BATCH_ROWS, EMBEDDING_ROWS, FILE_LIST_ROWS, FILE_ROWS
from api.fields.table import Does, Field
from api.schemas.openai import BatchRequest
from api.schemas.requests import JobRequest
from tests.stack import ROOT

DOCUMENT = ROOT / "docs" / "requests.md"

_HEAD = """\
# Request fields

What becomes of each field that a client can send. `tests/clients/document.py` writes this page from the tables in
`api/fields`, which are also what the API reads requests by. The fields of the `openai` package, 1.109 and 3.52, are all
there, with those of other clients that were seen in the field.

- **used**: it does what it does at OpenAI.
- **ignored**: it is accepted with any value, since it changes nothing.
- **refused**: the answer is `422` with the field's name and what to do instead. "Taken for absent" are the values with
  which it changes nothing.

For all of them:

- `null` is the same as absent, at any depth. Only in a JSON Schema nulls are kept.
- A field that is not here is refused by name, so that a misspelt field cannot be overlooked.
- Bodies are JSON as RFC 8259 has it: no `NaN`, no `Infinity`, no integers beyond 64 bits, no key twice in one object,
  no lone surrogates, no U+0000, at most 32 levels and 1,000 keys in an object. What is wrong is told with its field.

## Chat completions

The same table serves `POST /v1/chat/completions`, `POST /v1/jobs`, the lines of batch files and the forms of
`POST /v1/batches/upload`, but for what is told below. `messages[].content` is the `content` of each message.
"""

_LINES = """\
## Lines of a batch file that are refused

A line whose request would be refused as one of its own fails alone, as at OpenAI. It counts as `failed` from the
beginning, reserves and costs nothing, and the batch's error file has it with its `custom_id`, the status and the error
that the request alone would have had:

```json
{"id": "batch_req_..._2", "custom_id": "r2", "error": null,
 "response": {"status_code": 422, "request_id": "req_..._2", "body": {"error": {"code": "validation_failed",
  "message": "n: There is one answer to a request; send it as often as you want answers.", "param": "n",
  "type": "invalid_request_error"}}}}
```

`POST /v1/batches/<id>/retry` leaves such lines as they are: they would be refused again. They are no jobs, so
`GET /v1/jobs?batch_id=` does not list them.

The whole file fails, and nothing of it runs, where a line cannot be told from others or is not one of this batch:

- it is not JSON, not an object, not UTF-8, or longer than 4 MiB
- its `custom_id` is missing, not a string, longer than 512 characters, or also that of another line
- its `method` is not `POST`, its `url` is not the batch's endpoint, or its `body` is not an object
- the file has no line at all, or more than 1,000,000
- every line is refused

The batch is then `failed`, and `errors` has the problems of all lines, the first hundred with their lines.
"""


def document() -> str:
    """The document."""
    return "\n".join(_parts()) + "\n"


def _parts() -> Iterator[str]:
    yield _HEAD
    yield from _table(row for row in CHAT_ROWS if not row.seen_in)
    yield "\n### Of other clients\n"
    yield "Fields that OpenAI's clients do not have, and who sends them.\n"
    yield from _table((row for row in CHAT_ROWS if row.seen_in), seen_in=True)
    yield "\n### Headrace's own\n"
    yield "As `extra_body` of OpenAI's client.\n"
    yield from _own()
    yield "\n### Where a way in differs\n"
    yield "| way in | field | | |\n|---|---|---|---|"
    for surface, rows in CHANGES.items():
        yield from (f"| {surface.value} | {_cells(row)} |" for row in rows)
    yield "\n## Embeddings\n"
    yield "The same for the lines of a batch of embeddings, but that `user` is sent with the batch.\n"
    yield from _table(EMBEDDING_ROWS, seen_in=True)
    yield "\n## Files\n\n`POST /v1/files`, a form, with names such as `expires_after[seconds]`:\n"
    yield from _table(FILE_ROWS)
    yield "\n`GET /v1/files`, in the query:\n"
    yield from _table(FILE_LIST_ROWS)
    yield "\n## Batches\n\n`POST /v1/batches`:\n"
    yield from _table(BATCH_ROWS)
    known = {row.path for row in BATCH_ROWS}
    own = ", ".join(f"`{name}`" for name in BatchRequest.model_fields if name not in known)
    yield f"\nHeadrace's own: {own}, as told in [batches](batches.md).\n"
    yield "`GET /v1/batches`, in the query:\n"
    yield from _table(BATCH_LIST_ROWS)
    yield f"\n{_LINES.rstrip()}"


def _table(rows: Iterable[Field], *, seen_in: bool = False) -> Iterator[str]:
    yield "| field | | | sent by |\n|---|---|---|---|" if seen_in else "| field | | |\n|---|---|---|"
    for row in rows:
        yield f"| {_cells(row)} | {row.seen_in} |" if seen_in else f"| {_cells(row)} |"


def _cells(row: Field) -> str:
    neutral = ", ".join(f"`{_json(value)}`" for value in row.neutral)
    taken = f"Taken for absent: {neutral}." if neutral and row.does is Does.REFUSED else ""
    return f"`{row.path}` | {row.does.value} | {' '.join(filter(None, (row.note, taken)))}"


def _json(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("'", '"') if not isinstance(value, str) else f'"{value}"'


def _own() -> Iterator[str]:
    yield "| field | | |\n|---|---|---|"
    table = TABLES[Surface.CHAT]
    for name, field in JobRequest.model_fields.items():
        if name not in table:
            yield f"| `{name}` | used | {field.description or ''} |"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
