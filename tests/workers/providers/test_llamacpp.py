"""The llamacpp provider with the real small model."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from llama_cpp import Llama

from models.catalog import Catalog, load_catalog
from models.errors import FailureCode
from models.sources import resolve_source
from workers.engine.engine import Engine
from workers.engine.host import EngineHost, HostOptions
from workers.engine.sequence import OnText, Ticket, Work
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError
from workers.providers.llamacpp import LlamaCppProvider

CATALOG = load_catalog()


class Smollm:
    """The provider and its host, on an event loop that lasts."""

    def __init__(self, catalog: Catalog) -> None:
        self.runner = asyncio.Runner()
        self.host = EngineHost(catalog, HostOptions(concurrency=4))
        self.provider = LlamaCppProvider("smollm2-135m", catalog.llms["smollm2-135m"], self.host)

    def answer(self, request: GenerationRequest) -> tuple[Generation, Meter]:
        meter = Meter()
        return self.runner.run(self.provider.generate(request, meter)), meter

    def close(self) -> None:
        self.runner.run(self.host.close())
        self.runner.close()


@pytest.fixture(scope="module")
def smollm() -> Iterator[Smollm]:
    made = Smollm(CATALOG)
    yield made
    made.close()


def ask(text: str, max_tokens: int = 24, **options: object) -> GenerationRequest:
    return GenerationRequest([{"role": "user", "content": text}], max_tokens, temperature=0.0, **options)  # type: ignore[arg-type]


def test_the_real_model_answers_as_the_library_itself_would(smollm: Smollm) -> None:
    request = ask("What is the capital of France?")
    generation, meter = smollm.answer(request)
    path = resolve_source(CATALOG.llms["smollm2-135m"].source or "")
    llama = Llama(str(path), n_ctx=512, flash_attn=True, verbose=False)
    theirs = llama.create_chat_completion(messages=request.messages, max_tokens=24, temperature=0.0)  # type: ignore[arg-type]
    assert generation.text == theirs["choices"][0]["message"]["content"]  # type: ignore[index]
    assert meter.usage.input_tokens == theirs["usage"]["prompt_tokens"]  # type: ignore[index]
    assert meter.usage.output_tokens == theirs["usage"]["completion_tokens"]  # type: ignore[index]
    assert meter.first_token_at is not None


def test_an_answer_is_handed_on_as_it_is_generated(smollm: Smollm) -> None:
    async def main() -> tuple[list[str], str]:
        handed_on: list[str] = []
        generation = await smollm.provider.generate(ask("Tell me a long story.", 12), Meter(handed_on.append))
        return handed_on, generation.text

    handed_on, text = smollm.runner.run(main())
    assert len(handed_on) > 3
    assert "".join(handed_on) == text


def test_an_answer_ends_at_max_tokens_with_length(smollm: Smollm) -> None:
    generation, meter = smollm.answer(ask("Tell me a long story.", max_tokens=5))
    assert generation.finish_reason == "length"
    assert meter.usage.output_tokens == 5


def test_a_stop_string_ends_the_answer_and_is_not_in_it(smollm: Smollm) -> None:
    whole, _ = smollm.answer(ask("What is the capital of France?"))
    word = whole.text.split()[2]
    generation, _ = smollm.answer(ask("What is the capital of France?", stop=[word]))
    assert generation.finish_reason == "stop"
    assert generation.text == whole.text.partition(word)[0]


def test_json_schema_is_enforced(smollm: Smollm) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    generation, _ = smollm.answer(ask("Give me a number.", 48, response_format=response_format))
    assert isinstance(json.loads(generation.text)["n"], int)


@pytest.mark.parametrize("most", [500, 2000, 5000, 20_000, 24_000])
def test_the_length_of_a_string_makes_no_schema_fail(smollm: Smollm, most: int) -> None:
    schema = {"type": "object", "properties": {"s": {"type": "string", "maxLength": most}}, "required": ["s"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "text", "schema": schema}}
    generation, _ = smollm.answer(ask("Say hello.", 64, response_format=response_format))
    assert generation.text.replace(" ", "").replace("\n", "").startswith('{"s":"')


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": ["string", "null"], "enum": ["a", "b", None]}, {"a", "b", None}),
        ({"type": "integer", "minimum": 1, "maximum": 5}, {1, 2, 3, 4, 5}),
        ({"allOf": [{"$ref": "#/$defs/Colour"}], "default": "red"}, {"red", "blue"}),
    ],
)
def test_answers_keep_to_enumerations_and_bounds_at_a_high_temperature(
    smollm: Smollm, schema: dict[str, object], expected: set[object]
) -> None:
    whole = {
        "$defs": {"Colour": {"type": "string", "enum": ["red", "blue"]}},
        "type": "object",
        "properties": {"v": schema},
        "required": ["v"],
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "value", "schema": whole}}
    for seed in range(6):
        request = replace(ask("Give me a value.", 32, response_format=response_format), temperature=1.5, seed=seed)
        generation, _ = smollm.answer(request)
        assert json.loads(generation.text)["v"] in expected


def test_the_tenant_of_a_request_reaches_the_engine(smollm: Smollm, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    submit = Engine.submit

    def note(engine: Engine, work: Work, on_text: OnText | None = None) -> Ticket:
        seen.append(work.tenant)
        return submit(engine, work, on_text)

    monkeypatch.setattr(Engine, "submit", note)
    smollm.answer(replace(ask("Say hello.", 2), tenant="a"))
    assert seen == ["a"]


def test_a_prompt_longer_than_the_context_is_refused(smollm: Smollm) -> None:
    with pytest.raises(ProviderError) as caught:
        smollm.answer(ask("word " * 3000))
    assert caught.value.failure.code is FailureCode.CONTEXT_LENGTH_EXCEEDED


def test_a_cancelled_call_stops_at_the_next_token(smollm: Smollm) -> None:
    async def main() -> float:
        meter = Meter()
        task = asyncio.create_task(smollm.provider.generate(ask("Count to a million.", 1500), meter))
        while meter.first_token_at is None:  # noqa: ASYNC110 - another thread writes the meter
            await asyncio.sleep(0.01)
        task.cancel()
        asked = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert 0 < meter.output_tokens < 1400
        return time.monotonic() - asked

    assert smollm.runner.run(main()) < 5


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"not a model at all"])
def test_a_file_that_is_no_model_is_a_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    entry = CATALOG.llms["smollm2-135m"].model_copy(update={"source": str(path)})
    broken = Smollm(CATALOG.model_copy(update={"llms": {"smollm2-135m": entry}}))
    with pytest.raises(ProviderError, match="model") as caught:
        broken.answer(ask("hi"))
    assert caught.value.failure.code is FailureCode.INTERNAL
    broken.close()


def test_many_requests_at_once_share_the_model_and_its_template(smollm: Smollm) -> None:
    async def main() -> list[Meter]:
        meters = [Meter() for _ in range(6)]
        system = {"role": "developer", "content": "You sort letters by their subject, in one word. " * 4}
        requests = [
            GenerationRequest([system, {"role": "user", "content": f"Letter {n}"}], 4, temperature=0.0)
            for n in range(6)
        ]
        calls = [smollm.provider.generate(request, meter) for request, meter in zip(requests, meters, strict=True)]
        await asyncio.gather(*calls)
        return meters

    meters = smollm.runner.run(main())
    assert all(0 < meter.usage.output_tokens <= 4 for meter in meters)
    assert sum(meter.usage.cached_input_tokens > 40 for meter in meters) >= 5


def test_a_call_that_is_cancelled_while_it_is_submitted_leaves_nothing_running(smollm: Smollm) -> None:
    async def main() -> int:
        async with smollm.host.use("smollm2-135m") as engine:
            for pause_s in (0, 0.001, 0.003, 0.01, 0.03):
                task = asyncio.create_task(smollm.provider.generate(ask("Count to a million.", 1500), Meter()))
                await asyncio.sleep(pause_s)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            for _ in range(200):
                if not engine.jobs:
                    break
                await asyncio.sleep(0.02)
            return engine.jobs

    assert smollm.runner.run(main()) == 0


def test_a_deadline_ends_a_call_between_steps(smollm: Smollm) -> None:
    async def main() -> Meter:
        meter = Meter()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.8):
                await smollm.provider.generate(ask("Tell me a very long story about a river.", 1500), meter)
        return meter

    assert smollm.runner.run(main()).output_tokens < 1400
