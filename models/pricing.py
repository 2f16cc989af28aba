"""Money has one home: every amount in Headrace is computed here, in Decimal, in USD.

Prices are USD per million tokens. Amounts are rounded to six decimals, half to even, once per
ledger entry, so that sums of entries are exact.
"""

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal

MICRO_USD = Decimal("0.000001")
_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """What an LLM's tokens cost, in USD per million."""

    input: Decimal
    output: Decimal

    @classmethod
    def zero(cls) -> "Price":
        """Nothing at all."""
        return cls(Decimal(0), Decimal(0))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that an attempt used."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def as_wire(self) -> dict[str, int]:
        """``{"input_tokens", "output_tokens", "total_tokens"}``."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens": self.total_tokens,
        }


def cost_of(usage: Usage, price: Price) -> Decimal:
    """Priced usage, in USD with six decimals."""
    return _exact(usage, price).quantize(MICRO_USD, rounding=ROUND_HALF_EVEN)


def worst_case(prompt_tokens: int, max_tokens: int, prices: list[Price]) -> Decimal:
    """The dearest outcome of a job over the LLMs of its route, rounded up to six decimals."""
    usage = Usage(prompt_tokens, max_tokens)
    return max(_exact(usage, price) for price in prices).quantize(MICRO_USD, rounding=ROUND_CEILING)


def as_wire(amount: Decimal) -> str:
    """An amount as the wire's decimal string, with six decimals."""
    return f"{amount:.6f}"


def _exact(usage: Usage, price: Price) -> Decimal:
    return (usage.input_tokens * price.input + usage.output_tokens * price.output) / _MILLION
