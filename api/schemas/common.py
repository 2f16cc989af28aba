"""What the wire shapes share: checked strictly, names, amounts of money."""

from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=256)]


class Strict(BaseModel):
    """What a request says: of exactly these types, and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _decimal(amount: object) -> object:
    """A decimal string or a JSON number as a Decimal, by its shortest decimal form."""
    if isinstance(amount, bool) or not isinstance(amount, str | int | float):
        return amount
    try:
        return Decimal(str(amount).strip())
    except ArithmeticError:
        raise ValueError('send an amount in USD, such as "0.05"') from None


AMOUNT = BeforeValidator(_decimal)
"""Makes a field take an amount as a decimal string or as a JSON number."""


def _named(metadata: dict[str, str]) -> dict[str, str]:
    if "" in metadata:
        raise ValueError("a metadata key must not be empty")
    return metadata


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
    AfterValidator(_named),
]
