"""Asks :mod:`workers.checker`, in child processes, whether JSON follows a JSON Schema.

The checks of all tenants share a few children. A check has a limit far below a second, and tenants rotate, so that one
tenant's schemas, however hostile, delay another's check by about one limit.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from hashlib import blake2b
from time import monotonic
from typing import Any

import orjson

from workers.children import Cause, ChildFailed, Children

CHECKERS = 3
CHECK_LIMIT_S = 0.5
"""Of processor time. A check of an honest schema takes a millisecond."""

FORGET_S = 600.0
"""How long a schema that could not be checked is refused without a look."""

MOST_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a schema can be used, and what is wrong with it or with the text."""

    usable: bool
    problems: list[str]


TOO_MUCH = Verdict(False, [f"it takes more than {CHECK_LIMIT_S:g} s or too much memory to check"])


class CheckerAway(Exception):
    """No check can be made in this process now; nothing is known of the schema or the text."""


class Checker:
    """Checks for one event loop."""

    def __init__(self) -> None:
        self._children = Children("workers.checker", number=CHECKERS)
        self._refused = _Refused(monotonic)

    async def check(self, tenant: Hashable, schema: Any, text: str | None = None) -> Verdict:
        """Check a JSON text against a caller's schema; without a text, whether the schema can be used at all.

        Raises CheckerAway.
        """
        try:
            written = orjson.dumps(schema)
        except orjson.JSONEncodeError as error:  # a number beyond 64 bits, a depth beyond 254
            return Verdict(False, [str(error)])
        name = (tenant, blake2b(written, digest_size=16).digest())
        if name in self._refused:
            return TOO_MUCH
        question = b'{"schema":%b}' % written if text is None else b'{"schema":%b,"text":%b}' % (written, _dump(text))
        try:
            return Verdict(**orjson.loads(await self._children.ask(tenant, question, timeout_s=CHECK_LIMIT_S)))
        except ChildFailed as failed:
            if failed.cause is Cause.START:
                raise CheckerAway(str(failed)) from None
            self._refused.add(name)
            return TOO_MUCH

    async def close(self) -> None:
        """End the children."""
        await self._children.close()


class _Refused:
    """The schemas that could not be checked, for a while; those refused longest ago are forgotten first.

    By tenant: one tenant's answers, made to be expensive, must not have another's schema refused.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: OrderedDict[Hashable, float] = OrderedDict()

    def __contains__(self, name: Hashable) -> bool:
        return self._clock() - self._since.get(name, -FORGET_S) < FORGET_S

    def add(self, name: Hashable) -> None:
        self._since[name] = self._clock()
        self._since.move_to_end(name)
        if len(self._since) > MOST_REMEMBERED:
            self._since.popitem(last=False)


def _dump(text: str) -> bytes:
    """A text as JSON; half a surrogate pair, which JSON cannot carry, becomes a question mark."""
    return orjson.dumps(text.encode("utf-8", "replace").decode())
