"""Answers of vendors in the form that their documents and public reports show, with texts and numbers of our own.

``vendors/<name>.sse`` is a stream and ``vendors/<name>.json`` a whole body of the same answer; both are read to the
same text, end, usage and cost.
"""

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from models.pricing import Price, Usage, cost_of
from tests.workers.providers.calling import call
from tests.workers.providers.scripted import Call
from workers.providers.base import Generation

DIRECTORY = Path(__file__).parent / "vendors"
PRICE = Price(Decimal(1), Decimal(2), cached_input=Decimal("0.5"))


@dataclass(frozen=True)
class Example:
    """What an answer must be read to; ``cost`` in USD at 1 a million input tokens, 2 output, 0.5 cached."""

    text: str
    usage: Usage
    cost: str
    finish: str = "stop"
    provider: str = "openai"


EXAMPLES = {
    "openai": Example(
        "Köln has four bridges.", Usage(1200, 80, cached_input_tokens=1024, reasoning_tokens=64), "0.000848"
    ),
    "azure": Example("Invoice 4711 is paid.", Usage(31, 9), "0.000049"),
    "anthropic": Example(
        "It arrives on Thursday.", Usage(2040, 25, cached_input_tokens=2000), "0.00109", provider="anthropic"
    ),
    "google": Example("The museum opens at nine.", Usage(18, 412, reasoning_tokens=400), "0.000842"),
    "mistral": Example("7 x 8 = 56", Usage(22, 60), "0.000142"),
    "deepseek": Example("By 31 May.", Usage(512, 96, cached_input_tokens=448, reasoning_tokens=70), "0.00048"),
    "xai": Example("There are three.", Usage(32, 103, cached_input_tokens=6, reasoning_tokens=94), "0.000235"),
    "groq": Example("Row 17 is empty.", Usage(44, 8), "0.00006"),
    "together": Example("Refund granted.", Usage(27, 6), "0.000039"),
    "openrouter": Example("Once upon a time", Usage(60, 40, reasoning_tokens=30), "0.00014", finish="length"),
    "vllm": Example("1, 2, 3", Usage(21, 20), "0.000061"),
    "llama-server": Example("Guten Tag", Usage(14, 5), "0.000024"),
    "ollama": Example("42", Usage(33, 17), "0.000067"),
    "moonshot": Example("Page 3, line 8.", Usage(90, 11, cached_input_tokens=64), "0.00008"),
}


def test_every_recorded_answer_is_in_the_table() -> None:
    assert {path.stem for path in DIRECTORY.iterdir()} == set(EXAMPLES)


@pytest.mark.parametrize("form", ["sse", "json"])
@pytest.mark.parametrize("vendor", EXAMPLES)
def test_a_vendors_answer_is_read_to_its_text_end_usage_and_cost(vendor: str, form: str) -> None:
    example, body = EXAMPLES[vendor], (DIRECTORY / f"{vendor}.{form}").read_bytes()

    async def answer(call: Call) -> None:
        kind = "text/event-stream" if form == "sse" else "application/json"
        await call.answer(200, body, [f"content-type: {kind}"])

    outcome = call(example.provider, answer)
    assert outcome.generation == Generation(example.text, example.finish)
    assert outcome.meter.usage == example.usage
    assert cost_of(outcome.meter.usage, PRICE) == Decimal(example.cost)
