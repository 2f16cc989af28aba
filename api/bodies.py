"""Reading a request body that its sender may have made to do harm.

The body is capped while it streams in. The JSON is parsed strictly: what Postgres cannot store (``\\u0000``,
lone surrogates), what JSON does not have (NaN, Infinity), what two parsers would read differently (duplicate
keys) and what costs more to parse than it says (deep nesting, numbers of thousands of digits) is refused with
a sentence.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from models.errors import FieldProblem, PayloadTooLarge, UnsupportedMediaType, ValidationFailed

MAX_DEPTH = 32
MAX_KEYS = 1000

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
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(f"The request body is not UTF-8: byte {error.start} cannot be decoded.")
    try:
        value = _DECODER.decode(text)
    except _Refused as error:
        _refuse(str(error))
    except json.JSONDecodeError as error:
        _refuse(f"The request body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno}).")
    if not isinstance(value, dict):
        _refuse("The request body must be a JSON object.")
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
    """Valid for a lenient parser, and refused here."""


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
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int)


def _check_characters(value: JsonObject) -> None:
    for text in _strings_in(value):
        if "\0" in text:
            _refuse("The request contains the character U+0000, which cannot be stored.")
        try:
            text.encode()
        except UnicodeEncodeError:
            _refuse("The request contains a lone surrogate, which is not a character.")


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
        raise UnsupportedMediaType("Send the body as application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Compressed request bodies are not accepted; send it without Content-Encoding.")


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than {max_bytes} bytes.")


def _refuse(message: str) -> NoReturn:
    raise ValidationFailed(message, problems=[FieldProblem("body", message)])
