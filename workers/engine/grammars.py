"""Finds the grammar for a response format: built and tried in a child process, and remembered.

What becomes of a schema here is never a job's failure. A child that crashes or takes too long over a schema means that
the schema is loosened, in the end to any JSON; the check of the answer decides.
"""

import asyncio
import json
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import structlog

from workers.children import Cause, ChildFailed, Children
from workers.engine.grammar import MOST_LOOSENED, json_grammar, object_grammar, schema_of

TRIAL_S = 4.0
"""Processor time for one schema. An honest one takes some 50 ms; the first on a vocabulary loads that, in a second."""

CHILDREN = 2
"""Each takes about 100 MB, and is started only when there is something to try."""

_LONGEST_ANSWER = 8 << 20
_MOST_REMEMBERED_BYTES = 8 << 20

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Found:
    """A grammar that was tried. ``exact``: every answer that it lets through follows the schema."""

    text: str
    exact: bool


class Grammars:
    """The grammars of one process's schemas; for one event loop."""

    def __init__(self, children: Children | None = None) -> None:
        self._children = children or Children("workers.engine.trial", number=CHILDREN, max_line=_LONGEST_ANSWER)
        self._remembered: OrderedDict[bytes, Found] = OrderedDict()
        self._remembered_bytes = 0
        self._under_way: dict[bytes, asyncio.Task[Found]] = {}

    async def find(self, tenant: str, model: Path, response_format: dict[str, Any] | None) -> Found | None:
        """The grammar for answers of a model in a response format; None for free text."""
        kind = (response_format or {}).get("type", "text")
        if kind == "text":
            return None
        if kind == "json_object":
            return Found(object_grammar().text, object_grammar().exact)
        try:
            schema = json.dumps(schema_of(response_format))
        except (RecursionError, ValueError):
            return _any_json()
        key = sha256(f"{model}\n{schema}".encode()).digest()
        if key in self._remembered:
            self._remembered.move_to_end(key)
            return self._remembered[key]
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._try(tenant, model, schema, key))
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End the children."""
        await self._children.close()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _try(self, tenant: str, model: Path, schema: str, key: bytes) -> Found:
        for level in (0, MOST_LOOSENED - 1):
            question = f'{{"schema": {schema}, "model": {json.dumps(str(model))}, "level": {level}}}'
            try:
                answer = json.loads(await self._children.ask(tenant, question.encode(), timeout_s=TRIAL_S))
            except ChildFailed as failure:
                log.warning("grammar.not_tried", tenant_id=tenant, cause=failure.cause.value, level=level)
                if failure.cause is Cause.START:
                    return _any_json()
                continue
            found = _any_json() if answer["grammar"] is None else Found(answer["grammar"], answer["exact"])
            break
        else:
            found = _any_json()
        self._remember(key, found)
        return found

    def _remember(self, key: bytes, found: Found) -> None:
        self._remembered[key] = found
        self._remembered_bytes += len(found.text)
        while self._remembered_bytes > _MOST_REMEMBERED_BYTES:
            _, forgotten = self._remembered.popitem(last=False)
            self._remembered_bytes -= len(forgotten.text)


def _any_json() -> Found:
    return Found(json_grammar().text, json_grammar().exact)
