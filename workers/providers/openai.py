"""The ``openai`` provider: any server that speaks OpenAI's chat completions over HTTP."""

from collections.abc import Mapping
from typing import Any

import orjson

from models.catalog import LLM
from models.errors import FailureCode
from models.tokens import most_tokens
from workers.providers.adaptation import Adaptation
from workers.providers.addresses import is_azure, openai_base
from workers.providers.base import Embedding, EmbeddingRequest, GenerationRequest, Meter, ProviderError
from workers.providers.failures import failure_of_event, scrubbed
from workers.providers.http import Sending
from workers.providers.remote import RemoteProvider
from workers.providers.transcript import Json, Transcript, malformed, mapping


class OpenAIProvider(RemoteProvider):
    """One LLM of an OpenAI-compatible server."""

    path = "/chat/completions"

    def __init__(self, llm: LLM) -> None:
        base_url = openai_base(llm.base_url or "", llm.model)
        super().__init__(llm, base_url)
        self._is_azure = is_azure(base_url)

    def headers(self, key: str | None) -> dict[str, str]:
        """The key as a bearer token, or as Azure takes it, which takes only Entra's tokens as such."""
        if not key:
            return {}
        if header := self._llm.api_key_header:
            return {header.lower(): f"Bearer {key}" if header.lower() == "authorization" else key}
        return {"api-key": key} if self._is_azure and not key.startswith("eyJ") else {"authorization": f"Bearer {key}"}

    def to_wire(self, request: GenerationRequest) -> Json:
        """The body of a chat completion request."""
        return to_wire(request, self._llm.model)

    def transcript(self, request: GenerationRequest, meter: Meter) -> Transcript:
        """A reader of chat completions."""
        return OpenAITranscript(request, meter)

    async def embed(self, request: EmbeddingRequest, meter: Meter) -> list[Embedding]:
        """The vectors of some texts by one POST."""
        key, adaptation = self._key.value, Adaptation(self._memory)
        while True:
            wire: Json = {
                "input": request.texts,
                "model": self._llm.model,
                "encoding_format": "base64" if request.base64 else "float",
                **({"dimensions": request.dimensions} if request.dimensions is not None else {}),
            }
            meter.adapted = adaptation.apply(wire)
            try:
                vectors = await self._embed(request, meter, wire, key)
            except ProviderError as error:
                if meter.input_tokens or not adaptation.takes(error.complaint, wire):
                    raise scrubbed(error, key) from None
            else:
                adaptation.succeed()
                return vectors

    async def _embed(self, request: EmbeddingRequest, meter: Meter, wire: Json, key: str | None) -> list[Embedding]:
        written = orjson.dumps(wire)
        sending = Sending(written)
        try:
            return _vectors(await self.ask("/embeddings", written, key, sending), request, meter)
        except ProviderError as error:
            if error.failure.code is FailureCode.PROVIDER_AUTH:
                self._key.read_again()
            raise
        finally:
            if sending.may_cost and not meter.input_tokens:
                meter.input_tokens, meter.estimated = most_tokens(request.texts), True


def to_wire(request: GenerationRequest, model: str | None) -> Json:
    """The body of a chat completion request.

    ``developer`` messages go as ``system``, which OpenAI takes to mean the same and other servers know.
    """
    body: Json = {
        "messages": [
            {**message, "role": "system"} if message["role"] == "developer" else message for message in request.messages
        ],
        "max_tokens": request.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    optional = {
        "model": model,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "stop": request.stop or None,
        "seed": request.seed,
        "response_format": request.response_format,
    }
    return body | {name: value for name, value in optional.items() if value is not None}


def _vectors(answer: bytes, request: EmbeddingRequest, meter: Meter) -> list[Embedding]:
    """The vectors in an answer, in the order of the texts; what was used goes to the meter."""
    try:
        document = mapping(orjson.loads(answer))
    except orjson.JSONDecodeError:
        raise malformed("it is not JSON") from None
    used = mapping(document.get("usage")).get("prompt_tokens")
    meter.estimated = not isinstance(used, int)
    meter.input_tokens = min(max(used, 0), 2**31 - 1) if isinstance(used, int) else most_tokens(request.texts)
    meter.mark_first_token()
    data = document.get("data")
    if not isinstance(data, list) or len(data) != len(request.texts):
        raise malformed("it has not one embedding for each text")
    ordered = sorted(map(mapping, data), key=lambda entry: entry.get("index", 0))
    wanted = str if request.base64 else list
    vectors = [vector for entry in ordered if isinstance(vector := entry.get("embedding"), wanted)]
    if len(vectors) != len(data):
        raise malformed("an embedding is not in the form that was asked for")
    return vectors


class OpenAITranscript(Transcript):
    """Reads chat completions, streamed or whole."""

    def event(self, data: bytes) -> None:
        """Take one chunk of a stream."""
        if data == b"[DONE]":
            self.ended = True
            return
        self._take(data, "delta")

    def whole(self, body: bytes) -> None:
        """Take a chat completion that came in one piece."""
        self._take(body, "message")
        if self.finish_reason is None:
            raise malformed("it is no chat completion")

    def _take(self, data: bytes, part: str) -> None:
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise malformed("it is not JSON") from None
        if not isinstance(document, dict):
            raise malformed("it is no chat completion")
        if error := document.get("error"):
            raise failure_of_event(error)
        if choices := document.get("choices"):
            self._choose(choices, part)
        if usage := document.get("usage"):
            self._use(mapping(usage))

    def _choose(self, choices: object, part: str) -> None:
        if not isinstance(choices, list) or not isinstance(choice := choices[0], dict):
            raise malformed("it is no chat completion")
        said = choice.get(part)
        if isinstance(said, dict):
            self.add_text(said.get("content"))
            self.add_reasoning(said.get("reasoning_content") or said.get("reasoning"))
            if said.get("refusal"):
                self.finish_reason = "content_filter"
        elif part == "message":
            raise malformed("it is no chat completion")
        if self.finish_reason is None:
            reason = choice.get("finish_reason") or ("stop" if part == "message" else None)
            self.finish_reason = reason if reason is None else str(reason)

    def _use(self, usage: Mapping[str, Any]) -> None:  # Any: a provider's JSON
        cached = mapping(usage.get("prompt_tokens_details")).get("cached_tokens")
        reasoning = mapping(usage.get("completion_tokens_details")).get("reasoning_tokens")
        self.count_input(usage.get("prompt_tokens"), cached=cached)
        self.count_output(usage.get("completion_tokens"), reasoning=reasoning)
