"""Requests as one LLM takes them: a parameter that it refuses by name is left out or sent otherwise.

A change is remembered for the LLM, in this process, for an hour, so that a refusal costs each process one call now and
then. It is remembered only once the LLM answered a request that was so changed, and only where the refusal cannot be
an echo of the request: nobody's request changes those of others. An entry of the catalogue may declare the changes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import orjson

from models.catalog import LLM
from models.tokens import most_tokens
from workers.providers.base import GenerationRequest
from workers.providers.complaints import Complaint
from workers.providers.instructions import instruction_of
from workers.providers.unsupported import SYSTEM, Refused, refused_parameters

MOST_RESENDS = 8
"""How often one call is sent again in another form: OpenAI's reasoning LLMs name one parameter at a time, and clients
send six that they refuse."""

REMEMBERED_S = 3600.0
_MOST_REMEMBERED = 32
_ADAPTABLE = frozenset({None, 400, 422})
_KEPT = frozenset({"model", "messages", "input", "dimensions", "system"})
"""What no request is without, or what its answer would be another without."""

_TOKENS = ("max_tokens", "max_completion_tokens")
_OF_FORMAT = frozenset({"response_format", "tools", "tool_choice"})
_OTHER_NAMES = {"stop_sequences": "stop", "include_usage": "stream_options", "stream_option": "stream_options"}
_KEYS = {"stop": ("stop", "stop_sequences"), "stream": ("stream", "stream_options")}

Json = dict[str, Any]  # Any: a request's body


@dataclass(frozen=True, slots=True)
class Change:
    """A parameter that is left out, or sent as something else; where ``beside`` is given, only together with that."""

    parameter: str
    to: str | None = None
    beside: str | None = None

    def __str__(self) -> str:
        return self.parameter if self.to is None else f"{self.parameter} -> {self.to}"


Changes = Mapping[tuple[str, str | None], Change]


class Memory:
    """The changes that one LLM is known to need: those of its entry, and those that it asked for of late."""

    def __init__(self, llm: LLM, now: Callable[[], float] = monotonic) -> None:
        self._declared = {_key(change): change for change in declared_changes(llm)}
        self._learned: dict[tuple[str, str | None], tuple[float, Change]] = {}
        self._now = now

    @property
    def changes(self) -> Changes:
        """What to change now."""
        if not self._learned:
            return self._declared
        now = self._now()
        self._learned = {key: kept for key, kept in self._learned.items() if kept[0] > now}
        return {**self._declared, **{key: change for key, (_, change) in self._learned.items()}}

    def keep(self, changes: Iterable[Change]) -> None:
        """Remember changes with which a request was answered."""
        until = self._now() + REMEMBERED_S
        for change in changes:
            if len(self._learned) < _MOST_REMEMBERED or _key(change) in self._learned:
                self._learned[_key(change)] = (until, change)


def declared_changes(llm: LLM) -> Iterator[Change]:
    """The changes that an entry of the catalogue declares."""
    for name in llm.unsupported:
        yield Change(name, {"response_format": "instruction", SYSTEM: "user"}.get(name))
    for name, to in llm.renamed.items():
        yield Change(name, to)


class Adaptation:
    """The changes of one call, sent up to ``MOST_RESENDS`` times again as refusals ask for more of them."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._changes = memory.changes
        self._proven: dict[Change, bool] = {}
        self._resends = 0

    def shape(self, request: GenerationRequest) -> GenerationRequest:
        """The request with its form in words, where the LLM does not take the parameter."""
        change = self._changes.get(("response_format", None))
        if change is None or request.response_format is None:
            return request
        instruction = instruction_of(request.response_format)
        if instruction is None:  # text, which is what comes without a form
            return replace(request, response_format=None)
        response_format = {"type": "json_object"} if change.to == "json_object" else None
        most = _most_tokens(request, instruction)
        messages = _instructed(request.messages, instruction)
        return replace(request, messages=messages, response_format=response_format, most_input_tokens=most)

    def apply(self, body: Json, request: GenerationRequest | None = None) -> list[str]:
        """Change a body as it is to be sent; the names of what was changed, that of ``request``'s form among them."""
        if not self._changes:
            return []
        has_form = request is not None and request.response_format is not None
        return [
            str(change)
            for change in self._changes.values()
            if (has_form if change.parameter == "response_format" else _change(body, change))
        ]

    def takes(self, complaint: Complaint | None, body: Json) -> bool:
        """Whether a refusal of ``body`` asked for changes, with which it is to be sent again."""
        if complaint is None or complaint.status not in _ADAPTABLE or self._resends >= MOST_RESENDS:
            return False
        asked: dict[Change, bool] = {}
        for refused in refused_parameters(complaint, body):
            change = _change_for(refused, body)
            if change is not None and change not in self._proven and self._changes.get(_key(change)) != change:
                asked[change] = refused.proven or asked.get(change, False)
        if not asked:
            return False
        self._resends += 1
        self._proven |= asked
        self._changes = {**self._changes, **{_key(change): change for change in asked}}
        return True

    def succeed(self) -> None:
        """Remember the changes that helped."""
        if self._proven:
            in_use = self._changes.values()
            self._memory.keep(change for change, proven in self._proven.items() if proven and change in in_use)


def _key(change: Change) -> tuple[str, str | None]:
    return (change.parameter, change.beside)


def _change_for(refused: Refused, body: Json) -> Change | None:
    """The change that a refusal asks for; None where the body has nothing of the kind, or cannot do without it."""
    name = _OTHER_NAMES.get(refused.parameter, refused.parameter)
    if name == SYSTEM and not refused.beside:
        return _change_of_role(refused.role, body)
    if name in _TOKENS:
        return Change("max_tokens", _TOKENS[1 - _TOKENS.index(name)]) if name in body else None
    if name in _OF_FORMAT and not _OF_FORMAT.isdisjoint(body):
        form = body.get("response_format") or {}
        return Change("response_format", "json_object" if form.get("type") == "json_schema" else "instruction")
    if name in _KEPT or not any(key in body for key in _KEYS.get(name, (name,))):
        return None
    if refused.beside is not None and refused.beside not in body:
        return None
    return Change(name, beside=refused.beside)


def _change_of_role(refused: str | None, body: Json) -> Change | None:
    roles = {message.get("role") for message in body.get("messages") or ()}
    if roles.isdisjoint({"system", "developer"}):
        return None
    return Change(SYSTEM, "developer" if refused == "system" else "user")


def _change(body: Json, change: Change) -> bool:
    """Change a body; whether it is another now."""
    name, to = change.parameter, change.to
    if name == SYSTEM:
        return _rename_role(body, to or "user")
    if name == "max_tokens":
        sent = next((key for key in _TOKENS if key in body), None)
        if sent is None or to is None or sent == to:
            return False
        body[to] = body.pop(sent)
        return True
    if change.beside is not None and change.beside not in body:
        return False
    dropped = [body.pop(key) for key in _KEYS.get(name, (name,)) if key in body]
    return bool(dropped)


def _rename_role(body: Json, role: str) -> bool:
    """Give the system's messages another role; as the user's they are one with the first that follows them."""
    messages = body.get("messages") or []
    if not any(message["role"] == "system" for message in messages):
        return False
    if role != "user":
        body["messages"] = [m | {"role": role} if m["role"] == "system" else m for m in messages]
        return True
    said = [message["content"] for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    first = others[0] if others else {}
    if first.get("role") == "user" and isinstance(first.get("content"), str):
        others[0] = first | {"content": "\n\n".join([*said, first["content"]])}
    else:
        others.insert(0, {"role": "user", "content": "\n\n".join(said)})
    body["messages"] = others
    return True


def _instructed(messages: list[dict[str, str]], instruction: str) -> list[dict[str, str]]:
    """Messages whose system message ends with an instruction."""
    if messages and messages[0]["role"] in {"system", "developer"} and isinstance(messages[0]["content"], str):
        return [messages[0] | {"content": f"{messages[0]['content']}\n\n{instruction}"}, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]


def _most_tokens(request: GenerationRequest, instruction: str) -> int:
    """As many tokens as were reserved for the prompt and its form, at least those of the prompt."""
    of_form = most_tokens([orjson.dumps(request.response_format).decode()])
    most = request.most_input_tokens
    if most is None:
        most = most_tokens(message["content"] for message in request.messages)
    return most + min(of_form, most_tokens([instruction]))
