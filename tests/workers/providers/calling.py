"""Calls of the remote providers against a server of the test's own."""

import asyncio
from collections.abc import Callable

from models.catalog import LLM
from tests.workers.providers.scripted import Handler, Server, serve
from workers.providers.anthropic import AnthropicProvider
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError
from workers.providers.openai import OpenAIProvider
from workers.providers.remote import RemoteProvider

REQUEST = GenerationRequest(messages=[{"role": "user", "content": "hi"}], max_tokens=50)
PROVIDERS: dict[str, Callable[[LLM], RemoteProvider]] = {"openai": OpenAIProvider, "anthropic": AnthropicProvider}


def llm(provider: str, url: str, **changes: object) -> LLM:
    """A catalogue entry for a server."""
    fields = {
        "tier": "t",
        "provider": provider,
        "model": "their-name",
        "base_url": f"{url}/v1",
        "context_window": 100,
        "input_price": "1",
        "output_price": "2",
        "timeout_s": 5,
        **changes,
    }
    return LLM.model_validate(fields)


class Outcome:
    """What came of one call."""

    def __init__(
        self, generation: Generation | None, error: ProviderError | None, meter: Meter, server: Server
    ) -> None:
        self._generation = generation
        self._error = error
        self.meter = meter
        self.server = server

    @property
    def generation(self) -> Generation:
        assert self._generation is not None, self._error
        return self._generation

    @property
    def error(self) -> ProviderError:
        assert self._error is not None, self._generation
        return self._error


def call(provider: str, handler: Handler, request: GenerationRequest = REQUEST, **changes: object) -> Outcome:
    """Make one call to a server that ``handler`` plays."""

    async def main() -> Outcome:
        async with serve(handler) as server:
            made, meter = PROVIDERS[provider](llm(provider, server.url, **changes)), Meter()
            try:
                return Outcome(await made.generate(request, meter), None, meter, server)
            except ProviderError as error:
                return Outcome(None, error, meter, server)
            finally:
                await made.close()

    return asyncio.run(main())
