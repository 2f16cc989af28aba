"""A child process that checks JSON against JSON Schemas, for callers who may have written either to hurt.

A few lines of schema can ask for more work than a machine has time, and no library stops by itself: so this process
does it and nothing else, and :mod:`workers.checking` loses it when it takes too long. Each question is a line of JSON,
``{"schema", "text"}``, as is its answer, ``{"problems", "usable"}``.
"""

import resource
from functools import lru_cache
from typing import Any

import jsonschema_rs
import orjson

from workers.child import serve

MAX_PROBLEMS = 8
MAX_PROBLEM_LENGTH = 200
_MEMORY_BYTES = 1024**3
_PATTERN_BYTES = 1 << 20


def answer(question: bytes) -> bytes:
    """The verdict on a question."""
    return orjson.dumps(check(orjson.loads(question)))


def check(request: dict[str, Any]) -> dict[str, object]:  # Any: a JSON Schema
    """What is wrong with an answer, or with the schema itself. Without ``text`` only the schema is looked at."""
    try:
        validator = _validator(orjson.dumps(request["schema"]))
    except ValueError as error:  # jsonschema_rs.ValidationError and others are its subclasses
        return {"usable": False, "problems": [_short(getattr(error, "message", None) or str(error))]}
    if "text" not in request:
        return {"usable": True, "problems": []}
    try:
        return {"usable": True, "problems": _problems(validator, orjson.loads(request["text"]))}
    except ValueError as error:
        return {"usable": True, "problems": [_short(str(error))]}


def _problems(validator: Any, answer: object) -> list[str]:  # Any: one of the library's classes
    problems = []
    for error in validator.iter_errors(answer):
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
        problems.append(_short(f"${path}: {error.message}"))
        if len(problems) == MAX_PROBLEMS:
            break
    return problems


@lru_cache(maxsize=64)
def _validator(schema: bytes) -> Any:  # Any: one of the library's classes
    return jsonschema_rs.validator_for(
        orjson.loads(schema),
        retriever=_refuse,
        pattern_options=jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES, dfa_size_limit=_PATTERN_BYTES),
    )


def _refuse(uri: str) -> Any:  # Any: the library's JSON
    raise ValueError(f"{uri}: schemas elsewhere are not read")


def _short(text: str) -> str:
    return text if len(text) <= MAX_PROBLEM_LENGTH else text[: MAX_PROBLEM_LENGTH - 1] + "…"


def main() -> None:
    """Serve until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    serve(answer)


if __name__ == "__main__":
    main()
