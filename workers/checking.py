"""Asks :mod:`workers.checker`, a process of its own, whether JSON follows a JSON Schema."""

import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

CHECK_TIMEOUT_S = 5.0
"""A check of an honest schema takes a millisecond, the first one the start of a process besides."""

_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
"""What the checker's process needs to start; it gets no key."""

_MAX_LINE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a schema can be used, and what is wrong with it or with the text."""

    usable: bool
    problems: list[str]


class Checker:
    """Checks in a process that is started when it is first needed, and ended when it takes too long."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def check(self, schema: Any, text: str | None = None) -> Verdict:  # Any: a JSON Schema of the caller's
        """Check a JSON text against a schema; without a text, whether the schema can be used at all."""
        question = {"schema": schema} if text is None else {"schema": schema, "text": text}
        async with self._turn:
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    return Verdict(**await self._exchange(orjson.dumps(question) + b"\n"))
            except (TimeoutError, OSError, ValueError, TypeError):
                await self.close()
                return Verdict(False, [f"it takes more than {CHECK_TIMEOUT_S:g} s or too much memory to check"])
            except BaseException:
                await self.close()  # cancelled between a question and its answer
                raise

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _exchange(self, line: bytes) -> dict[str, Any]:  # Any: the checker's JSON
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "workers.checker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                limit=_MAX_LINE,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line)
        await self._process.stdin.drain()
        verdict: dict[str, Any] = orjson.loads(await self._process.stdout.readline())
        return verdict
