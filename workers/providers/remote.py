"""A provider behind HTTP: one transport between two translations, which each API brings."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import orjson

from models.catalog import LLM
from models.errors import FailureCode
from workers.providers.adaptation import Adaptation, Memory
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError, WithoutEmbeddings
from workers.providers.failures import MAX_ERROR_BYTES, failure_of_status, scrubbed
from workers.providers.http import MAX_HELD_BYTES, Answer, EventReader, Http, Limits, Sending, finish, too_large
from workers.providers.jsontext import BYTE_ORDER_MARK
from workers.providers.keys import Key
from workers.providers.transcript import MOST_SHOWN, Json, Transcript


class RemoteProvider(WithoutEmbeddings, ABC):
    """One LLM behind an HTTP API.

    Some servers of one API do not take what others require. What they refuse by name is changed and sent again, and
    remembered (:mod:`workers.providers.adaptation`).
    """

    path: str

    def __init__(self, llm: LLM, base_url: str) -> None:
        self._llm = llm
        self._key = Key(llm)
        self._memory = Memory(llm)
        self._hides_reasoning = False
        read_s = llm.timeout_s if llm.read_timeout_s is None else llm.read_timeout_s
        self._http = Http(base_url, Limits(llm.connect_timeout_s, read_s, llm.timeout_s))

    @abstractmethod
    def headers(self, key: str | None) -> dict[str, str]:
        """The API's own headers."""

    @abstractmethod
    def to_wire(self, request: GenerationRequest) -> Json:
        """The request's body."""

    @abstractmethod
    def transcript(self, request: GenerationRequest, meter: Meter) -> Transcript:
        """What translates the answer."""

    async def generate(self, request: GenerationRequest, meter: Meter) -> Generation:
        """Answer by one POST, streamed; cancelling the task closes the connection at once."""
        key, adaptation = self._key.value, Adaptation(self._memory)
        try:
            while True:
                generation = await self._call(request, meter, key, adaptation)
                if generation is not None:
                    adaptation.succeed()
                    return generation
        except ProviderError as error:
            if error.failure.code is FailureCode.PROVIDER_AUTH:
                self._key.read_again()
            raise scrubbed(error, key) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def ask(self, path: str, body: bytes, key: str | None, sending: Sending) -> bytes:
        """The body that answers a POST, whole; raises ProviderError."""
        async with self._http.post(path, self.headers(key), body, sending) as answer:
            if 200 <= answer.status < 300:
                return await _rest(b"", answer.chunks())
            raise failure_of_status(answer.status, answer.headers, await answer.read(MAX_ERROR_BYTES))

    async def _call(
        self, request: GenerationRequest, meter: Meter, key: str | None, adaptation: Adaptation
    ) -> Generation | None:
        """The answer, or None when the request was refused and is to be sent again in another form.

        Nothing was used and nothing came of a call that is made again.
        """
        shaped = adaptation.shape(request)
        wire = self.to_wire(shaped)
        meter.adapted = adaptation.apply(wire, request)
        body = _dump(wire)
        sending, transcript = Sending(body), self.transcript(shaped, meter)
        transcript.hides_reasoning = self._hides_reasoning
        try:
            async with self._http.post(self.path, self.headers(key), body, sending) as answer:
                if 200 <= answer.status < 300:
                    return await _listen(answer, transcript)
                raise failure_of_status(answer.status, answer.headers, await answer.read(MAX_ERROR_BYTES))
        except ProviderError as error:
            if transcript.is_empty and adaptation.takes(error.complaint, wire):
                return None
            raise
        finally:
            if sending.may_cost:
                transcript.settle()
            self._hides_reasoning = transcript.hides_reasoning


def _dump(body: Json) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise ProviderError.of(FailureCode.PROVIDER_REJECTED, f"the request cannot be sent: {error}") from None


async def _listen(answer: Answer, transcript: Transcript) -> Generation:
    try:
        await _read(answer, transcript)
    except ProviderError as error:
        if error.failure.code not in {FailureCode.TIMEOUT, FailureCode.CONNECTION}:
            transcript.refuse()
        # An answer that is complete is not thrown away for how its connection ended.
        if transcript.finish is None or error.failure.code is not FailureCode.CONNECTION:
            raise
    return transcript.generation()


async def _read(answer: Answer, transcript: Transcript) -> None:
    """Read a stream of events, or the one JSON document that servers without streams answer with."""
    reader, chunks = EventReader(), answer.chunks()
    begun, start = False, b""
    async for chunk in chunks:
        if begun:
            events = reader.feed(chunk)
        else:
            start = (start + chunk).lstrip()
            if BYTE_ORDER_MARK.startswith(start):
                continue  # nothing yet, or a part of the mark
            begun, start = True, start.removeprefix(BYTE_ORDER_MARK).lstrip()
            transcript.begins = start[:MOST_SHOWN]
            if start.startswith((b"{", b"[")):
                transcript.whole(await _rest(start, chunks))
                return
            events = reader.feed(start)
        for event in events:
            transcript.event(event)
            if transcript.ended:
                await finish(chunks)
                return
    for event in reader.end():
        transcript.event(event)


async def _rest(first: bytes, chunks: AsyncIterator[bytes]) -> bytes:
    body = bytearray(first)
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_HELD_BYTES:
            raise too_large()
    return bytes(body)
