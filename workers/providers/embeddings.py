"""What a server answers to a request for vectors, in the form that the caller asked for, whatever the server chose.

Many servers send lists of numbers whatever was asked; some send base64 of 32-bit floats. Each is turned into the other.
"""

import base64
import binascii
import sys
from array import array
from math import isfinite

import orjson

from models.storable import storable_text
from models.tokens import most_tokens
from workers.providers.base import Embedding, EmbeddingRequest, Meter
from workers.providers.errorbodies import error_in
from workers.providers.failures import failure_of_event
from workers.providers.jsontext import parse_leniently
from workers.providers.transcript import malformed, mapping
from workers.providers.usagecounts import count_of


def read_embeddings(answer: bytes, request: EmbeddingRequest, meter: Meter) -> list[Embedding]:
    """The vectors in an answer, in the order of the texts; what was used goes to the meter.

    Raises ProviderError. An error in place of vectors is not charged, unless it says what was used.
    """
    document = _parse(answer)
    usage = mapping(mapping(document).get("usage"))
    said = count_of(usage.get("prompt_tokens")) or count_of(usage.get("total_tokens"))
    if said:
        meter.input_tokens = said
    data = mapping(document).get("data")
    if not isinstance(data, list) or not data:
        if (error := error_in(document)) is not None:
            failure = failure_of_event(error)
            failure.detail = storable_text(failure.detail)
            raise failure
        raise malformed("it has no embeddings")
    if not any(mapping(entry).get("embedding") for entry in data):
        raise malformed("it has no embeddings")
    if not said:
        meter.input_tokens, meter.estimated = most_tokens(request.texts), True
    meter.mark_first_token()
    if len(data) != len(request.texts):
        raise malformed("it has not one embedding for each text")
    return _in_form([mapping(entry).get("embedding") for entry in _ordered(data)], request)


def _parse(answer: bytes) -> object:
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError:
        pass
    try:
        return parse_leniently(answer)
    except ValueError:
        raise malformed("it is not JSON", detail=answer[:200].decode("utf-8", "replace")) from None


def _ordered(data: list[object]) -> list[object]:
    """The entries in the order of the texts.

    An entry without an index stands at its place: Google leaves an index of 0 out. Where all have the same, they are no
    order. Raises ProviderError when two of several have the same.
    """
    indexes = [place if (index := mapping(entry).get("index")) is None else index for place, entry in enumerate(data)]
    counts = [count for index in indexes if (count := count_of(index)) is not None]
    if len(counts) == len(data) and len(set(counts)) == 1:
        return data
    if len(set(counts)) != len(data) or max(counts) - min(counts) != len(data) - 1:
        raise malformed("its embeddings are not in an order")
    return [entry for _, entry in sorted(zip(counts, data, strict=True), key=lambda pair: pair[0])]


def _in_form(vectors: list[object], request: EmbeddingRequest) -> list[Embedding]:
    """The vectors as base64 or as lists; raises ProviderError when one is neither, or they differ in length."""
    read = [_floats(vector) for vector in vectors]
    if not read[0] or any(len(floats) != len(read[0]) for floats in read):
        raise malformed("its embeddings have no length, or not the same")
    if request.base64:
        return [
            vector if isinstance(vector, str) else _encoded(floats)
            for vector, floats in zip(vectors, read, strict=True)
        ]
    return [
        vector if isinstance(vector, list) else floats.tolist() for vector, floats in zip(vectors, read, strict=True)
    ]


def _floats(vector: object) -> "array[float]":
    """The numbers of a vector, all of them finite."""
    try:
        if isinstance(vector, str):
            floats = array("f", base64.b64decode(vector, validate=True))
            if sys.byteorder == "big":
                floats.byteswap()
        elif isinstance(vector, list):
            floats = array("d", vector)
        else:
            raise TypeError("no vector")
    except (TypeError, ValueError, OverflowError, binascii.Error):
        raise malformed("an embedding is neither a list of numbers nor 32-bit floats in base64") from None
    if not isfinite(sum(floats)):
        raise malformed("an embedding has a number that is none")
    return floats


def _encoded(floats: "array[float]") -> str:
    """A vector as base64 of 32-bit floats, the least significant byte first."""
    narrow = array("f", floats)
    if not isfinite(sum(narrow)):
        raise malformed("an embedding has a number that is none")
    if sys.byteorder == "big":
        narrow.byteswap()
    return base64.b64encode(narrow.tobytes()).decode()
