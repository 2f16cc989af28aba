"""The requests that arrive at no handler, or are refused before it, each with its answer: one table for the tests and
for docs/refusals.md.

    python -m tests.api.refusals     writes the document
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from api.app import create_app
from api.hints import FOREIGN, Paths
from api.settings import ApiSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "refusals.md"
KEY = "Send your API key as `Authorization: Bearer hr_...`"
BASE_URL = "The base_url of an OpenAI client ends in `/v1`, once."
ALL = (
    "OpenAI's endpoints here are /v1/chat/completions, /v1/embeddings, /v1/models, /v1/files and /v1/batches;"
    " GET /openapi.json lists all paths."
)
FORM = "application/x-www-form-urlencoded"
FILE = "multipart/form-data, with the file in the field `file`"
MODELS = "there are auto, small, large, tiny, wide, alone."


@dataclass(frozen=True)
class Row:
    """A request and the ``detail`` of its answer; ``seen``: public threads of people who sent such a request.

    ``authorization``: None for the tenant's own key, "" for none at all.
    """

    what: str
    request: str
    says: str
    status: int = 404
    code: str = "not_found"
    authorization: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: str = ""
    seen: str = ""


def _json(content: str) -> dict[str, str]:
    return {"content-type": "application/json"} if content else {}


ADDRESSES = (
    Row(
        "a base_url without `/v1`",
        "POST /chat/completions",
        f"There is nothing at /chat/completions; it is POST /v1/chat/completions. {BASE_URL}",
        seen="BadgerHobbs/OpenAI-API-Gateway#1, siyuan-note/siyuan#7731, tsundereraws/aisub-translator#2",
    ),
    Row(
        "the same, for models",
        "GET /models",
        f"There is nothing at /models; it is GET /v1/models. {BASE_URL}",
        seen="huggingface/chat-ui#2556",
    ),
    Row(
        "`/v1` twice",
        "POST /v1/v1/chat/completions",
        f"There is nothing at /v1/v1/chat/completions; it is POST /v1/chat/completions. {BASE_URL}",
        seen="OtterMind/Chat2DB#1888",
    ),
    Row(
        "an endpoint's path as base_url",
        "POST /v1/chat/completions/chat/completions",
        f"There is nothing at /v1/chat/completions/chat/completions; it is POST /v1/chat/completions. {BASE_URL}",
        seen="harry0703/MoneyPrinterTurbo#57",
    ),
    Row(
        "another prefix",
        "GET /api/v1/models",
        f"There is nothing at /api/v1/models; it is GET /v1/models. {BASE_URL}",
        seen="cline/cline#926",
    ),
    Row(
        "a prefix and another version",
        "POST /v1beta/openai/embeddings",
        f"There is nothing at /v1beta/openai/embeddings; it is POST /v1/embeddings. {BASE_URL}",
        seen="QuantumNous/new-api#853",
    ),
    Row(
        "a slash at the end",
        "POST /v1/chat/completions/",
        "There is nothing at /v1/chat/completions/; the path is /v1/chat/completions, without the other slashes.",
        seen="sigoden/aichat#767",
    ),
    Row(
        "a slash at the end, for models",
        "GET /v1/models/",
        "There is nothing at /v1/models/; the path is /v1/models, without the other slashes.",
    ),
    Row(
        "two slashes",
        "POST /v1//chat/completions",
        "There is nothing at /v1//chat/completions; the path is /v1/chat/completions, without the other slashes.",
        seen="sigoden/aichat#767",
    ),
    Row("capitals", "GET /V1/Models", f"There is nothing at /V1/Models; it is GET /v1/models. {BASE_URL}"),
    Row("`/v1` where there is none", "GET /v1/health", "There is nothing at /v1/health; it is GET /health."),
    Row("what is nowhere", "GET /nothing", f"There is nothing at /nothing. {ALL}"),
    Row("`/v1` alone", "GET /v1", f"There is nothing at /v1. {ALL}"),
)

METHODS = (
    Row(
        "GET where a body is wanted, as a browser sends it",
        "GET /v1/chat/completions",
        "GET is not possible at /v1/chat/completions; it takes POST.",
        405,
        "method_not_allowed",
    ),
    Row(
        "POST where something is read",
        "POST /v1/models",
        "POST is not possible at /v1/models; it takes GET.",
        405,
        "method_not_allowed",
    ),
    Row(
        "another method where there are two",
        "DELETE /v1/jobs",
        "DELETE is not possible at /v1/jobs; it takes GET and POST.",
        405,
        "method_not_allowed",
    ),
)

CHAT = '{"model": "%s", "messages": [{"role": "user", "content": "hi"}]}'
NAMES = (
    Row(
        "a model of somebody else's",
        "POST /v1/chat/completions",
        f"There is no LLM or tier 'gpt-4o'; {MODELS}",
        code="model_not_found",
        headers=_json(CHAT),
        content=CHAT % "gpt-4o",
        seen="nanbingxyz/5ire#237",
    ),
    Row(
        "a model's name with a vendor's",
        "POST /v1/chat/completions",
        f"There is no LLM or tier 'openai/Tiny'; {MODELS} Did you mean 'tiny'?",
        code="model_not_found",
        headers=_json(CHAT),
        content=CHAT % "openai/Tiny",
    ),
    Row("the same, read", "GET /v1/models/gpt-4o", f"There is no model 'gpt-4o'; {MODELS}", code="model_not_found"),
    Row(
        "no LLM for embeddings",
        "POST /v1/embeddings",
        "There is no model that makes embeddings 'tiny'; the catalogue has none.",
        code="model_not_found",
        headers=_json(CHAT),
        content='{"model": "tiny", "input": "x"}',
    ),
)

_PLACEHOLDER = f"{KEY}: this is what servers without keys are sent. `headrace keys create` makes a key."
_FOREIGN_KEY = "The API key is of another service: keys of Headrace begin with `hr_`. `headrace keys create` makes one."
_HEADERS = tuple(
    Row(what, "GET /v1/models", says, 401, "invalid_api_key", authorization, headers or {})
    for what, authorization, headers, says in (
        ("no key", "", None, f"{KEY}."),
        ("the key alone", "hr_a_b", None, f"{KEY}: the word `Bearer` and a space are missing before the key."),
        (
            "an empty variable",
            "Bearer ",
            None,
            f"{KEY}: there is no key after `Bearer`; is the variable that holds it set?",
        ),
        (
            "`Bearer` twice",
            "Bearer Bearer hr_a",
            None,
            f"{KEY}: `Bearer` is there twice; give the client the key alone.",
        ),
        ("Basic", "Basic aHI6eA==", None, f"{KEY}, not as a user and a password (Basic)."),
        ("another scheme", "Token hr_a", None, f"{KEY}, not with another scheme than `Bearer`."),
        ("Anthropic's header", "", {"x-api-key": "hr_a"}, f"{KEY}: it came in the header `x-api-key`."),
        ("Azure's header", "", {"api-key": "hr_a"}, f"{KEY}: it came in the header `api-key`."),
        ("Google's header", "", {"x-goog-api-key": "hr_a"}, f"{KEY}: it came in the header `x-goog-api-key`."),
        ("quotation marks", 'Bearer "hr_a"', None, f"{KEY}: there are quotation marks around the key."),
        (
            "a variable that was not replaced",
            "Bearer $HEADRACE_API_KEY",
            None,
            f"{KEY}: a placeholder was sent, not the key that should replace it.",
        ),
        ("`EMPTY`, as for vLLM", "Bearer EMPTY", None, _PLACEHOLDER),
        ("`ollama`", "Bearer ollama", None, _PLACEHOLDER),
        ("OpenAI's key", "Bearer sk-proj-abc", None, _FOREIGN_KEY),
        (
            "some other text",
            "Bearer secret",
            None,
            _FOREIGN_KEY.replace("of another service", "of none that is known"),
        ),
        ("a key of nobody", "Bearer hr_a_b", None, "The API key is unknown, revoked or expired."),
    )
)
KEYS = (
    *_HEADERS,
    Row(
        "the key in the address",
        "GET /v1/models?api_key=hr_a",
        f"{KEY}: it came in the address (`?api_key=`), where logs would keep it.",
        401,
        "invalid_api_key",
        "",
    ),
)

_CURL = (
    "Send the body as application/json: it came as a form, as curl's -d sends it without"
    " -H 'Content-Type: application/json'."
)
_MULTIPART = (
    "Send the body as application/json: it came as a form, which only POST /v1/files and POST /v1/batches/upload take."
)
BODIES = tuple(
    Row(what, request, says, 415, "unsupported_media_type", headers=headers, content="{}")
    for what, request, headers, says in (
        (
            "curl's -d without a header",
            "POST /v1/chat/completions",
            {"content-type": FORM},
            _CURL,
        ),
        (
            "a form",
            "POST /v1/chat/completions",
            {"content-type": "multipart/form-data; boundary=x"},
            _MULTIPART,
        ),
        (
            "text",
            "POST /v1/jobs",
            {"content-type": "text/plain; charset=utf-8"},
            "Send the body as application/json: it came as text/plain.",
        ),
        ("no Content-Type", "POST /v1/jobs", {}, "Send the body as application/json: there is no Content-Type."),
        (
            "JSON where a file is wanted",
            "POST /v1/files",
            {"content-type": "application/json"},
            f"Send the body as {FILE}: it came as application/json.",
        ),
        (
            "a form without its boundary",
            "POST /v1/batches/upload",
            {"content-type": "multipart/form-data"},
            f"Send the body as {FILE}: its Content-Type has no boundary; leave that header to the HTTP client.",
        ),
        (
            "a compressed body",
            "POST /v1/jobs",
            {"content-type": "application/json", "content-encoding": "gzip"},
            "Compressed request bodies are not accepted; send it without Content-Encoding.",
        ),
    )
)


def foreign(paths: Paths) -> tuple[Row, ...]:
    """A row for each endpoint of others."""
    rows = []
    for each in FOREIGN:
        path = each.path.replace("{*}", "chat/completions").replace("{", "").replace("}", "")
        rows.append(Row(each.of, f"{each.method} {path}", paths.not_found(each.method, path)))
    return tuple(rows)


def known_paths() -> Paths:
    """The paths of the app."""
    paths: Paths = create_app(ApiSettings(database_url="postgresql+psycopg://", redis_url="redis://")).state.paths
    return paths


ROWS = (*ADDRESSES, *METHODS, *NAMES, *KEYS, *BODIES)

_HEAD = """# What is refused, and what to send instead

Every refusal is a problem document with OpenAI's `error` object in it: `message`, `type`, `code`, `param`. This page is
made from the table that the tests run (`python -m tests.api.refusals`).

`HEAD` is answered as `GET` is, without the body. `OPTIONS` is answered with `204` and `Allow`, and without any header
of CORS: a page in a browser cannot call Headrace on another origin, since it would have to show its key to everybody.
"""
_SECTIONS: Sequence[tuple[str, str]] = (
    ("Addresses", ""),
    ("Endpoints of others", ""),
    ("Methods", "`Allow` names the methods of the path."),
    ("Models", "At most eight names are told. Here the catalogue has the tiers `small` and `large`."),
    ("Keys", "No answer repeats a key. All are `401` `invalid_api_key`."),
    ("Bodies", "All are `415` `unsupported_media_type`."),
)


def document() -> str:
    """The document."""
    tables = (ADDRESSES, foreign(known_paths()), METHODS, NAMES, KEYS, BODIES)
    parts = [_HEAD]
    for (title, note), rows in zip(_SECTIONS, tables, strict=True):
        parts.append(f"\n## {title}\n")
        if note:
            parts.append(f"\n{note}\n")
        parts.append("\n| | request | answer |\n|---|---|---|\n")
        parts += [f"| {row.what} | {_request(row)} | `{row.status}` {row.says} |\n" for row in rows]
    return "".join(parts)


def _request(row: Row) -> str:
    told = [f"`{row.request}`"]
    if row.authorization:
        told.append(f"`{row.authorization.strip()}`")
    told += [f"`{name}: {value}`" for name, value in row.headers.items() if value != "application/json"]
    return ", ".join(told)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
