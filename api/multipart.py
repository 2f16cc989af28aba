"""Reading ``multipart/form-data`` as it comes in: its fields, and its one file piece by piece.

Nothing is kept but the fields, which are small; what is done with the file is up to the caller.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from api.bodies import shorten
from models.errors import FieldProblem, PayloadTooLarge, UnsupportedMediaType, ValidationFailed

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELDS = 64
MAX_FIELD_BYTES = 1 << 20
"""All fields together."""


@dataclass(frozen=True, slots=True)
class FormField:
    """A field with its value."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class FileBegins:
    """The file begins; its content follows as ``bytes``."""

    name: str
    filename: str


def documented_form(required: list[str], properties: dict[str, Any]) -> dict[str, Any]:  # Any: a JSON Schema
    """What the OpenAPI document says of a handler that reads such a form, as its ``openapi_extra``."""
    schema = {"type": "object", "required": required, "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


FormPiece = FormField | FileBegins | bytes


async def form_pieces(request: Request, max_bytes: int) -> AsyncIterator[FormPiece]:
    """The pieces of a form in the order they were sent; a file's content follows its FileBegins.

    Raises UnsupportedMediaType, PayloadTooLarge (as soon as more than ``max_bytes`` have come in), ValidationFailed
    for what is no form, and ClientDisconnect.
    """
    reader = _Reader(_boundary(request))
    too_large = PayloadTooLarge(f"The request body is larger than {max_bytes} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > max_bytes:
        raise too_large
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body, more = message.get("body", b""), message.get("more_body", False)
        received += len(body)
        if received > max_bytes:
            raise too_large
        for piece in reader.feed(body):
            yield piece
    reader.require_end()


def _wrong_media_type(kind: bytes) -> str:
    what = "Send the body as multipart/form-data, with the file in the field `file`"
    if kind == b"multipart/form-data":
        return f"{what}: its Content-Type has no boundary; leave that header to the HTTP client."
    came = f"as {shorten(kind.decode('latin-1'))}" if kind else "without a Content-Type"
    return f"{what}: it came {came}."


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMediaType(_wrong_media_type(kind))
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Compressed request bodies are not accepted; send it without Content-Encoding.")
    return options[b"boundary"]


class _Reader:
    """Turns the parser's callbacks into pieces."""

    def __init__(self, boundary: bytes) -> None:
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._take_header_name,
            "on_header_value": self._take_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": self._take_content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _malformed(str(error)) from None
        self._pieces: list[FormPiece] = []
        self._seen: set[str] = set()
        self._field_bytes = 0
        self._ended = False

    def feed(self, data: bytes) -> list[FormPiece]:
        """The pieces that some bytes complete."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(str(error)) from None
        pieces, self._pieces = self._pieces, []
        return pieces

    def require_end(self) -> None:
        """Refuse a form that was cut off."""
        if not self._ended:
            raise _malformed("it ends in its middle")

    def _begin_part(self) -> None:
        if len(self._seen) >= MAX_FIELDS:
            raise _malformed(f"it has more than {MAX_FIELDS} fields")
        self._headers: dict[bytes, bytes] = {}
        self._header_name = self._header_value = b""
        self._value = bytearray()

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _begin_content(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        self._name = _text(options.get(b"name", b""))
        self._is_file = b"filename" in options
        if not self._name:
            raise _malformed("a part has no name")
        if self._name in self._seen:
            message = "This field was sent twice."
            raise ValidationFailed(message, param=self._name, problems=[FieldProblem(shorten(self._name), message)])
        self._seen.add(self._name)
        if self._is_file:
            self._pieces.append(FileBegins(self._name, _text(options[b"filename"])))

    def _take_content(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._pieces.append(bytes(data[start:end]))
            return
        self._field_bytes += end - start
        if self._field_bytes > MAX_FIELD_BYTES:
            raise PayloadTooLarge(f"The fields of the form have more than {MAX_FIELD_BYTES} bytes.")
        self._value += data[start:end]

    def _end_part(self) -> None:
        if not self._is_file:
            self._pieces.append(FormField(self._name, _text(bytes(self._value))))

    def _end(self) -> None:
        self._ended = True


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("a field is not UTF-8") from None
    if "\0" in text:
        raise _malformed("a field contains the character U+0000")
    return text


def _malformed(why: str) -> ValidationFailed:
    message = f"The form cannot be read: {why}."
    return ValidationFailed(message, problems=[FieldProblem("body", message)])
