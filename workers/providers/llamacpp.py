"""The ``llamacpp`` provider: a local model in this process, many requests at once (:mod:`workers.engine`)."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from models.catalog import LLM
from models.errors import FailureCode, JobFailure
from workers.engine.errors import EngineError
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError, WithoutEmbeddings

if TYPE_CHECKING:  # workers without local models need no native library
    from workers.engine.engine import Engine
    from workers.engine.host import EngineHost
    from workers.engine.sampling import Sampling
    from workers.engine.sequence import Ticket


class LlamaCppProvider(WithoutEmbeddings):
    """One LLM of the catalogue, on the engine that the process's host keeps for it."""

    def __init__(self, name: str, llm: LLM, host: "EngineHost") -> None:
        self._name = name
        self._llm = llm
        self._host = host

    async def generate(self, request: GenerationRequest, meter: Meter) -> Generation:
        """Answer with the engine; a cancelled task ends its sequence before the next step."""
        try:
            async with self._host.use(self._name) as engine:
                grammars, on_text = self._host.grammars, _on_text(meter)
                found = await grammars.find(request.tenant, engine.model.path, request.response_format)
                # The template, the tokens and the grammar of a long request take their time.
                work = asyncio.to_thread(
                    _submit, engine, request, self._llm.stop, on_text, None if found is None else found.text
                )
                submission = asyncio.create_task(work)
                try:
                    ticket = await asyncio.shield(submission)
                except asyncio.CancelledError:
                    submission.add_done_callback(_cancel_submitted)
                    raise
                return await _answer(ticket, meter)
        except EngineError as error:
            raise _provider_error(error) from None

    async def close(self) -> None:
        """The host frees the model."""


def _provider_error(error: EngineError) -> ProviderError:
    """What an engine's error is to tenants: why a model is not served, with its file's path, is the operator's."""
    here = error.code is FailureCode.OVERLOADED
    if error.code is FailureCode.INTERNAL:
        return ProviderError.of(error.code, "the model cannot be run here", detail=str(error))
    return ProviderError(JobFailure(error.code, str(error), error.retry_after_s), here=here)


def _on_text(meter: Meter) -> Callable[[str], None]:
    """What takes text on the engine's thread."""
    loop = asyncio.get_running_loop()

    def take(text: str) -> None:
        meter.mark_first_token()
        if meter.on_text is not None:
            loop.call_soon_threadsafe(meter.write, text)

    return take


def _submit(
    engine: "Engine",
    request: GenerationRequest,
    stop: tuple[str, ...],
    on_text: Callable[[str], None],
    grammar: str | None,
) -> "Ticket":
    from workers.engine.sequence import Work

    try:
        prompt = engine.model.prompt([_known_role(message) for message in request.messages])
    except ValueError as error:
        raise EngineError(FailureCode.PROVIDER_REJECTED, str(error)) from None
    stops = (*request.stop, *stop)
    work = Work(prompt, request.max_tokens, _sampling(request), stops, grammar, tenant=request.tenant)
    return engine.submit(work, on_text)


def _cancel_submitted(submission: "asyncio.Task[Ticket]") -> None:
    """End what a thread has submitted for someone who no longer waits."""
    if not submission.cancelled() and submission.exception() is None:
        submission.result().cancel()


async def _answer(ticket: "Ticket", meter: Meter) -> Generation:
    """Wait for a ticket; whatever becomes of it, the meter has what it used."""
    done = asyncio.wrap_future(ticket.future)
    try:
        completion = await asyncio.shield(done)
    except asyncio.CancelledError:
        ticket.cancel()
        with suppress(EngineError, asyncio.CancelledError):
            await done
        raise
    finally:
        meter.input_tokens = ticket.prompt_tokens
        meter.cached_input_tokens = ticket.cached_tokens
        meter.output_tokens = ticket.output_tokens
        if ticket.first_token_at is not None:
            meter.mark_first_token(ticket.first_token_at)
    return Generation(completion.text, completion.finish_reason)


def _known_role(message: dict[str, str]) -> dict[str, str]:
    """OpenAI's ``developer`` is what chat templates call ``system``."""
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _sampling(request: GenerationRequest) -> "Sampling":
    """The request's wishes, over llama.cpp's usual choices."""
    from workers.engine.sampling import USUAL

    wishes: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
    }
    return replace(USUAL, seed=request.seed, **{name: wish for name, wish in wishes.items() if wish is not None})
