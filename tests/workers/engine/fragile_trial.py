"""A stand-in for the trial of grammars that crashes, loops or notes that it was asked, as its schema's title says."""

import ctypes
import json
import re
from pathlib import Path

from workers.child import serve


def answer(question: bytes) -> bytes:
    """Misbehave, or answer."""
    asked = json.loads(question)
    title, level = asked["schema"]["title"], asked["level"]
    if title == "crash" or (title == "crash at first" and level == 0):
        ctypes.string_at(0)
    if title == "loop":
        re.match(r"(a+)+$", "a" * 64 + "!")
    if title == "log":
        with Path(asked["schema"]["description"]).open("a") as log:
            log.write("asked\n")
    return json.dumps({"grammar": "looser" if level else title, "exact": level == 0, "level": level}).encode()


if __name__ == "__main__":
    serve(answer)
