"""Prices: over time, from the catalogue or from the providers' lists, and what usage costs by them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from models.catalog import LLM, load_catalog
from models.errors import ConfigurationError
from models.pricing import Price, Tariff, Usage, cost_of, worst_case

NOW = datetime(2026, 11, 21, tzinfo=UTC)
HOUR = timedelta(hours=1)
CHEAP, DEAR = Price(Decimal(1), Decimal(2)), Price(Decimal(3), Decimal(4))


@pytest.fixture
def llm(tmp_path: Path) -> Callable[[str], LLM]:
    """Reads the only LLM of a catalogue from the lines that differ."""

    def read(lines: str) -> LLM:
        path = tmp_path / "catalog.toml"
        head = '[tiers.a]\nqueue = "a"\npool = "remote"\n[llms.x]\ntier = "a"\ncontext_window = 400000\n'
        path.write_text(head + lines, encoding="utf-8")
        return load_catalog(path).llms["x"]

    return read


def test_the_price_at_the_time_applies() -> None:
    tariff = Tariff(CHEAP, ((NOW, DEAR), (NOW + 2 * HOUR, CHEAP)))
    assert [tariff.at(NOW + n * HOUR) for n in (-1, 0, 1, 2)] == [CHEAP, DEAR, DEAR, CHEAP]


def test_the_worst_case_knows_every_price_until_the_job_expires() -> None:
    tariff = Tariff(CHEAP, ((NOW, DEAR), (NOW + 2 * HOUR, CHEAP)))
    assert tariff.between(NOW - HOUR, NOW - HOUR / 2) == [CHEAP]
    assert tariff.between(NOW - HOUR, NOW) == [CHEAP, DEAR]
    assert worst_case(1000, 1000, tariff.between(NOW - HOUR, NOW + 3 * HOUR)) == Decimal("0.007")


def test_cached_input_costs_its_own_price_where_there_is_one() -> None:
    usage = Usage(1_000_000, 0, cached_input_tokens=400_000)
    assert cost_of(usage, CHEAP) == 1
    assert cost_of(usage, Price(Decimal(1), Decimal(2), Decimal("0.1"))) == Decimal("0.64")
    assert cost_of(usage, Price(Decimal(1), Decimal(2), Decimal(0))) == Decimal("0.6")


def test_no_usage_within_the_worst_case_costs_more() -> None:
    price = Price(Decimal(1), Decimal(2), Decimal("1.25"))  # a cache may be dearer
    dearest = worst_case(100, 50, [price])
    assert all(
        cost_of(Usage(n, m, cached_input_tokens=c), price) <= dearest
        for n, m, c in ((100, 50, 0), (100, 50, 100), (100, 50, 33), (1, 1, 1))
    )


def test_usage_on_the_wire_has_the_details_that_there_are() -> None:
    assert Usage(3, 4).as_wire() == {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    assert Usage(3, 4, cached_input_tokens=2, reasoning_tokens=1, estimated=True).as_wire() == {
        "input_tokens": 3,
        "output_tokens": 4,
        "total_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens_details": {"reasoning_tokens": 1},
        "estimated": True,
    }


def test_the_catalogue_gives_prices_from_moments_on(llm: Callable[[str], LLM]) -> None:
    tariff = llm(
        'provider = "mock"\n'
        '[[llms.x.prices]]\nfrom = 2027-01-01T00:00:00Z\ninput_price = "3"\noutput_price = "4"\n'
        '[[llms.x.prices]]\nfrom = "2026-01-01T00:00:00+01:00"\ninput_price = "1"\noutput_price = "2"\n'
    ).tariff
    assert tariff.at(datetime(2025, 1, 1, tzinfo=UTC)) == CHEAP
    assert tariff.at(datetime(2026, 12, 31, tzinfo=UTC)) == CHEAP
    assert tariff.at(datetime(2027, 1, 1, tzinfo=UTC)) == DEAR


def test_a_price_that_the_catalogue_leaves_out_is_the_providers_list_price(llm: Callable[[str], LLM]) -> None:
    listed = llm('provider = "openai"\nmodel = "gpt-5-mini"\nbase_url = "https://api.openai.com/v1"\n').tariff.first
    assert listed == Price(Decimal("0.25"), Decimal(2), Decimal("0.025"))
    tiered = llm('provider = "anthropic"\nmodel = "claude-sonnet-4-5"\n').tariff.first
    assert tiered.input == 6  # what it costs when the whole context window is used
    own = 'provider = "anthropic"\nmodel = "claude-sonnet-4-5"\ninput_price = "1"\noutput_price = "2"\n'
    assert llm(own).tariff.first == CHEAP


@pytest.mark.parametrize(
    "lines",
    [
        'provider = "mock"\n',
        'provider = "openai"\nmodel = "gpt-5-mini"\nbase_url = "http://127.0.0.1:8000/v1"\n',
        'provider = "openai"\nmodel = "no-such-model"\nbase_url = "https://api.openai.com/v1"\n',
        'provider = "mock"\ninput_price = "1"\n',
        'provider = "mock"\nprices = []\n',
        'provider = "mock"\n[[llms.x.prices]]\ninput_price = "1"\noutput_price = "2"\n',
        'provider = "mock"\n[[llms.x.prices]]\nfrom = "2026-01-01T00:00:00"\ninput_price = "1"\noutput_price = "2"\n',
    ],
)
def test_a_price_that_nobody_knows_is_an_error_that_names_the_llm(llm: Callable[[str], LLM], lines: str) -> None:
    with pytest.raises(ConfigurationError, match=r"llms\.x"):
        llm(lines)
