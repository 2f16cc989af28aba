"""Ends a process whose event loop stands still, as when native code keeps the interpreter for itself.

Such a process renews no lease and answers nobody, but it has a process id, so no supervisor would start it again. The
timer is CPython's own and runs in a thread that needs no interpreter: it writes where every thread stands to standard
error and ends the process. Postgres and the broker have no part in it: a process that is cut off is not mute.
"""

import asyncio
import faulthandler
import sys
from pathlib import Path

_REARMED_PER_LIMIT = 10
_LONGEST_SILENCE_S = 5.0


async def end_if_stalled(limit_s: float, alive_file: Path | None = None) -> None:
    """Run for ever; when this event loop stands still for ``limit_s``, the process ends with exit code 1.

    ``alive_file`` is touched every few seconds as long as the loop moves, for health checks from outside.
    """
    assert sys.__stderr__ is not None
    try:
        while True:
            faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__)
            if alive_file is not None:
                alive_file.touch()  # noqa: ASYNC240 - in memory
            await asyncio.sleep(min(limit_s / _REARMED_PER_LIMIT, _LONGEST_SILENCE_S))
    finally:
        faulthandler.cancel_dump_traceback_later()
