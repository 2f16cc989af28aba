"""The vocabulary of a model: from text to tokens and from tokens to bytes."""

import ctypes
from functools import cached_property
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as llama

from workers.engine import native
from workers.engine.errors import ModelError
from workers.engine.pieces import Pieces

_MOST_PIECE_BYTES = 512
_CONTROL = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN


class Vocabulary:
    """The tokens of a model. Reading them changes nothing: any thread may, while the engine computes."""

    def __init__(self, handle: Any) -> None:  # Any: a C pointer
        self.handle = handle
        self.size: int = llama.llama_vocab_n_tokens(handle)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """A text's tokens; ``special`` recognises control tokens in it, and adds none."""
        encoded = text.encode()
        room = len(encoded) + 2
        while True:
            tokens = (llama.llama_token * room)()
            count = llama.llama_tokenize(self.handle, encoded, len(encoded), tokens, room, False, special)
            if count >= 0:
                return tokens[:count]
            room = -count

    def piece(self, token: int) -> bytes:
        """A token's bytes; none for a control token."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self.read_piece(token, special=False)
        return known

    @cached_property
    def pieces(self) -> Pieces:
        """The tokens by their bytes."""
        return Pieces({self.piece(token): token for token in reversed(range(self.size)) if not self.ends(token)})

    def ends(self, token: int) -> bool:
        """Whether a token ends a generation."""
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = bool(native.vocab_is_eog(self.handle, token))
        return known

    def read_piece(self, token: int, *, special: bool) -> bytes:
        """A token's bytes; with ``special``, a control token's spelling."""
        buffer = ctypes.create_string_buffer(_MOST_PIECE_BYTES)
        length = native.token_to_piece(self.handle, token, buffer, _MOST_PIECE_BYTES, 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = native.token_to_piece(self.handle, token, buffer, -length, 0, special)
        return buffer.raw[:length]

    @cached_property
    def control_spellings(self) -> frozenset[str]:
        """The texts that are read as control tokens where these are recognised."""
        tokens = (token for token in range(self.size) if native.vocab_get_attr(self.handle, token) & _CONTROL)
        spellings = (llama.llama_vocab_get_text(self.handle, token) or b"" for token in tokens)
        return frozenset(text for text in (bytes_.decode(errors="replace") for bytes_ in spellings) if text)


def open_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a model file, without its weights; it stays open. Raises ModelError."""
    params = llama.llama_model_default_params()
    params.vocab_only = True
    params.n_gpu_layers = 0
    native.initialize()
    native.native_log.forget()
    handle = llama.llama_model_load_from_file(bytes(path), params)
    if not handle:
        raise ModelError(f"{path.name} cannot be loaded: {native.native_log.errors() or 'llama.cpp gives no reason'}")
    return Vocabulary(llama.llama_model_get_vocab(handle))
