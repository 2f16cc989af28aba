"""The limit of what an engine can reach: a bare ``llama_decode`` loop, without any of the engine's code.

The beginning that the prompts share is decoded once and copied, the rests come in full batches, then all sequences
take their steps together with the likeliest token each. The context has the engine's parameters.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as llama

from benchmarks.engine_work import LocalModel, Wave

_BATCH = 512
Piece = tuple[int, int, tuple[int, ...], bool]
"""A sequence, a position, the tokens from there on, and whether the logits after the last are wanted."""


class BareLoop:
    """Weights, one context and its batch; ``parallel`` sequences beside the one that keeps the beginning."""

    def __init__(self, model: LocalModel, *, parallel: int, cells: int, threads: int, gpu: bool, repack: bool) -> None:
        llama.llama_backend_init()
        self._model: Any = self._load(model, gpu=gpu, repack=repack)  # Any: C's pointers
        self._context: Any = self._open(parallel, cells, threads, gpu=gpu)
        self._memory: Any = llama.llama_get_memory(self._context)
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._batch = llama.llama_batch_init(_BATCH, 0, 1)
        self._keeper = parallel
        self._beginning: tuple[int, ...] = ()

    def close(self) -> None:
        """Free everything."""
        llama.llama_batch_free(self._batch)
        llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    def run(self, wave: Wave) -> int:
        """Compute a wave; gives the prompt tokens that it decoded."""
        sequences = range(len(wave.prompts))
        for sequence in sequences:
            llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        decoded = self._begin(wave.prompts[0][: wave.shared])
        for sequence in sequences if wave.shared else ():
            llama.llama_memory_seq_cp(self._memory, self._keeper, sequence, 0, wave.shared)
        chosen = self._read(wave)
        for step in range(1, wave.output):
            position = len(wave.prompts[0]) + step - 1
            chosen = self._decode([(sequence, position, (chosen[sequence],), True) for sequence in sequences])
        return decoded + sum(len(prompt) - wave.shared for prompt in wave.prompts)

    def _begin(self, beginning: tuple[int, ...]) -> int:
        """Decode the shared beginning, unless it is there from the wave before."""
        if not beginning or beginning == self._beginning:
            return 0
        llama.llama_memory_seq_rm(self._memory, self._keeper, -1, -1)
        self._decode([(self._keeper, 0, beginning, False)])
        self._beginning = beginning
        return len(beginning)

    def _read(self, wave: Wave) -> dict[int, int]:
        """Decode the rests of the prompts in full batches; the first token of each sequence."""
        chosen: dict[int, int] = {}
        pieces: list[Piece] = []
        room = _BATCH
        for sequence, prompt in enumerate(wave.prompts):
            at = wave.shared
            while at < len(prompt):
                end = min(len(prompt), at + room)
                pieces.append((sequence, at, prompt[at:end], end == len(prompt)))
                room -= end - at
                at = end
                if not room:
                    chosen |= self._decode(pieces)
                    pieces, room = [], _BATCH
        return chosen | (self._decode(pieces) if pieces else {})

    def _decode(self, pieces: list[Piece]) -> dict[int, int]:
        """One call of ``llama_decode``; the likeliest next token of each sequence whose logits are wanted."""
        batch, places, place = self._batch, {}, 0
        for sequence, position, tokens, wanted in pieces:
            for offset, token in enumerate(tokens):
                batch.token[place], batch.pos[place] = token, position + offset
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
                batch.logits[place] = wanted and offset == len(tokens) - 1
                place += 1
            if wanted:
                places[sequence] = place - 1
        batch.n_tokens = place
        code = llama.llama_decode(self._context, batch)
        assert code == 0, f"llama_decode answered {code}"
        return {sequence: self._likeliest(place) for sequence, place in places.items()}

    def _likeliest(self, place: int) -> int:
        pointer = llama.llama_get_logits_ith(self._context, place)
        return int(np.ctypeslib.as_array(pointer, shape=(self._vocabulary,)).argmax())

    @staticmethod
    def _load(model: LocalModel, *, gpu: bool, repack: bool) -> Any:  # Any: C's pointer
        params = llama.llama_model_default_params()
        params.n_gpu_layers = -1 if gpu else 0
        params.use_extra_bufts = repack
        handle = llama.llama_model_load_from_file(bytes(model.path), params)
        assert handle, f"{model.path} cannot be loaded"
        return handle

    def _open(self, parallel: int, cells: int, threads: int, *, gpu: bool) -> Any:  # Any: C's pointer
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = cells, _BATCH, _BATCH
        params.n_seq_max = params.n_outputs_max = 2 * parallel
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = params.swa_full = params.no_perf = True
        if gpu:
            params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        else:
            params.offload_kqv = params.op_offload = False
        handle = llama.llama_init_from_model(self._model, params)
        assert handle, "no memory for the context"
        return handle


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep llama.cpp from writing to the terminal."""
    callback = llama.llama_log_callback(_ignore)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield
    finally:
        llama.llama_log_set(llama.llama_log_callback(), ctypes.c_void_p(0))


def _ignore(_level: int, _line: bytes, _data: Any) -> None:  # Any: C's void pointer
    pass
