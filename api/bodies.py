"""Reading a request body that its sender may have made to do harm.

The body is capped while it streams in. The JSON is parsed strictly: what Postgres cannot store (``\\u0000``,
lone surrogates), what JSON does not have (NaN, Infinity), what two parsers would read differently (duplicate
keys, integers beyond 64 bits) and what costs more to parse than it says (deep nesting, numbers of thousands of
digits) is refused with a sentence.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from models.errors import FieldProblem, PayloadTooLarge, UnsupportedMediaType, ValidationFailed

_MARK = b"\xef\xbb\xbf"
MAX_DEPTH = 32
MAX_KEYS = 1000
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
"""What every process reads and writes without losing a digit."""

JsonObject = dict[str, Any]  # Any: the caller's JSON, before its schema has been applied

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


async def read_json_object(request: Request, max_bytes: int) -> JsonObject:
    """The JSON object in a request's body.

    Raises UnsupportedMediaType, PayloadTooLarge or ValidationFailed.
    """
    _check_media_type(request)
    return parse_json_object(await read_body(request, max_bytes))


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, of at most ``max_bytes``; raises PayloadTooLarge as soon as more has come in."""
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    received = 0
    chunks: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def parse_json_object(body: bytes) -> JsonObject:
    """Parse a body strictly; raises ValidationFailed with what is wrong with it."""
    if not body.strip():
        _refuse("The request body is empty; send a JSON object.")
    if is_deeper_than(body, MAX_DEPTH):
        _refuse(f"The JSON is malformed or nested deeper than {MAX_DEPTH} levels.")
    try:
        text = body.removeprefix(_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"The request body is not UTF-8: byte {error.start} cannot be decoded.")
    try:
        value = _decode(text)
    except _Refused as error:
        _refuse(str(error), error.field or "body")
    except json.JSONDecodeError as error:
        _refuse(f"The request body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno}).")
    if not isinstance(value, dict):
        _refuse("The request body must be a JSON object.")
    return value


def parse_leniently(body: bytes) -> JsonObject:
    """The JSON object in what :func:`parse_json_object` refuses, for a look at some of it; empty where there is none.

    Integers are None: those of thousands of digits take too long to read.
    """
    try:
        value = json.loads(body.decode(), parse_int=lambda digits: None)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def parse_json_field(text: str) -> Any:  # Any: JSON
    """Parse the JSON in a form's field as strictly as a body; raises ValueError with a sentence for that field."""
    if is_deeper_than(text.encode("utf-8", "surrogatepass"), MAX_DEPTH):
        raise ValueError("this is not JSON, or nested too deeply")
    try:
        return _decode(text)
    except _Refused as error:
        raise ValueError(f"{error.field}: {error}" if error.field else str(error)) from None
    except json.JSONDecodeError:
        raise ValueError("this is not JSON") from None


def _decode(text: str) -> Any:  # Any: JSON
    """The value of a JSON text; raises _Refused for one that cannot be kept as it is, and JSONDecodeError."""
    try:
        value = _DECODER.decode(text)
    except _Wide as wide:
        raise _Refused(f"The integer {wide} does not fit in 64 bits.", _path_of(text, str(wide))) from None
    if "\\u" in text:
        _check_characters(value)
    return value


def is_deeper_than(body: bytes, limit: int) -> bool:
    """Whether JSON nests deeper than ``limit``, or never closes what it opens; never recurses.

    Without its strings, a text that nests n deep is empty after its innermost pairs were removed n times.
    """
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    brackets = _STRING.sub(b"", body).translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(limit):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


class _Refused(ValueError):
    """Valid for a lenient parser, and refused here; ``field`` is where, as far as that is known."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class _Wide(ValueError):
    """An integer beyond 64 bits, by its digits."""


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    if len(pairs) > MAX_KEYS:
        raise _Refused(f"A JSON object has more than {MAX_KEYS} keys.")
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _Refused(f"The key {shorten(twice)!r} appears twice in one JSON object.")
    return value


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON.")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused(f"The number {shorten(digits)} is too large.")
    return value


def _int(digits: str) -> int:
    if len(digits) > 40:
        raise _Refused(f"The number {shorten(digits)} has too many digits.")
    value = int(digits)
    if not MIN_INTEGER <= value <= MAX_INTEGER:
        raise _Wide(digits)
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int)


def _check_characters(value: object) -> None:
    for text in _strings_in(value):
        if "\0" in text:
            raise _Refused("The request contains the character U+0000, which cannot be stored.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _Refused("The request contains a lone surrogate, which is not a character.") from None


def _path_of(text: str, digits: str) -> str:
    """Where an integer stands in a JSON text, such as ``response_format.json_schema.schema.maximum``."""
    try:
        value = json.loads(text, parse_int=lambda found: _Mark() if found == digits else None)
    except json.JSONDecodeError:  # what is after the integer is not JSON
        return ""
    return next((path for path, found in _leaves(value) if isinstance(found, _Mark)), "")


class _Mark:
    """Stands for the integer that is looked for."""


def _leaves(value: object) -> Iterator[tuple[str, object]]:
    """The values in a JSON value that hold no others, each with its path, such as ``messages.0.content``."""
    pending: list[tuple[str, object]] = [("", value)]
    while pending:
        path, current = pending.pop()
        if isinstance(current, dict):
            pending.extend((f"{path}.{key}" if path else key, inner) for key, inner in current.items())
        elif isinstance(current, list):
            pending.extend((f"{path}.{place}" if path else str(place), inner) for place, inner in enumerate(current))
        else:
            yield path, current


def _strings_in(value: object) -> Iterator[str]:
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, str):
            yield current
        elif isinstance(current, dict):
            pending.extend(current)
            pending.extend(current.values())
        elif isinstance(current, list):
            pending.extend(current)


def shorten(text: str, length: int = 64) -> str:
    """A text to quote in a message: at most ``length`` characters of it."""
    return text if len(text) <= length else text[: length - 3] + "..."


def _check_media_type(request: Request) -> None:
    content_type = request.headers.get("content-type", "")
    if content_type != "application/json" and content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(_wrong_media_type(content_type))
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Compressed request bodies are not accepted; send it without Content-Encoding.")


def _wrong_media_type(content_type: str) -> str:
    """What to say of a body that must be JSON and does not come as such."""
    kind = content_type.partition(";")[0].strip().lower()
    if not kind:
        return "Send the body as application/json: there is no Content-Type."
    if kind == "application/x-www-form-urlencoded":
        return (
            "Send the body as application/json: it came as a form, as curl's -d sends it without"
            " -H 'Content-Type: application/json'."
        )
    if kind == "multipart/form-data":
        return (
            "Send the body as application/json: it came as a form, which only POST /v1/files and"
            " POST /v1/batches/upload take."
        )
    return f"Send the body as application/json: it came as {shorten(kind)}."


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than {max_bytes} bytes.")


def _refuse(message: str, field: str = "body") -> NoReturn:
    param = None if field == "body" else shorten(field)
    raise ValidationFailed(message, param=param, problems=[FieldProblem(shorten(field), message)])
