"""The ``anthropic`` provider: Anthropic's Messages API over HTTP."""

import json
from collections.abc import Mapping
from typing import Any

import orjson

from models.catalog import LLM
from workers.providers.addresses import anthropic_base
from workers.providers.base import GenerationRequest, Meter
from workers.providers.instructions import instruction_of
from workers.providers.remote import RemoteProvider
from workers.providers.transcript import Json, Transcript, mapping
from workers.providers.usagecounts import anthropic_counts_of

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"


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

    def __init__(self, request: GenerationRequest, meter: Meter) -> None:
        super().__init__(request, meter)
        self._usage: Json = {}
        self._tool_input: object = None
        """Of a block that is a call of the tool, while nothing of its input has come."""

    def event(self, data: bytes) -> None:
        """Take one event of a stream."""
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            if (document := self.parse_event(data)) is None:
                return
        if not isinstance(document, dict):
            self.raise_error(document)
            raise self.refused("it is no message")
        if document.get("type") != "content_block_delta":
            self._note(document)
        elif isinstance(piece := document.get("delta"), dict):
            self._add(piece)

    def _note(self, document: Json) -> None:
        """Take an event that is no piece of a block."""
        match document.get("type"):
            case "content_block_start":
                self._start_block(mapping(document.get("content_block")))
            case "content_block_stop":
                self._end_block()
            case "message_start":
                self._use(mapping(mapping(document.get("message")).get("usage")), output=False)
            case "message_delta":
                self.note_finish(mapping(document.get("delta")).get("stop_reason"))
                self._use(mapping(document.get("usage")))
            case "message_stop":
                self.ended = True
            case _:
                self.raise_error(document)

    def whole(self, body: bytes) -> None:
        """Take a message that came in one piece."""
        document = self.parse_whole(body)
        message = mapping(document)
        blocks = message.get("content")
        self._use(mapping(message.get("usage")))
        if message.get("type") != "message" or not isinstance(blocks, list):
            self.raise_error(document)
            raise self.refused("it is no message")
        for block in map(mapping, blocks):
            self.add_text(block.get("text"))
            self.add_reasoning(block.get("thinking"))
            if block.get("type") == "tool_use":
                self.add_text(_written(block.get("input")))
        self.note_finish(message.get("stop_reason"))
        self.ended = True

    def _start_block(self, block: Mapping[str, Any]) -> None:  # Any: a provider's JSON
        """Take the start of a block, in which some servers have the whole of it."""
        self.add_text(block.get("text"))
        self.add_reasoning(block.get("thinking"))
        self._tool_input = block.get("input") or {} if block.get("type") == "tool_use" else None

    def _end_block(self) -> None:
        """The input of a tool that was whole at the start of its block, or that has no members."""
        if self._tool_input is not None:
            self.add_text(_written(self._tool_input))
            self._tool_input = None

    def _add(self, delta: Mapping[str, Any]) -> None:  # Any: a provider's JSON
        match delta.get("type"):
            case "text_delta":
                self.add_text(delta.get("text"))
            case "input_json_delta":
                if text := delta.get("partial_json"):
                    self._tool_input = None
                    self.add_text(text)
            case "thinking_delta":
                self.add_reasoning(delta.get("thinking"))

    def _use(self, usage: Mapping[str, Any], *, output: bool = True) -> None:  # Any: a provider's JSON
        """Note counts; each event has some of them, and what it leaves out or has as zero stays as it was."""
        self._usage |= {name: value for name, value in usage.items() if value or name not in self._usage}
        if usage:
            self.count(anthropic_counts_of(self._usage if output else {**self._usage, "output_tokens": None}))


def _written(document: object) -> str:
    """JSON text of any document, one with halves of characters or with large numbers too."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _tool(response_format: Json | None) -> Json | None:
    form = mapping(mapping(response_format).get("json_schema"))
    schema = mapping(form.get("schema"))
    if schema.get("type") != "object":
        return None
    description = str(form.get("description") or "Give the answer.")
    return {"name": str(form.get("name") or "answer"), "description": description, "input_schema": schema}
