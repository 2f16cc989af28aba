"""The ``mock`` provider: behaves as the catalogue says, for tests, trials and benchmarks."""

import asyncio
import base64
import ctypes
import math
import os
import random
import re
import signal
import struct

from models.catalog import LLM
from models.errors import FailureCode
from workers.providers.base import Embedding, EmbeddingRequest, Generation, GenerationRequest, Meter, ProviderError

_DIMENSIONS = 8
_STALL_S = 3600
_WORDS = re.compile(r"\S*\s*")


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
        self._break_process()
        if self._fails():
            code = FailureCode(behaviour.error or "internal")
            raise ProviderError.of(code, f"mock: {code}", behaviour.retry_after_s)
        meter.mark_first_token()
        text = behaviour.output.replace("{prompt}", prompt)
        await self._write(text, meter)
        meter.output_tokens = min(behaviour.output_tokens, request.max_tokens)
        reason = "length" if behaviour.output_tokens > request.max_tokens else "stop"
        return Generation(text, reason)

    async def _write(self, text: str, meter: Meter) -> None:
        """Hand the answer on word by word."""
        for number, word in enumerate(_WORDS.findall(text)):
            if self._behaviour.word_s:
                await asyncio.sleep(self._behaviour.word_s)
            meter.mark_output()
            meter.write(word)
            if self._behaviour.breaks_after_words is not None and number + 1 >= self._behaviour.breaks_after_words:
                raise ProviderError.of(FailureCode.CONNECTION, "mock: the answer broke off")

    async def embed(self, request: EmbeddingRequest, meter: Meter) -> list[Embedding]:
        """Vectors of length 1 that depend on nothing but the text."""
        if self._fails():
            raise ProviderError.of(FailureCode(self._behaviour.error or "internal"), "mock: no embeddings")
        meter.input_tokens = self._behaviour.input_tokens * len(request.texts)
        vectors = [_vector(text, request.dimensions or _DIMENSIONS) for text in request.texts]
        return [_in_base64(vector) if request.base64 else vector for vector in vectors]

    def _fails(self) -> bool:
        behaviour = self._behaviour
        if behaviour.error is None or (behaviour.error_calls or self._calls) < self._calls:
            return False
        return random.random() < behaviour.error_rate

    def _break_process(self) -> None:
        match self._behaviour.fault:
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stall":
                ctypes.PyDLL(None).sleep(_STALL_S)  # a native call that keeps the interpreter

    async def close(self) -> None:
        """Nothing to free."""


def _vector(text: str, dimensions: int) -> list[float]:
    numbers = random.Random(text)
    vector = [numbers.gauss(0, 1) for _ in range(dimensions)]
    length = math.hypot(*vector)
    return [part / length for part in vector]


def _in_base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
