"""A module for children of the tests: each question says what is to become of the child."""

import ctypes
import os
import re
import time
from pathlib import Path

from workers.child import serve


def answer(question: bytes) -> bytes:
    """Echo, or misbehave."""
    match question.split(b" ", 1):
        case [b"crash", *_]:
            ctypes.string_at(0)
        case [b"loop", *_]:
            re.match(r"(a+)+$", "a" * 64 + "!")  # in C, where no signal handler of Python's runs
        case [b"sleep", seconds]:
            time.sleep(float(seconds))
        case [b"long", size]:
            return b"x" * int(size)
        case [b"log", path]:
            with Path(path.decode()).open("a") as log:
                log.write(f"{os.getpid()}\n")
    return question


if __name__ == "__main__":
    serve(answer)
