"""The ``anthropic`` provider: Anthropic's Messages API over HTTP."""

from collections.abc import Mapping
from typing import Any

import orjson

from models.catalog import LLM
from workers.providers.addresses import anthropic_base
from workers.providers.base import GenerationRequest, Meter
from workers.providers.failures import failure_of_event
from workers.providers.instructions import instruction_of
from workers.providers.remote import RemoteProvider
from workers.providers.transcript import Json, Transcript, malformed, mapping

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"

_FINISH_REASONS = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


class AnthropicProvider(RemoteProvider):
    """One LLM of the Messages API."""

    path = "/v1/messages"

    def __init__(self, llm: LLM) -> None:
        super().__init__(llm, anthropic_base(llm.base_url or BASE_URL))

    def headers(self, key: str | None) -> dict[str, str]:
        """The key and the API's version."""
        header = (self._llm.api_key_header or "x-api-key").lower()
        value = f"Bearer {key}" if header == "authorization" else key
        return {"anthropic-version": VERSION, **({header: value} if value and key else {})}

    def to_wire(self, request: GenerationRequest) -> Json:
        """The body of a message request."""
        return to_wire(request, self._llm.model)

    def transcript(self, request: GenerationRequest, meter: Meter) -> Transcript:
        """A reader of messages."""
        return AnthropicTranscript(request, meter)


def to_wire(request: GenerationRequest, model: str | None) -> Json:
    """The body of a message request.

    System messages become the one ``system`` text. A JSON Schema of an object becomes the one tool, which must be
    used; any other form that the answer must have is asked for in the system text. ``seed``, ``min_p`` and
    the penalties have no counterpart; a temperature above 1, the API's highest, is 1.
    """
    system = [message["content"] for message in request.messages if message["role"] in _SYSTEM]
    turns = [message for message in request.messages if message["role"] not in _SYSTEM]
    if not turns:
        system, turns = [], [{"role": "user", "content": "\n\n".join(system)}]
    tool = _tool(request.response_format)
    if tool is None and (instruction := instruction_of(request.response_format)):
        system.append(instruction)
    temperature = None if request.temperature is None else min(request.temperature, 1.0)
    optional = {
        "system": "\n\n".join(system) or None,
        "temperature": temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop_sequences": request.stop or None,
        "tools": [tool] if tool else None,
        "tool_choice": {"type": "tool", "name": tool["name"]} if tool else None,
    }
    body: Json = {"model": model, "messages": turns, "max_tokens": request.max_tokens, "stream": True}
    return body | {name: value for name, value in optional.items() if value is not None}


_SYSTEM = frozenset({"system", "developer"})


class AnthropicTranscript(Transcript):
    """Reads messages, streamed or whole."""

    def event(self, data: bytes) -> None:
        """Take one event of a stream."""
        document = _parse(data)
        match document.get("type"):
            case "content_block_delta":
                self._add(mapping(document.get("delta")))
            case "message_start":
                self._use(mapping(mapping(document.get("message")).get("usage")), output=False)
            case "message_delta":
                self._finish(mapping(document.get("delta")).get("stop_reason"))
                self._use(mapping(document.get("usage")))
            case "message_stop":
                self.ended = True
            case "error":
                raise failure_of_event(document.get("error"))

    def whole(self, body: bytes) -> None:
        """Take a message that came in one piece."""
        document = _parse(body)
        if document.get("type") == "error":
            raise failure_of_event(document.get("error"))
        blocks = document.get("content")
        if document.get("type") != "message" or not isinstance(blocks, list):
            raise malformed("it is no message")
        for block in map(mapping, blocks):
            self.add_text(block.get("text"))
            if block.get("type") == "tool_use":
                self.add_text(orjson.dumps(block.get("input")).decode())
        self._finish(document.get("stop_reason") or "end_turn")
        self._use(mapping(document.get("usage")))

    def _add(self, delta: Mapping[str, Any]) -> None:  # Any: a provider's JSON
        match delta.get("type"):
            case "text_delta":
                self.add_text(delta.get("text"))
            case "input_json_delta":
                self.add_text(delta.get("partial_json"))
            case "thinking_delta":
                self.add_reasoning(delta.get("thinking"))

    def _finish(self, reason: object) -> None:
        if isinstance(reason, str):
            self.finish_reason = _FINISH_REASONS.get(reason, "stop")

    def _use(self, usage: Mapping[str, Any], *, output: bool = True) -> None:  # Any: a provider's JSON
        """Note a count: cached input stands apart from ``input_tokens`` here, unlike in OpenAI's."""
        if "input_tokens" in usage:
            parts = [usage.get(name) or 0 for name in _INPUT]
            if all(isinstance(part, int) for part in parts):
                self.count_input(sum(parts), cached=usage.get("cache_read_input_tokens"))
        if output:
            self.count_output(usage.get("output_tokens"))


_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def _tool(response_format: Json | None) -> Json | None:
    form = mapping(mapping(response_format).get("json_schema"))
    schema = mapping(form.get("schema"))
    if schema.get("type") != "object":
        return None
    description = str(form.get("description") or "Give the answer.")
    return {"name": str(form.get("name") or "answer"), "description": description, "input_schema": schema}


def _parse(data: bytes) -> Json:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise malformed("it is not JSON") from None
    if not isinstance(document, dict):
        raise malformed("it is no message")
    return document
