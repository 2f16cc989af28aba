"""The providers of one process, made when they are first needed."""

from models.catalog import LLM, Catalog
from models.errors import ConfigurationError, FailureCode
from workers.providers.base import Provider, ProviderError
from workers.providers.llamacpp import LlamaCppProvider
from workers.providers.mock import MockProvider
from workers.providers.openai import OpenAIProvider


class Providers:
    """Looks up the provider of an LLM; ``max_in_flight`` bounds each one's connections."""

    def __init__(self, catalog: Catalog, max_in_flight: int) -> None:
        self._catalog = catalog
        self._max_in_flight = max_in_flight
        self._made: dict[str, Provider] = {}

    def get(self, name: str) -> Provider:
        """The provider of an LLM; raises ProviderError when it is not in this worker's catalogue."""
        if name not in self._made:
            llm = self._catalog.llms.get(name)
            if llm is None:
                message = f"this worker's catalogue has no LLM {name!r}"
                raise ProviderError.of(FailureCode.INTERNAL, message)
            self._made[name] = self._make(llm)
        return self._made[name]

    async def close(self) -> None:
        """Close every provider that was made."""
        for provider in self._made.values():
            await provider.close()

    def _make(self, llm: LLM) -> Provider:
        try:
            match llm.provider:
                case "llamacpp":
                    return LlamaCppProvider(llm)
                case "openai":
                    return OpenAIProvider(llm, max_connections=self._max_in_flight)
                case "mock":
                    return MockProvider(llm)
        except ConfigurationError as error:
            raise ProviderError.of(FailureCode.PROVIDER_AUTH, str(error)) from error
