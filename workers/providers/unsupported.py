"""The parameters that a server says it does not take: the sentences of the vendors, and the fields of their errors.

Only what is said of a parameter as such is here. That a value is out of its range is the caller's to change, except
where the one value that is taken is the default: then the parameter is not taken.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

from workers.providers.complaints import Complaint

Json = Mapping[str, Any]  # Any: a request's body

SYSTEM = "system"
_ROLES = frozenset({SYSTEM, "developer"})
_BOTH = re.compile(
    r"\b(\w{1,64})[`'\"]? and [`'\"]?(\w{1,64})[`'\"]? cannot both be (?:specified|set|used)"
)  # Anthropic

_SAMPLING = r"temperature|top_[pk]|min_p|seed|logprobs|(?:frequency|presence)_?penalty|stop_sequences|stream(?:ing)?"
_NOT_TAKEN = (
    r"(?:not (?:currently |yet )?(?:supported|available|enabled|allowed|permitted)(?! to)|unsupported|deprecated)"
)
_NO_VALUE = r"(?!\W{0,2}(?:values?|of|above|below|greater|less|higher|lower|more|over|under|outside|between|[=<>\d]))"

_NAMED = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # OpenAI, Azure, llama-server
        r"unsupported (?:parameter|param|argument)s?:? [`'\"]?(?P<name>\w+)",
        r"unrecognized (?:request )?(?:argument|parameter|field)s?(?: supplied)?:? [`'\"]?(?P<name>\w+)",
        r"additional properties are not allowed \([`'\"](?P<name>\w+)[`'\"] was unexpected",
        r"use [`'\"]?(?P<instead>max_(?:completion_)?tokens)[`'\"]? instead",
        r"[`'\"](?P<name>\w+)[`'\"] does not support .{1,40}? with this model\. only the default",
        r"unsupported value:? [`'\"](?P<name>stream)[`'\"]|verified to (?P<stream>stream) this model",
        r"(?P<name>stream)ing (?:is|are) not (?:supported|available|allowed)",
        r"\b(?P<name>stream_options|include_usage)\b",  # nothing of an answer depends on it
        # OpenAI, Google, servers in Rust and Go
        r"unknown (?:parameter|field|name|argument)s?:? [`'\"]?(?P<name>\w+)",
        r"\b(?P<penalty>penalty) is not enabled",
        # LiteLLM, Volcengine, servers in Python
        r"support parameters: [\[{](?P<names>[^\]}]{1,400})",
        r"n't support (?P<name>\w+)=[\w.]{1,40}[^.]{0,60}\. only (?P=name)=",
        r"parameter [`'\"]?(?P<name>\w+)[`'\"]? specified in the request (?:is|are) not valid: [^.]{0,80}not supported",
        r"unexpected keyword argument [`'\"](?P<name>\w+)",
        r"extra (?:inputs are|fields) not permitted: [`'\"]?(?P<name>\w+)",
        r"(?:^|\n)(?P<name>\w+)\n\s{1,8}extra (?:inputs are|fields) not permitted",
        # xAI, vLLM
        r"argument not supported on this model: (?P<name>\w+)",
        r"does(?: not|n't) support (?:the )?(?:parameters? |argument )?[`'\"]?(?P<name>[a-z]\w+)\b" + _NO_VALUE,
        r"please remove [`'\"](?P<name>\w+)[`'\"]",
        r"'type': 'extra_forbidden', 'loc': \('body', '(?P<name>\w+)'\)",
        # Groq, Anthropic, proxies
        rf"[`'\"](?P<name>\w+)[`'\"] (?:parameter )?(?:is|are) {_NOT_TAKEN}",
        rf"\b(?P<name>{_SAMPLING}) (?:parameter )?(?:is|are) {_NOT_TAKEN}",
        r"[`'\"](?P<name>\w+)[`'\"] may only be set to",
        r"(?<![\w.\]])(?P<name>\w+): extra inputs are not permitted",
        # Fireworks, Bedrock, Moonshot
        r"extra inputs are not permitted, field: [`'\"](?P<name>\w+)",
        r"extraneous key \[(?P<name>\w+)\]",
        r"invalid (?P<name>\w+): only [\d.]+ is allowed for this model",
    )
)

_QUOTED = re.compile(r"[`'\"](\w+)[`'\"]")
_JSON = r"json.?(?:schema|mode|object)|structured outputs?"
_FORMAT = re.compile(
    r"response.?format\b.{0,80}(?:unavailable|unsupported|enabled only|not (?:implemented|available|supported|enabled))"
    rf"|(?:not support|n't support|unsupported).{{0,40}}(?:response.?format|{_JSON})"
    rf"|(?:{_JSON})\b.{{0,60}}not (?:currently )?(?:supported|enabled|available)"
    r"|response_format\.?(?:type)?[`'\"]? must be|only supports response formats|does not support tool",
    re.IGNORECASE,
)
_SCHEMA = re.compile(r"invalid (?:json )?schema|schema is invalid|in context=", re.IGNORECASE)
"""A refusal of what is in the caller's schema, not of schemas."""

_WORD_JSON = re.compile(r"must contain the word .?json", re.IGNORECASE)  # OpenAI, DeepSeek
_ROLE = re.compile(
    r"\.role[`'\"]? does not support [`'\"](?P<role>system|developer)"  # OpenAI
    r"|(?:system|developer) (?:role|message|instruction)s? (?:is |are )?not (?:supported|enabled)"  # templates, Google
    r"|not support (?:the )?(?:system|developer) (?:role|message|prompt|instruction)",
    re.IGNORECASE,
)
_FORBIDDEN = "extra_forbidden"  # pydantic's
_UNSUPPORTED_KINDS = frozenset({"unsupported_parameter", "unknown_parameter", "unrecognized_parameter"})
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NO_LETTER = re.compile(r"[\W_]+")
_LONGEST_LOOK = 256 * 1024
"""Characters of a request that are searched for the words of an error: a few milliseconds."""

_MOST_NAMES = 20
"""Names in one sentence that are looked at: each is searched for in the request."""

_MOST_TEXTS = 2000
"""Names and texts of a schema among which a name is looked for."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A parameter that was refused: as it is called in the request, or ``system`` for the role.

    ``beside``: only together with this one; ``proven``: the refusal is about the LLM, and is nothing that the request
    itself may have put into the error; ``role``: the role that was refused.
    """

    parameter: str
    proven: bool
    beside: str | None = None
    role: str | None = None


def refused_parameters(complaint: Complaint, body: Json) -> Iterator[Refused]:
    """The parameters of a request's body that a server refuses, as such and by name."""
    request = _Words(body)
    for name in complaint.unknown:
        yield Refused(name, not request.may_have(name, _FORBIDDEN))
    if complaint.parameter is not None and (kinds := _UNSUPPORTED_KINDS.intersection(complaint.kinds)):
        yield Refused(complaint.parameter, not request.may_have(complaint.parameter, *kinds))
    for name, said in islice(_names(complaint.message), _MOST_NAMES):
        if name not in _ROLES and name not in complaint.unknown:
            yield Refused(name, not (request.may_have(said) or request.defines(name)))
    if found := _BOTH.search(complaint.message):
        yield Refused(found[2], not request.may_have(found[0]), beside=found[1])
    if found := _ROLE.search(complaint.message):
        yield Refused(SYSTEM, not request.may_have(found[0]), role=found["role"])
    if (found := _FORMAT.search(complaint.message)) and not _SCHEMA.search(complaint.message):
        yield Refused("response_format", not request.may_have(found[0]))
    if _WORD_JSON.search(complaint.message):
        yield Refused("response_format", False)


class _Words:
    """The words of a request, among which those of an error are looked for: it may be an echo."""

    def __init__(self, body: Json) -> None:
        self._body = body

    def may_have(self, *said: str) -> bool:
        """Whether all of these words are in the request, or it is too long to look at for them."""
        return self._letters is None or all(_letters(words) in self._letters for words in said)

    def defines(self, name: str) -> bool:
        """Whether the request's own schema has this name: then a server may speak of that, in a sentence of its own."""
        return any(_letters(name) in _letters(text) for text in self._of_schema)

    @cached_property
    def _letters(self) -> str | None:
        texts = list(_strings(self._body))
        if sum(map(len, texts)) > _LONGEST_LOOK:
            return None
        return _letters("".join(texts))

    @cached_property
    def _of_schema(self) -> list[str]:
        return list(
            islice(_strings([self._body.get("response_format"), self._body.get("tools")], keys=True), _MOST_TEXTS)
        )


def _letters(text: str) -> str:
    return _NO_LETTER.sub("", text).lower()


def _names(message: str) -> Iterator[tuple[str, str]]:
    """Names in a sentence, and the words that name them."""
    for pattern in _NAMED:
        for found in pattern.finditer(message):
            groups = found.groupdict()
            if groups.get("instead"):
                other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
                yield other[groups["instead"].lower()], found[0]
            elif groups.get("names"):
                yield from ((name.lower(), found[0]) for name in _QUOTED.findall(groups["names"]))
            elif groups.get("penalty"):
                yield from ((name, found[0]) for name in ("frequency_penalty", "presence_penalty"))
            else:
                name = _CAPITAL.sub("_", groups.get("name") or groups["stream"]).lower()
                yield ("stream" if name == "streaming" else name), found[0]


def _strings(value: object, *, keys: bool = False) -> Iterator[str]:
    """Every string in a JSON value, and with ``keys`` every name in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if keys:
            yield from map(str, value)
        yield from chain.from_iterable(_strings(member, keys=keys) for member in value.values())
    elif isinstance(value, list):
        yield from chain.from_iterable(_strings(member, keys=keys) for member in value)
