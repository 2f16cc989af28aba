"""The ``llamacpp`` provider: a local GGUF model in this process, through llama-cpp-python."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import orjson

from models.catalog import LLM
from models.errors import ConfigurationError, FailureCode
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError

if TYPE_CHECKING:
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter
    from llama_cpp.llama_grammar import LlamaGrammar

_DEFAULT_TEMPERATURE = 0.8
_PACKAGE = "package:"


class LlamaCppProvider:
    """One model, loaded at the first request and kept; its own thread runs one request at a time."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llamacpp")
        self._llama: Llama | None = None
        self._formatter: Jinja2ChatFormatter | None = None

    async def generate(self, request: GenerationRequest, meter: Meter) -> Generation:
        """Answer on the model's thread; a cancelled task stops it at its next token."""
        stop = Event()
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._generate, request, meter, stop)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            if not work.cancel():
                await asyncio.wait([work])
            raise

    async def close(self) -> None:
        """Free the model."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _generate(self, request: GenerationRequest, meter: Meter, stop: Event) -> Generation:
        if stop.is_set():
            raise ProviderError.of(FailureCode.INTERNAL, "stopped before it began")
        llama, prompt = self._prepare(request)
        meter.input_tokens = len(prompt)

        def watch(tokens: Any, _logits: Any) -> bool:  # Any: numpy arrays of token ids and logits
            meter.output_tokens = len(tokens) - len(prompt) + 1  # it is asked before the new one is added
            return stop.is_set()

        chunks = llama.create_completion(
            prompt,
            max_tokens=min(request.max_tokens, self._llm.context_window - len(prompt)),
            temperature=_DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
            top_p=0.95 if request.top_p is None else request.top_p,
            stop=request.stop,
            seed=None if request.seed is None else request.seed & 0xFFFFFFFF,
            grammar=_grammar(request.response_format),
            stopping_criteria=_stopping_criteria(watch),
            stream=True,
        )
        return _collect(chunks, meter)

    def _prepare(self, request: GenerationRequest) -> tuple["Llama", list[int]]:
        """The loaded model and the prompt's tokens by its own chat template."""
        if self._llama is None or self._formatter is None:
            self._llama, self._formatter = load(self._llm)
        formatted = self._formatter(messages=request.messages)  # type: ignore[arg-type]  # its TypedDicts
        prompt = self._llama.tokenize(formatted.prompt.encode(), add_bos=not formatted.added_special, special=True)
        if len(prompt) >= self._llm.context_window:
            raise ProviderError.of(
                FailureCode.CONTEXT_LENGTH_EXCEEDED,
                f"the prompt has {len(prompt)} tokens, the context window {self._llm.context_window}",
            )
        return self._llama, prompt


def resolve_source(source: str) -> Path:
    """The file that a catalogue's ``source`` names: a path, or ``package:<package>/<file>``.

    Raises ConfigurationError when it is not there.
    """
    if not source.startswith(_PACKAGE):
        path = Path(source).expanduser()
    else:
        package, _, name = source.removeprefix(_PACKAGE).partition("/")
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigurationError(f"the package {package!r} of the model {name!r} is not installed")
        path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise ConfigurationError(f"there is no model file {path}")
    return path


def load(llm: LLM) -> tuple["Llama", "Jinja2ChatFormatter"]:
    """Load a model and its chat template. Raises ProviderError when the file is none."""
    from llama_cpp import Llama  # here, so that workers without local models need no native library
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    threads = llm.threads or os.cpu_count()
    try:
        path = resolve_source(llm.source or "")
        llama = Llama(
            str(path),
            n_ctx=llm.context_window,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
    except (ConfigurationError, ValueError) as error:
        raise ProviderError.of(FailureCode.INTERNAL, f"cannot load the model: {error}") from error
    bos, eos = (llama.detokenize([token], special=True).decode() for token in (llama.token_bos(), llama.token_eos()))
    template = llama.metadata.get("tokenizer.chat_template")
    if template is None:
        raise ProviderError.of(FailureCode.INTERNAL, "the model has no chat template")
    formatter = Jinja2ChatFormatter(template=template, bos_token=bos, eos_token=eos)
    return llama, formatter


def _collect(chunks: Any, meter: Meter) -> Generation:  # Any: the library's union of stream and answer
    text, reason = [], "stop"
    for chunk in chunks:
        choice = chunk["choices"][0]
        if choice["text"]:
            meter.mark_first_token()
            text.append(choice["text"])
        reason = choice["finish_reason"] or reason
    return Generation("".join(text), reason)


def _stopping_criteria(watch: Callable[[Any, Any], bool]) -> Any:
    from llama_cpp import StoppingCriteriaList

    return StoppingCriteriaList([watch])


def _grammar(response_format: dict[str, Any] | None) -> "LlamaGrammar | None":
    kind = (response_format or {}).get("type", "text")
    if kind == "text":
        return None
    from llama_cpp.llama_grammar import JSON_GBNF, LlamaGrammar

    if kind == "json_object":
        return LlamaGrammar.from_string(JSON_GBNF, verbose=False)
    schema = (response_format or {}).get("json_schema", {}).get("schema", {})
    try:
        return LlamaGrammar.from_json_schema(orjson.dumps(schema).decode(), verbose=False)
    except Exception as error:  # the converter raises whatever a hostile schema provokes
        message = f"the JSON Schema cannot be turned into a grammar: {error}"
        raise ProviderError.of(FailureCode.PROVIDER_REJECTED, message) from error
