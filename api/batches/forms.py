"""The form that goes with an uploaded file: what is asked for all of its rows."""

import codecs
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from api.batches.problems import Problems
from api.batches.records import FORMATS
from api.batches.windows import DEFAULT_WINDOW, window_seconds
from api.bodies import JsonObject, parse_json_field, shorten
from api.fields.chat import TABLES, Surface
from api.fields.reading import read_request
from api.schemas.requests import JobRequest
from models.errors import CallbackUrlRefused, ValidationFailed

ENCODINGS = (
    "utf-8",
    *(f"windows-{page}" for page in range(1250, 1259)),
    *(f"iso-8859-{part}" for part in (1, 2, 3, 4, 5, 7, 9, 10, 13, 14, 15, 16)),
    "macintosh",
    "koi8-r",
    "koi8-u",
    "shift-jis",
    "cp932",
    "euc-jp",
    "euc-kr",
    "gb18030",
    "big5",
)
"""The encodings that a form may name for a CSV file without a byte-order mark."""

MAX_PARALLEL = 1_000_000
_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|"}


@dataclass(frozen=True, slots=True)
class Form:
    """A batch's form, checked: ``request`` is a job's request with a stand-in for the prompt."""

    request: JobRequest
    prompt: str | None = None
    system: str | None = None
    id_column: str | None = None
    completion_window: str = DEFAULT_WINDOW
    window_s: int = 86_400
    max_parallel: int | None = None
    dedupe: bool = False
    dry_run: bool = False
    name: str | None = None
    separator: str | None = None
    encoding: str | None = None
    format: str | None = None


def read_form(fields: Mapping[str, str]) -> Form:
    """The form in its fields; raises ValidationFailed with everything that is wrong, or CallbackUrlRefused."""
    problems = Problems()
    if fields.get("callback_url"):
        raise CallbackUrlRefused("This version does not deliver webhooks yet.", param="callback_url")
    request: JsonObject = {}
    own: JsonObject = {}
    for name, text in fields.items():
        if text == "":
            continue  # a field that was left empty
        try:
            if name in _OF_REQUEST:
                request[name] = _OF_REQUEST[name](text)
            elif name in _OWN:
                own[_NAMES.get(name, name)] = _OWN[name](text)
            elif name in TABLES[Surface.FORM]:
                request[name] = _loosely(text)
            else:
                problems.add(shorten(name), "There is no such field.")
        except ValueError as error:
            problems.add(name, str(error))
    checked = _checked(request, problems)
    if problems or checked is None:
        raise problems.as_error()
    window_s = window_seconds(own.get("completion_window", DEFAULT_WINDOW))
    return Form(request=checked, window_s=window_s or 0, **own)


def _checked(request: JsonObject, problems: Problems) -> JobRequest | None:
    try:
        return read_request(request, Surface.FORM, {"prompt": "-"})
    except ValidationFailed as error:
        for problem in error.problems:
            problems.add(problem.field, problem.message)
    return None


def _loosely(text: str) -> Any:  # Any: JSON
    """The JSON that a field holds, or its text: for fields that are ignored, or refused unless they change nothing."""
    try:
        return parse_json_field(text)
    except ValueError:
        return text


def _whole(text: str) -> int:
    try:
        if len(text) <= 20:
            return int(text)
    except ValueError:
        pass
    raise ValueError("Input should be a whole number")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("Input should be a number") from None


def _strings(text: str) -> Any:  # Any: JSON
    """A JSON list, or the text itself."""
    return parse_json_field(text) if text.lstrip().startswith("[") else text


def _names(text: str) -> Any:  # Any: JSON
    """A JSON list, or names with commas between."""
    found = _strings(text)
    return [part.strip() for part in found.split(",") if part.strip()] if isinstance(found, str) else found


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("send true or false")


def _parallel(text: str) -> int:
    if not 1 <= (wanted := _whole(text)) <= MAX_PARALLEL:
        raise ValueError(f"send a number from 1 to {MAX_PARALLEL}")
    return wanted


def _window(text: str) -> str:
    if window_seconds(text) is None:
        raise ValueError("send a number with m, h or d, such as 24h; 30 days at most")
    return text


def _separator(text: str) -> str:
    found = _SEPARATORS.get(text.lower(), text)
    if len(found) != 1 or not found.isascii() or found in '"\r\n\0 ' or found.isalnum():
        raise ValueError("send comma, semicolon, tab, or one other character")
    return found


def _encoding(text: str) -> str:
    name = text.lower().replace("_", "-")
    if name not in ENCODINGS:
        raise ValueError(f"send one of {', '.join(ENCODINGS)}")
    return codecs.lookup(name).name


def _format(text: str) -> str:
    if text.lower() not in FORMATS:
        raise ValueError(f"send one of {', '.join(FORMATS)}")
    return text.lower()


def _named(text: str) -> str:
    if len(text) > 256:
        raise ValueError("send at most 256 characters")
    return text


_OF_REQUEST: Mapping[str, Callable[[str], Any]] = {  # Any: a field's value
    "model": str,
    "max_tokens": _whole,
    "max_completion_tokens": _whole,
    "temperature": _number,
    "top_p": _number,
    "top_k": _whole,
    "min_p": _number,
    "frequency_penalty": _number,
    "presence_penalty": _number,
    "stop": _strings,
    "seed": _whole,
    "response_format": parse_json_field,
    "fallbacks": _names,
    "priority": str,
    "adjust": _boolean,
    "max_cost_usd": str,
    "user": str,
    "team": str,
    "metadata": parse_json_field,
}
_OWN: Mapping[str, Callable[[str], Any]] = {  # Any: a field's value
    "prompt": str,
    "system": str,
    "id_column": str.strip,
    "completion_window": _window,
    "max_parallel": _parallel,
    "dedupe": _boolean,
    "dry_run": _boolean,
    "name": _named,
    "delimiter": _separator,
    "encoding": _encoding,
    "format": _format,
}
_NAMES = {"delimiter": "separator"}
