"""The request fields of an installed ``openai`` package, read from its types.

    python -m tests.clients.fields            (prints them for the package that this Python has)

A line is a path: ``messages[].content[].text`` is a field of the objects in a list of the objects in a list. Of fields
whose value tells one kind of object from another (``role``, ``type``, ``purpose``, ``endpoint``) each value has a line
too, such as ``messages[].role=user``. A field that holds an object of the caller's own, such as a JSON Schema, ends
its path.

The lists beside this file are those of one version each, so that a test sees an older client without installing it:

    python -m tests.clients.fields > tests/clients/openai-3.52.0.txt
    PYTHONPATH=<where `pip download --no-deps openai==1.109.1` was unpacked> python -m tests.clients.fields > ...
"""

import collections.abc
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union

import openai
from openai.types import (
    batch_create_params,
    batch_list_params,
    embedding_create_params,
    file_create_params,
    file_list_params,
)
from openai.types.chat import completion_create_params
from typing_extensions import get_type_hints, is_typeddict

_KINDS = frozenset({"role", "type", "purpose", "endpoint"})
_CHAT = completion_create_params
ENDPOINTS: dict[str, tuple[Any, ...]] = {  # Any: a TypedDict
    "POST /v1/chat/completions": (
        _CHAT.CompletionCreateParamsNonStreaming,
        _CHAT.CompletionCreateParamsStreaming,
    ),
    "POST /v1/embeddings": (embedding_create_params.EmbeddingCreateParams,),
    "POST /v1/files": (file_create_params.FileCreateParams,),
    "GET /v1/files": (file_list_params.FileListParams,),
    "POST /v1/batches": (batch_create_params.BatchCreateParams,),
    "GET /v1/batches": (batch_list_params.BatchListParams,),
}


def fields_of(kinds: tuple[Any, ...]) -> set[str]:  # Any: a TypedDict
    """The paths of all fields of some TypedDicts."""
    return {path for kind in kinds for path in _paths(kind, "", ())}


def _paths(kind: Any, path: str, above: tuple[Any, ...]) -> Iterator[str]:  # Any: a type
    for name, hint in get_type_hints(kind).items():
        yield f"{path}{name}"
        for inner, lists in _parts(hint, ""):
            if name in _KINDS and typing.get_origin(inner) is Literal:
                yield from (f"{path}{name}={value}" for value in typing.get_args(inner))
            elif is_typeddict(inner) and inner not in above:
                yield from _paths(inner, f"{path}{name}{lists}.", (*above, inner))


def _parts(hint: Any, lists: str) -> Iterator[tuple[Any, str]]:  # Any: a type
    """The types that a value may have, each with ``[]`` for every list around it."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        for choice in typing.get_args(hint):
            yield from _parts(choice, lists)
    elif origin in (list, collections.abc.Iterable) or getattr(origin, "__name__", "") == "SequenceNotStr":
        yield from _parts(typing.get_args(hint)[0], f"{lists}[]")
    else:
        yield hint, lists


def main() -> None:
    """Print the list."""
    print(f"# openai {openai.__version__}")
    for endpoint, kinds in ENDPOINTS.items():
        print(f"\n## {endpoint}")
        print("\n".join(sorted(fields_of(kinds))))


if __name__ == "__main__":
    main()
