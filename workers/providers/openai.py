"""The ``openai`` provider: any server that speaks OpenAI's chat completions over HTTP."""

import orjson

from models.catalog import LLM
from models.errors import FailureCode
from models.tokens import most_tokens
from workers.providers.adaptation import Adaptation
from workers.providers.addresses import is_azure, openai_base
from workers.providers.base import Embedding, EmbeddingRequest, GenerationRequest, Meter, ProviderError
from workers.providers.contentparts import Kind, calls_of, parts_of
from workers.providers.embeddings import read_embeddings
from workers.providers.failures import scrubbed
from workers.providers.finishreasons import Finish, finish_of
from workers.providers.http import Sending
from workers.providers.remote import RemoteProvider
from workers.providers.transcript import Json, Transcript, mapping
from workers.providers.usagecounts import counts_of


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
        sending, answer = Sending(written), None
        try:
            answer = await self.ask("/embeddings", written, key, sending)
            return read_embeddings(answer, request, meter)
        except ProviderError as error:
            if error.failure.code is FailureCode.PROVIDER_AUTH:
                self._key.read_again()
            raise
        finally:
            if sending.may_cost and answer is None:
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


class OpenAITranscript(Transcript):
    """Reads chat completions, streamed or whole."""

    def event(self, data: bytes) -> None:
        """Take one chunk of a stream."""
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            if (document := self.parse_event(data)) is None:
                return
        self._take(document, "delta", "message")

    def whole(self, body: bytes) -> None:
        """Take a chat completion that came in one piece."""
        self._take(self.parse_whole(body), "message", "delta")
        self.ended = True
        if self.finish is None and not self.has_text:
            raise self.refused("it is no chat completion")

    def _take(self, document: object, part: str, other_part: str) -> None:
        """Take a chunk or a completion: what was used first, since an error may say it too."""
        if document is None:
            return
        if not isinstance(document, dict):
            if self.finish is not None and isinstance(document, str):
                return  # ``"[DONE]"`` as JSON, or another mark after the end
            self.raise_error(document)
            raise self.refused("it is no chat completion")
        choices = document.get("choices")
        if usage := document.get("usage"):
            self.count(counts_of(mapping(usage)))
        elif "x_groq" in document:
            self.count(counts_of(mapping(mapping(document["x_groq"]).get("usage"))))
        if not choices or "error" in document:
            if self.is_complete and not choices:
                return
            self.raise_error(document)
        if choices:
            if not isinstance(choices, list) or not isinstance(choices[0], dict):
                raise self.refused("it is no chat completion")
            self._choose(choices[0], part, other_part)

    def _choose(self, choice: Json, part: str, other_part: str) -> None:
        if (said := choice.get(part)) is None:
            said = choice.get(other_part) or {"content": choice.get("text")}
        if isinstance(said, dict):
            if len(said) == 1 and isinstance(text := said.get("content"), str):
                self.add_text(text)
            elif said:
                self._add(said)
        if reason := choice.get("finish_reason"):
            self.note_finish(reason)
        if reason := choice.get("native_finish_reason"):
            self._note_native(reason)
        if usage := choice.get("usage"):
            self.count(counts_of(mapping(usage)))
        if choice.get("error"):
            self.raise_error({"error": choice["error"]})

    def _add(self, message: Json) -> None:
        """Take a message or a piece of one, with all that stands beside its text."""
        for kind, text in parts_of(message):
            if kind is Kind.TEXT:
                self.add_text(text)
            else:
                self.add_reasoning(text)
            if kind is Kind.REFUSAL:
                self.note_finish("refusal")
        if "tool_calls" in message or "function_call" in message:
            for arguments in calls_of(message):
                self.add_reasoning(arguments)

    def _note_native(self, reason: object) -> None:
        """Note OpenRouter's word of the vendor behind it, where it is one that the tables have."""
        if finish_of(reason) is not Finish.OTHER:
            self.note_finish(reason)
