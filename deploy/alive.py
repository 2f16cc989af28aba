"""Exits with 0 while the event loop of this container's relay or worker moves: a health check.

A process that hangs has a process id too; what it does not do is touch ``HEADRACE_ALIVE_FILE``. Postgres is not asked:
a worker that is cut off from it holds answers that are paid for, and reports them when it is back.
"""

import os
import sys
import time
from pathlib import Path

LONGEST_SILENCE_S = 30

try:
    silence_s = time.time() - Path(os.environ["HEADRACE_ALIVE_FILE"]).stat().st_mtime
except OSError as error:
    sys.exit(f"no sign of life: {error}")
sys.exit(silence_s > LONGEST_SILENCE_S)
