"""The providers of one process, made when they are first needed."""

from collections.abc import Collection

import structlog

from models.catalog import LLM, Catalog
from models.errors import ConfigurationError, FailureCode
from workers.checking import Checker
from workers.engine.host import EngineHost
from workers.providers.anthropic import AnthropicProvider
from workers.providers.base import EmbeddingProvider, ProviderError
from workers.providers.keys import read_key
from workers.providers.llamacpp import LlamaCppProvider
from workers.providers.mock import MockProvider
from workers.providers.openai import OpenAIProvider

log = structlog.get_logger()


class Providers:
    """Looks up the provider of an LLM; ``checker`` checks structured answers, ``host`` holds the local models."""

    def __init__(self, catalog: Catalog, host: EngineHost) -> None:
        self.checker = Checker()
        self._catalog = catalog
        self._host = host
        self._made: dict[str, EmbeddingProvider] = {}

    def warn_of_missing_keys(self, queues: Collection[str]) -> None:
        """Say in the log which LLMs of these queues have no key: their jobs will fail with ``provider_auth``."""
        for name, llm in self._catalog.llms.items():
            if self._catalog.queue_of(name) in queues:
                try:
                    read_key(llm)
                except ConfigurationError as error:
                    log.warning("provider.key_missing", llm=name, problem=str(error))

    def get(self, name: str) -> EmbeddingProvider:
        """The provider of an LLM; raises ProviderError when it is not in this worker's catalogue."""
        if name not in self._made:
            llm = self._catalog.llms.get(name)
            if llm is None:
                message = f"this worker's catalogue has no LLM {name!r}"
                raise ProviderError.of(FailureCode.INTERNAL, message)
            self._made[name] = self._make(name, llm)
        return self._made[name]

    async def close(self) -> None:
        """Close every provider that was made."""
        for provider in self._made.values():
            await provider.close()
        await self.checker.close()

    def _make(self, name: str, llm: LLM) -> EmbeddingProvider:
        try:
            match llm.provider:
                case "llamacpp":
                    return LlamaCppProvider(name, llm, self._host)
                case "openai":
                    return OpenAIProvider(llm)
                case "anthropic":
                    return AnthropicProvider(llm)
                case "mock":
                    return MockProvider(llm)
        except ConfigurationError as error:
            message = "the provider is not set up here"
            raise ProviderError.of(FailureCode.PROVIDER_AUTH, message, detail=str(error)) from None
