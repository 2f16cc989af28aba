"""One llama.cpp context: the KV cache of a model, and the steps that fill it."""

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as llama

from workers.engine import native
from workers.engine.errors import ModelError
from workers.engine.model import Model
from workers.engine.sampling import Logits

if TYPE_CHECKING:
    from workers.engine.gpu import GpuOptions

ABORTED = 2
_LARGEST_STEP = 256
"""The most tokens computed at once; more gains nothing on a CPU and takes memory."""


@dataclass(frozen=True, slots=True)
class ContextSize:
    """How much a context holds: ``cells`` tokens over ``sequences`` sequences, ``batch`` tokens per step."""

    cells: int
    sequences: int
    batch: int


class Context:
    """Used from one thread. Any sequence may share the beginning of another, since the cache is one for all."""

    def __init__(self, model: Model, size: ContextSize, threads: int, gpu: "GpuOptions | None" = None) -> None:
        """Raises ModelError when there is no memory for it."""
        self.flag = native.AbortFlag()
        self._vocabulary = model.vocabulary
        params = _params(size, threads, self.flag)
        if gpu is not None:
            gpu.apply_to_context(params)
        native.native_log.forget()
        self._handle: Any = llama.llama_init_from_model(model.handle, params)  # Any: C's pointer to a context
        if not self._handle:
            raise ModelError(f"no context for {model.path.name}: {native.native_log.errors() or 'too little memory'}")
        self._memory = llama.llama_get_memory(self._handle)
        self._batch = _Batch(size.batch)

    def close(self) -> None:
        """Free the cache; the model may be freed after."""
        llama.llama_free(self._handle)

    def add(self, sequence: int, tokens: npt.NDArray[np.int32], position: int, *, logits: bool) -> int:
        """Put tokens of a sequence into the next step; gives the place of the last, for :meth:`logits`."""
        return self._batch.add(sequence, tokens, position, logits=logits)

    def decode(self) -> int:
        """Compute what was added, and begin a new batch: 0, or llama.cpp's code; only on 0 has anything changed."""
        code: int = llama.llama_decode(self._handle, self._batch.take())
        return code

    def logits(self, place: int) -> Logits:
        """The logits after the token at a place of the last step; valid until the next."""
        pointer = native.get_logits_ith(self._handle, place)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        if not address:
            raise RuntimeError(f"the step gave no logits at {place}")
        return np.ctypeslib.as_array((ctypes.c_float * self._vocabulary).from_address(address))

    def share(self, source: int, sequence: int, tokens: int) -> None:
        """Let a sequence begin with the first tokens of another."""
        native.memory_seq_cp(self._memory, source, sequence, 0, tokens)

    def cut(self, sequence: int, tokens: int = 0) -> None:
        """Keep the first tokens of a sequence only."""
        native.memory_seq_rm(self._memory, sequence, tokens, -1)

    def length(self, sequence: int) -> int:
        """The tokens that the cache holds of a sequence."""
        return int(native.memory_seq_pos_max(self._memory, sequence)) + 1


class _Batch:
    """The arrays of a ``llama_batch``, made once and filled anew for each step."""

    def __init__(self, size: int) -> None:
        self._token = np.zeros(size, dtype=np.int32)
        self._position = np.zeros(size, dtype=np.int32)
        self._sequence = np.zeros(size, dtype=np.int32)
        self._logits = np.zeros(size, dtype=np.int8)
        self._one = np.ones(size, dtype=np.int32)
        step = self._sequence.itemsize
        self._sequence_pointers = self._sequence.ctypes.data + np.arange(size, dtype=np.uintp) * step
        self._native = llama.llama_batch(
            n_tokens=0,
            token=_pointer(self._token, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._position, ctypes.c_int32),
            n_seq_id=_pointer(self._one, ctypes.c_int32),
            seq_id=_pointer(self._sequence_pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._logits, ctypes.c_int8),
        )
        self._used = 0

    def add(self, sequence: int, tokens: npt.NDArray[np.int32], position: int, *, logits: bool) -> int:
        begin, end = self._used, self._used + len(tokens)
        self._token[begin:end] = tokens
        self._position[begin:end] = np.arange(position, position + len(tokens))
        self._sequence[begin:end] = sequence
        self._logits[begin:end] = 0
        self._logits[end - 1] = logits
        self._used = end
        return end - 1

    def take(self) -> llama.llama_batch:
        self._native.n_tokens, self._used = self._used, 0
        return self._native


def _params(size: ContextSize, threads: int, flag: native.AbortFlag) -> llama.llama_context_params:
    params: llama.llama_context_params = llama.llama_context_default_params()
    params.n_ctx = size.cells
    params.n_batch = size.batch
    params.n_ubatch = min(size.batch, _LARGEST_STEP)
    params.n_seq_max = size.sequences
    params.n_outputs_max = size.sequences  # not the batch: room for a whole vocabulary each
    params.n_threads = params.n_threads_batch = threads
    params.kv_unified = True  # beginnings can be shared at any length, without a copy
    params.swa_full = True  # without it, models with a sliding window forget the beginnings that others share
    params.no_perf = True
    params.abort_callback, params.abort_callback_data = flag.callback, flag.data
    return params


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:  # Any: numpy's and ctypes' element types
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
