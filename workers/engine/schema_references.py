"""What the references within a JSON Schema refer to: pointers, anchors, identifiers. Pure."""

from collections import deque
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

_MAX_LOOKED_AT = 50_000
"""The most sub-schemas that are looked at for names."""

_NO_SCHEMAS = frozenset({"enum", "const", "default", "examples", "example", "required", "description", "title"})

Schema = dict[str, Any]  # Any: the caller's JSON


class References:
    """The references of one schema. A reference to another document has no target here."""

    def __init__(self, root: Any) -> None:  # Any: a JSON Schema
        self._root = root
        self._base = ""
        self._named: dict[str, Any] | None = None
        self._bases: dict[int, str] = {}

    def resolve(self, reference: str, beside: Schema | None = None) -> Schema | None:
        """The schema that a reference refers to; ``beside`` is the schema in which it stands.

        True is the schema without keywords; None when there is no such schema.
        """
        if reference == "#" or (reference.startswith("#/") and not self._has_bases):
            return _as_schema(_follow(self._root, reference[1:]))
        names = self._names()
        base = self._base if beside is None else self._bases.get(id(beside), self._base)
        try:
            document, fragment = urldefrag(urljoin(base, reference))
        except ValueError:
            return None
        if fragment and not fragment.startswith("/"):
            return _as_schema(names.get(f"{document}#{fragment}"))
        target = names.get(document, self._root if document == urldefrag(self._base)[0] else None)
        return _as_schema(_follow(target, fragment))

    @property
    def _has_bases(self) -> bool:
        return len(self._names()) > 1

    def _names(self) -> dict[str, Any]:
        """All identifiers and anchors, and from which base each schema's references go."""
        if self._named is not None:
            return self._named
        named: dict[str, Any] = {}  # Any: JSON Schemas
        self._named = named
        self._base = _identifier(self._root)
        queue: deque[tuple[Any, str]] = deque([(self._root, "")])
        looked_at = 0
        while queue and looked_at < _MAX_LOOKED_AT:
            schema, base = queue.popleft()
            looked_at += 1
            if isinstance(schema, dict):
                base = _note(schema, base, named)
                self._bases[id(schema)] = base
                queue.extend((value, base) for key, value in schema.items() if key not in _NO_SCHEMAS)
            elif isinstance(schema, list):
                queue.extend((value, base) for value in schema)
        return named


def _note(schema: Schema, base: str, named: dict[str, Any]) -> str:
    """Note a schema's names; gives the base that holds within it."""
    identifier = _identifier(schema)
    try:
        if identifier.startswith("#"):  # an anchor, until draft 7
            named.setdefault(urldefrag(base)[0] + identifier, schema)
        elif identifier:
            base = urljoin(base, identifier)
            named.setdefault(urldefrag(base)[0], schema)
    except ValueError:
        return base
    for key in ("$anchor", "$dynamicAnchor"):
        if isinstance(schema.get(key), str):
            named.setdefault(f"{urldefrag(base)[0]}#{schema[key]}", schema)
    return base


def _identifier(schema: Any) -> str:
    if not isinstance(schema, dict):
        return ""
    found = schema.get("$id", schema.get("id"))
    return found if isinstance(found, str) else ""


def _follow(target: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict) and key in target:
            target = target[key]
        elif isinstance(target, list) and key.isascii() and key.isdecimal() and int(key[:9]) < len(target):
            target = target[int(key[:9])]
        else:
            return None
    return target


def _as_schema(target: Any) -> Schema | None:
    return target if isinstance(target, dict) else {} if target is True else None
