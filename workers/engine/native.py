"""llama.cpp's functions as the engine calls them, in the library that llama-cpp-python has loaded.

ctypes gives up the interpreter's lock around every call of a ``CDLL``. That is right for a decoding step of many
milliseconds and wrong for calls of a microsecond: to have the lock back, a thread may wait whole switch intervals
for others. The short calls go through a ``PyDLL`` on the same library, which keeps it.
"""

import ctypes
import threading
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar, cast

import structlog
from llama_cpp import llama_cpp as llama

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger()
_WARN, _ERROR = 3, 4
_quick = ctypes.PyDLL(llama._lib._name)


def _short(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, called without giving up the interpreter's lock."""
    slow = cast("Any", function)  # a ctypes function that the library's decorator returned
    quick = getattr(_quick, slow.__name__)
    quick.argtypes, quick.restype = slow.argtypes, slow.restype
    return cast("Callable[P, R]", quick)


memory_seq_cp = _short(llama.llama_memory_seq_cp)
memory_seq_rm = _short(llama.llama_memory_seq_rm)
memory_seq_pos_max = _short(llama.llama_memory_seq_pos_max)
get_logits_ith = _short(llama.llama_get_logits_ith)
token_to_piece = _short(llama.llama_token_to_piece)
vocab_is_eog = _short(llama.llama_vocab_is_eog)
vocab_get_attr = _short(llama.llama_vocab_get_attr)
sampler_accept = _short(llama.llama_sampler_accept)
sampler_apply = _short(llama.llama_sampler_apply)
sampler_free = _short(llama.llama_sampler_free)

grammar_accept: Callable[[Any, int], None] = llama.llama_sampler_accept
grammar_apply: Callable[[Any, Any], None] = llama.llama_sampler_apply
"""With a grammar these may take long, whatever was tried before: other threads go on meanwhile."""


class AbortFlag:
    """A flag that llama.cpp's compute threads look at without entering Python.

    They ask about a thousand times per step. C's ``strlen`` on a buffer of one character has the shape that they ask
    for: it answers 0 for an empty string and 1 for the raised flag.
    """

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(2)
        libc = ctypes.CDLL(None)
        address = ctypes.cast(libc.strlen, ctypes.c_void_p).value or 0
        self.callback = llama.ggml_abort_callback(address)
        self.data = ctypes.cast(self._buffer, ctypes.c_void_p)

    def raise_it(self) -> None:
        """Let the step that is under way end at the next look."""
        self._buffer[0] = b"\x01"

    def lower(self) -> None:
        """Let the following steps run."""
        self._buffer[0] = b"\x00"


class NativeLog:
    """What llama.cpp writes, kept per thread until someone asks why a call failed."""

    def __init__(self) -> None:
        self._lines = threading.local()
        self._callback = llama.llama_log_callback(self._hear)

    def install(self) -> None:
        """Take the place of the library's own handler, for the whole process."""
        llama.llama_log_set(self._callback, ctypes.c_void_p(0))

    def forget(self) -> None:
        """Begin anew, before a call whose errors matter."""
        self._kept().clear()

    def errors(self) -> str:
        """The errors of this thread since it last forgot, as one line."""
        return "; ".join(line.strip() for line in self._kept() if line.strip())

    def _kept(self) -> deque[str]:
        if not hasattr(self._lines, "kept"):
            self._lines.kept = deque(maxlen=8)
        return cast("deque[str]", self._lines.kept)

    def _hear(self, level: int, line: bytes, _data: Any) -> None:  # Any: C's void pointer
        if level == _ERROR:
            self._kept().append(line.decode(errors="replace"))
        elif level == _WARN:
            log.debug("llama.warning", message=line.decode(errors="replace").strip())


native_log = NativeLog()


@lru_cache(maxsize=1)
def initialize() -> None:
    """Make the library ready, once per process."""
    llama.llama_backend_init()
    native_log.install()
