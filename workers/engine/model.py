"""One GGUF file in memory: its weights, its vocabulary and its chat template."""

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from llama_cpp import llama_cpp as llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from workers.engine import native
from workers.engine.contents import Marks
from workers.engine.errors import ModelError
from workers.engine.turns import lacks_system, shapes
from workers.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from workers.engine.gpu import GpuOptions

_BYTES_PER_VALUE = 2  # the KV cache is f16
_TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a chat template raises by itself, by its ``raise_exception``, or by a slip."""

Messages = list[dict[str, str]]


class Model:
    """A loaded model; the weights are mapped from the file, so that processes share them.

    Reading the vocabulary changes nothing: any thread may tokenize while the engine computes.
    """

    def __init__(self, path: Path, handle: Any, chat_template: str | None = None) -> None:  # Any: a C pointer
        self.path = path
        self.handle = handle
        self.tokens = Vocabulary(llama.llama_model_get_vocab(handle))
        self.vocab = self.tokens.handle
        self.vocabulary = self.tokens.size
        self.context_trained: int = llama.llama_model_n_ctx_train(handle)
        self.size_bytes: int = llama.llama_model_size(handle)
        self.recurrent = llama.llama_model_is_recurrent(handle) or llama.llama_model_is_hybrid(handle)
        self._formatter = self._make_formatter(chat_template)
        self._marks = Marks(self.tokens.control_spellings)

    @classmethod
    def load(cls, path: Path, gpu: "GpuOptions | None" = None, chat_template: str | None = None) -> "Model":
        """Load a file; seconds for a large one. ``chat_template`` takes the place of its own.

        Raises ModelError.
        """
        params = llama.llama_model_default_params()
        params.load_mode = llama.LLAMA_LOAD_MODE_MMAP
        # Repacked weights are faster in long prompts only, and are a copy: processes would no longer share them.
        params.use_extra_bufts = False
        params.n_gpu_layers = 0
        if gpu is not None:
            gpu.apply_to_model(params)
        native.initialize()
        native.native_log.forget()
        handle = llama.llama_model_load_from_file(bytes(path), params)
        if not handle:
            reason = native.native_log.errors() or "llama.cpp gives no reason"
            raise ModelError(f"{path.name} cannot be loaded: {reason}")
        try:
            return cls(path, handle, chat_template)
        except ModelError:
            llama.llama_model_free(handle)
            raise

    def close(self) -> None:
        """Free the weights; contexts on them must be gone."""
        llama.llama_model_free(self.handle)

    @property
    def bytes_per_cell(self) -> int:
        """What one token takes in the KV cache, in bytes."""
        heads = llama.llama_model_n_head_kv(self.handle)
        return int(llama.llama_model_n_layer(self.handle) * heads * self._values_per_head() * _BYTES_PER_VALUE)

    def prompt(self, messages: Messages) -> list[int]:
        """A conversation as tokens, by the model's own chat template.

        Only the template's own marks become control tokens: their spellings within a message are text. What the
        template refuses, or leaves out, is told in another shape (:mod:`workers.engine.turns`).
        Raises ValueError when the template refuses it.
        """
        guarded, seam = self._marks.guard(messages)
        parts = self._marks.split(self._render(guarded), seam)
        return [token for part in parts for token in self.tokenize(part, special=True)]

    def _render(self, messages: Messages) -> str:
        """The messages by the template, in the first shape that it takes whole. Raises ValueError."""
        refusal: ValueError | None = None
        without_system: str | None = None
        for shape in shapes(messages):
            try:
                prompt: str = self._formatter(messages=shape).prompt  # type: ignore[arg-type]  # its TypedDicts
            except _TEMPLATE_ERRORS as error:
                refusal = refusal or ValueError(f"the model's chat template refuses the messages: {error}")
                continue
            if not lacks_system(shape, prompt):
                return prompt
            without_system = without_system or prompt
        if without_system is not None:
            return without_system
        raise refusal or ValueError("there are no messages")

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """A text's tokens; ``special`` recognises control tokens in it, and adds none."""
        return self.tokens.tokenize(text, special=special)

    def piece(self, token: int) -> bytes:
        """A token's bytes; none for a control token."""
        return self.tokens.piece(token)

    def ends(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return self.tokens.ends(token)

    def metadata(self, key: str) -> str | None:
        """A value of the file's metadata."""
        room = 4096
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = llama.llama_model_meta_val_str(self.handle, key.encode(), buffer, room)
            if length < room:
                return None if length < 0 else buffer.value.decode(errors="replace")
            room = length + 1

    def _values_per_head(self) -> int:
        architecture = self.metadata("general.architecture")
        usual = llama.llama_model_n_embd(self.handle) // max(1, llama.llama_model_n_head(self.handle))
        lengths = (self.metadata(f"{architecture}.attention.{part}_length") for part in ("key", "value"))
        return sum(int(length) if length else usual for length in lengths)

    def _make_formatter(self, substitute: str | None) -> Jinja2ChatFormatter:
        template = substitute or self.metadata("tokenizer.chat_template")
        if template is None:
            raise ModelError(f"{self.path.name} has no chat template; the catalogue may give it a `chat_template`")
        begin, end = llama.llama_vocab_bos(self.vocab), llama.llama_vocab_eos(self.vocab)
        names = [self.tokens.read_piece(token, special=True).decode() if token >= 0 else "" for token in (begin, end)]
        try:
            return Jinja2ChatFormatter(template=template, bos_token=names[0], eos_token=names[1])
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template of {self.path.name} is not valid: {error}") from error
