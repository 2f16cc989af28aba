"""Completion windows: how long a batch may take, as ``24h``."""

import re

DEFAULT_WINDOW = "24h"
MAX_WINDOW_S = 30 * 86_400
_WINDOW = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}


def window_seconds(window: str) -> int | None:
    """The seconds of a window such as ``90m``, ``24h`` or ``7d``, of 30 days at most; None if it is none."""
    found = _WINDOW.fullmatch(window)
    if found is None:
        return None
    seconds = int(found[1]) * _SECONDS[found[2]]
    return seconds if seconds <= MAX_WINDOW_S else None
