"""The ``mock`` provider: behaves as the catalogue says, for tests, trials and benchmarks."""

import asyncio
import random

from models.catalog import LLM
from models.errors import FailureCode
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError


class MockProvider:
    """Waits, then answers or fails; ``{prompt}`` in its output becomes the last message."""

    def __init__(self, llm: LLM) -> None:
        self._behaviour = llm.mock
        self._calls = 0

    async def generate(self, request: GenerationRequest, meter: Meter) -> Generation:
        """The configured answer or error."""
        behaviour = self._behaviour
        prompt = request.messages[-1]["content"]
        if behaviour.record is not None:
            with behaviour.record.open("a", encoding="utf-8") as calls:
                calls.write(prompt.replace("\n", " ") + "\n")
        meter.input_tokens = behaviour.input_tokens
        if behaviour.latency_s:
            await asyncio.sleep(behaviour.latency_s)
        self._calls += 1
        if self._fails():
            code = FailureCode(behaviour.error or "internal")
            raise ProviderError.of(code, f"mock: {code}", behaviour.retry_after_s)
        meter.mark_first_token()
        meter.output_tokens = min(behaviour.output_tokens, request.max_tokens)
        reason = "length" if behaviour.output_tokens > request.max_tokens else "stop"
        return Generation(behaviour.output.replace("{prompt}", prompt), reason)

    def _fails(self) -> bool:
        behaviour = self._behaviour
        if behaviour.error is None or (behaviour.error_calls or self._calls) < self._calls:
            return False
        return random.random() < behaviour.error_rate

    async def close(self) -> None:
        """Nothing to free."""
