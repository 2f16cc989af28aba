"""The llamacpp provider with the real small model."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.catalog import LLM, load_catalog
from models.errors import FailureCode
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError
from workers.providers.llamacpp import LlamaCppProvider, load


@pytest.fixture(scope="module")
def smollm() -> Iterator[LlamaCppProvider]:
    provider = LlamaCppProvider(load_catalog().llms["smollm2-135m"])
    yield provider
    asyncio.run(provider.close())


def ask(text: str, max_tokens: int = 24, **options: object) -> GenerationRequest:
    return GenerationRequest([{"role": "user", "content": text}], max_tokens, temperature=0.0, **options)  # type: ignore[arg-type]


def answer(provider: LlamaCppProvider, request: GenerationRequest) -> tuple[Generation, Meter]:
    meter = Meter()
    return asyncio.run(provider.generate(request, meter)), meter


def test_the_real_model_answers_as_the_library_itself_would(smollm: LlamaCppProvider) -> None:
    request = ask("What is the capital of France?")
    generation, meter = answer(smollm, request)
    llama, _ = load(load_catalog().llms["smollm2-135m"])
    theirs = llama.create_chat_completion(messages=request.messages, max_tokens=24, temperature=0.0)  # type: ignore[arg-type]
    assert generation.text == theirs["choices"][0]["message"]["content"]  # type: ignore[index]
    assert meter.usage.input_tokens == theirs["usage"]["prompt_tokens"]  # type: ignore[index]
    assert meter.usage.output_tokens == theirs["usage"]["completion_tokens"]  # type: ignore[index]
    assert meter.first_token_at is not None


def test_an_answer_ends_at_max_tokens_with_length(smollm: LlamaCppProvider) -> None:
    generation, meter = answer(smollm, ask("Tell me a long story.", max_tokens=5))
    assert generation.finish_reason == "length"
    assert meter.usage.output_tokens == 5


def test_a_stop_string_ends_the_answer_and_is_not_in_it(smollm: LlamaCppProvider) -> None:
    whole, _ = answer(smollm, ask("What is the capital of France?"))
    word = whole.text.split()[2]
    generation, _ = answer(smollm, ask("What is the capital of France?", stop=[word]))
    assert generation.finish_reason == "stop"
    assert generation.text == whole.text.partition(word)[0]


def test_json_schema_is_enforced(smollm: LlamaCppProvider) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    generation, _ = answer(smollm, ask("Give me a number.", 48, response_format=response_format))
    assert isinstance(json.loads(generation.text)["n"], int)


def test_a_prompt_longer_than_the_context_is_refused(smollm: LlamaCppProvider) -> None:
    with pytest.raises(ProviderError) as caught:
        answer(smollm, ask("word " * 3000))
    assert caught.value.failure.code is FailureCode.CONTEXT_LENGTH_EXCEEDED


def test_a_cancelled_call_stops_at_the_next_token(smollm: LlamaCppProvider) -> None:
    async def main() -> float:
        meter = Meter()
        task = asyncio.create_task(smollm.generate(ask("Count to a million.", 1500), meter))
        while meter.first_token_at is None:  # noqa: ASYNC110 - another thread writes the meter
            await asyncio.sleep(0.01)
        task.cancel()
        asked = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert 0 < meter.output_tokens < 1400
        return time.monotonic() - asked

    assert asyncio.run(main()) < 5


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"not a model at all"])
def test_a_file_that_is_no_model_is_a_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    entry = load_catalog().llms["smollm2-135m"].model_copy(update={"source": str(path)})
    with pytest.raises(ProviderError, match="model") as caught:
        answer(LlamaCppProvider(LLM.model_validate(entry.model_dump())), ask("hi"))
    assert caught.value.failure.code is FailureCode.INTERNAL
