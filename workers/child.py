"""The child's side of :mod:`workers.children`: reads questions from standard input, answers on standard output."""

import signal
import sys
from collections.abc import Callable

READY = b"ready\n"


def serve(answer: Callable[[bytes], bytes]) -> None:
    """Answer one line with one line until standard input ends.

    Each question is preceded by how many microseconds of processor time it may take. Beyond them the kernel ends this
    process (``SIGPROF``), whatever the code is in: a library in C or Rust hears no Python signal handler.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes standard input
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        limit, _, question = line.partition(b" ")
        signal.setitimer(signal.ITIMER_PROF, int(limit) / 1e6)
        reply = answer(question.removesuffix(b"\n"))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(reply + b"\n")
        sys.stdout.buffer.flush()
