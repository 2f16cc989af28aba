"""Money has one home: every amount in Headrace is computed here, in Decimal, in USD.

Prices are USD per million tokens, of at most six decimals, so a cost has at most twelve: it is kept with all of them,
and sums are exact. A worst case is rounded up to six.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal

MICRO_USD = Decimal("0.000001")
PICO_USD = Decimal("0.000000000001")
_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """What an LLM's tokens cost, in USD per million; ``cached_input`` is None where cached ones cost the same."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None

    @classmethod
    def zero(cls) -> "Price":
        """Nothing at all."""
        return cls(Decimal(0), Decimal(0))

    @property
    def uncached(self) -> "Price":
        """The most that tokens cost, whether they are in the provider's cache or not."""
        return Price(max(self.input, self.cached_input or self.input), self.output)


@dataclass(frozen=True, slots=True)
class Tariff:
    """An LLM's prices over time: the first applies until the second's moment, and so on."""

    first: Price
    later: tuple[tuple[datetime, Price], ...] = ()

    def at(self, moment: datetime) -> Price:
        """The price that applies at a moment."""
        price = self.first
        for since, later in self.later:
            if since > moment:
                break
            price = later
        return price

    def between(self, start: datetime, end: datetime) -> list[Price]:
        """Every price that applies at some moment from ``start`` to ``end``."""
        return [self.at(start), *(price for since, price in self.later if start < since <= end)]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that an attempt used.

    ``cached_input_tokens`` (read from the provider's cache) are among the input tokens, ``reasoning_tokens``
    among the output tokens. ``estimated``: the provider did not say, some of these numbers are upper estimates.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def as_wire(self) -> dict[str, object]:
        """``{"input_tokens", "output_tokens", "total_tokens"}``, and the details that there are."""
        wire: dict[str, object] = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens": self.total_tokens,
        }
        if self.cached_input_tokens:
            wire["input_tokens_details"] = {"cached_tokens": self.cached_input_tokens}
        if self.reasoning_tokens:
            wire["output_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        if self.estimated:
            wire["estimated"] = True
        return wire

    def as_openai(self) -> dict[str, object]:
        """The ``usage`` of OpenAI's chat completions, whose details are there also where they are 0."""
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_input_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


def cost_of(usage: Usage, price: Price) -> Decimal:
    """Priced usage, in USD with twelve decimals."""
    return _exact(usage, price).quantize(PICO_USD, rounding=ROUND_HALF_EVEN)


def worst_case(prompt_tokens: int, max_tokens: int, prices: Iterable[Price]) -> Decimal:
    """The dearest outcome of a job over the prices of its route, rounded up to six decimals; nothing is cached."""
    dearest = max(prompt_tokens * price.uncached.input + max_tokens * price.output for price in prices)
    return (dearest / _MILLION).quantize(MICRO_USD, rounding=ROUND_CEILING)


def as_wire(amount: Decimal) -> str:
    """An amount as the wire's decimal string, with six decimals, and with up to twelve where it has them."""
    whole, _, decimals = f"{amount:.12f}".partition(".")
    return f"{whole}.{decimals[:6]}{decimals[6:].rstrip('0')}"


def _exact(usage: Usage, price: Price) -> Decimal:
    cached = usage.cached_input_tokens if price.cached_input is not None else 0
    cached_cost = cached * (price.cached_input or 0)
    return ((usage.input_tokens - cached) * price.input + cached_cost + usage.output_tokens * price.output) / _MILLION
