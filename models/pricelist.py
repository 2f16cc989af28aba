"""List prices of providers, from the data that ``genai-prices`` carries; nothing is fetched.

A price that depends on the length of the input is taken at the length of the LLM's context window: the dearest
that can apply.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from models.pricing import Price

_PRICE_FIELDS = ("input_price", "output_price", "cached_input_price")


def first_prices(llm: Mapping[str, Any], now: datetime) -> dict[str, Any]:  # Any: TOML values, unchecked
    """The price fields that a catalogue's table of an LLM leaves out: those of the first of its ``prices``, else
    the provider's list prices.

    Raises ValueError when nobody knows them, or when only one of the two is given.
    """
    given = [name for name in ("input_price", "output_price") if name in llm]
    if len(given) == 2:
        return {}
    if given:
        raise ValueError(f"`{given[0]}` needs the other price beside it")
    windows = llm.get("prices")
    if isinstance(windows, list) and windows and all(isinstance(window, dict) for window in windows):
        earliest = min(windows, key=lambda window: str(window.get("from")))
        return {name: earliest[name] for name in _PRICE_FIELDS if name in earliest}
    name = llm.get("model")
    try:
        if not isinstance(name, str):
            raise LookupError("it names no `model`")
        price = list_price(llm["provider"], name, llm.get("base_url"), int(llm["context_window"]), now)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"its price is unknown ({error}); give `input_price` and `output_price`") from error
    return dict(zip(_PRICE_FIELDS, (price.input, price.output, price.cached_input), strict=True))


def list_price(provider: str, model: str, base_url: str | None, context_window: int, at: datetime) -> Price:
    """The list price of a provider's model at a moment, in USD per million tokens.

    ``base_url`` says whose API an OpenAI-compatible one is. Raises LookupError when nobody lists the model.
    """
    from genai_prices.data_snapshot import get_snapshot  # some 40 MB that a catalogue with prices does not need

    by_url = {"provider_id": None, "provider_api_url": base_url}
    by_name = {"provider_id": provider, "provider_api_url": None}
    _, found = get_snapshot().find_provider_model(model, None, **(by_url if base_url else by_name))
    prices = found.get_prices(at)
    input_price = _flat(prices.input_mtok, context_window)
    output_price = _flat(prices.output_mtok, context_window)
    if input_price is None or output_price is None:
        raise LookupError(f"the list has no price per token of {model}")
    return Price(input_price, output_price, _flat(prices.cache_read_mtok, context_window))


def _flat(price: Any, tokens: int) -> Decimal | None:  # Any: a Decimal, or genai-prices' TieredPrices
    if price is None or isinstance(price, Decimal):
        return price
    reached = [tier.price for tier in price.tiers if tier.start < tokens]
    return max([price.base, *reached], default=None)
