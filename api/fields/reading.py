"""Reading a request by the table of fields: what is null, neutral or ignored is taken away, what is refused is named.

Nulls are taken for absent wherever the fields are ours; inside a JSON Schema they are the caller's.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from api.bodies import JsonObject
from api.errors import MAX_PROBLEMS, validation_failed
from api.fields.chat import TABLES, Surface
from api.fields.table import Does, Field, Table
from api.schemas.requests import JobRequest
from models.errors import FieldProblem, ValidationFailed

NOTHING: Mapping[str, Any] = MappingProxyType({})  # Any: JSON
_KINDS = ("role", "type")
"""Fields that tell one kind of a list's objects from another."""

_LONGEST_KIND = 64
_TEXTS = {"refusal": "refusal", "input_text": "text", "output_text": "text"}
"""Parts that are read as text, and which of their fields has it."""

_SCHEMA_WORDS = frozenset({"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "$defs"})
_FORMAT_NAME = "answer"

_PLAIN = {
    surface: frozenset(name for name in JobRequest.model_fields if name not in table or table[name].does is Does.USED)
    for surface, table in TABLES.items()
}
"""Fields that need no look at the table: a body of these alone, with plain messages, is a job's request as it is."""


def read_request(body: JsonObject, surface: Surface, own: Mapping[str, Any] = NOTHING) -> JobRequest:  # Any: JSON
    """The job's request in a body, with fields of ``own`` that the body cannot have; raises ValidationFailed with
    everything that is wrong.

    Most bodies need a look at their own fields only. Those for which that does not do are gone through as a whole.
    """
    given = body if body.keys() <= _PLAIN[surface] else _at_first_sight(body, surface)
    if given is not None:
        try:
            return JobRequest.model_validate({**given, **own} if own else given)
        except ValidationError:
            pass  # there may be nulls or ignored fields inside
    given, problems = settle(body, TABLES[surface])
    _take_newer_limit(given, problems)
    if isinstance(messages := given.get("messages"), list):
        given["messages"] = [_plain_message(message) for message in messages]
    if isinstance(form := given.get("response_format"), dict):
        given["response_format"] = _plain_format(form)
    if surface in (Surface.CHAT, Surface.LINE) and "messages" not in given:
        problems.append(FieldProblem("messages", "This field is required."))
    if problems:
        raise refused(problems)
    try:
        return JobRequest.model_validate({**given, **own})
    except ValidationError as error:
        raise validation_failed(error.errors(include_url=False, include_input=False)) from None


def _at_first_sight(body: JsonObject, surface: Surface) -> JsonObject | None:
    """A body without what changes nothing, its objects not looked into; None where something is wrong."""
    plain, table = _PLAIN[surface], TABLES[surface]
    given: JsonObject = {}
    for name, value in body.items():
        if value is None:
            continue
        if name in plain:
            given[name] = value
            continue
        field = table.get(name)
        if field is None or (field.does is Does.REFUSED and not field.is_neutral(value)):
            return None
        if field.does is Does.USED:
            given[name] = value
    problems: list[FieldProblem] = []
    _take_newer_limit(given, problems)
    return None if problems else given


def settle(body: JsonObject, table: Table) -> tuple[JsonObject, list[FieldProblem]]:
    """A body without what changes nothing, and what is wrong with the rest as far as the table knows.

    Fields that the table does not have stay, for the schema of the body to refuse.
    """
    problems: list[FieldProblem] = []
    kept = _Settling(table, problems).settle(body, "", "")
    return kept, problems[:MAX_PROBLEMS]


def refused(problems: list[FieldProblem]) -> ValidationFailed:
    """One refusal for several problems."""
    detail = "; ".join(f"{problem.field}: {problem.message}" for problem in problems[:3])
    if len(problems) > 3:
        detail += f"; and {len(problems) - 3} more"
    return ValidationFailed(detail, param=problems[0].field, problems=problems)


class _Settling:
    """Goes through a body by a table. ``path`` is a row's, ``place`` the same with the numbers of a list's objects."""

    def __init__(self, table: Table, problems: list[FieldProblem]) -> None:
        self._table = table
        self._problems = problems

    def settle(self, given: JsonObject, path: str, place: str) -> JsonObject:
        kept: JsonObject = {}
        for name, value in given.items():
            if value is None:
                continue
            field = self._table.get(path + name)
            if field is None:
                kept[name] = value
            elif field.is_neutral(value):
                continue
            elif field.does is Does.REFUSED:
                self._problems.append(FieldProblem(place + name, field.note))
            elif field.does is Does.USED:
                kept[name] = self._inside(value, field, path + name, place + name)
        return kept

    def _inside(self, value: Any, field: Field, path: str, place: str) -> Any:  # Any: JSON
        if field.verbatim:
            return value
        if isinstance(value, dict):
            return self.settle(value, f"{path}.", f"{place}.")
        if isinstance(value, list):
            return list(self._items(value, f"{path}[]", place))
        if isinstance(value, str) and len(value) <= _LONGEST_KIND:
            kind = self._table.get(f"{path}={value}")
            if kind is not None and kind.does is Does.REFUSED:
                self._problems.append(FieldProblem(place, kind.note))
        return value

    def _items(self, values: list[Any], path: str, place: str) -> Iterator[Any]:  # Any: JSON
        for number, value in enumerate(values):
            if not isinstance(value, dict):
                yield value
                continue
            kind = self._kind(value, path)
            if kind is None or kind.does is Does.USED:
                yield self.settle(value, f"{path}.", f"{place}.{number}.")
            elif kind.does is Does.REFUSED:
                name = kind.path.rpartition(".")[2].partition("=")[0]
                self._problems.append(FieldProblem(f"{place}.{number}.{name}", kind.note))

    def _kind(self, value: JsonObject, path: str) -> Field | None:
        """The row for objects such as this one in a list, if there is one."""
        for name in _KINDS:
            if isinstance(kind := value.get(name), str):
                return self._table.get(f"{path}.{name}={kind}")
        return None


def _take_newer_limit(given: JsonObject, problems: list[FieldProblem]) -> None:
    if "max_completion_tokens" not in given:
        return
    most = given.pop("max_completion_tokens")
    if given.setdefault("max_tokens", most) != most:
        problems.append(FieldProblem("max_completion_tokens", "It is not the same as max_tokens; send one."))


def _plain_message(message: Any) -> Any:  # Any: JSON
    """A message with parts as text, and an assistant's turn with its refusal, or nothing, for a content it lacks."""
    if not isinstance(message, dict):
        return message
    if isinstance(content := message.get("content"), list):
        message["content"] = [_plain_part(part) for part in content]
    if message.get("role") == "assistant":
        refusal = message.pop("refusal", "")
        if message.get("content") in (None, "", []):
            message["content"] = refusal
    return message


def _plain_part(part: Any) -> Any:  # Any: JSON
    if isinstance(part, dict) and (name := _TEXTS.get(str(part.get("type")))) and set(part) == {"type", name}:
        return {"type": "text", "text": part[name]}
    return part


def _plain_format(form: JsonObject) -> JsonObject:
    """A form of an answer as OpenAI has it, from one with the schema in another place."""
    schema = form.get("json_schema")
    if form.get("schema") == {} and form.get("type") == "json_object":
        return {name: value for name, value in form.items() if name != "schema"}
    if isinstance(form.get("schema"), dict) and schema is None and form.get("type") in ("json_object", "json_schema"):
        more: JsonObject = {name: form[name] for name in ("description", "strict") if name in form}
        wrapped: JsonObject = {"name": form.get("name", _FORMAT_NAME), "schema": form["schema"], **more}
        left = {name: value for name, value in form.items() if name not in ("schema", "name", *more)}
        return {**left, "type": "json_schema", "json_schema": wrapped}
    if isinstance(schema, dict) and "schema" not in schema and schema.keys() & _SCHEMA_WORDS:
        return {**form, "json_schema": {"name": _FORMAT_NAME, "schema": schema}}
    if isinstance(schema, dict):
        named: JsonObject = dict(schema)
        named.setdefault("name", _FORMAT_NAME)
        return {**form, "json_schema": named}
    return form
