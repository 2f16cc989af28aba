"""What a batch would come to, for a dry run: tokens, money and time, with what was assumed."""

from collections.abc import Mapping
from datetime import UTC, datetime
from math import ceil
from typing import Any

from api.batches.forms import Form
from api.batches.orders import Taken
from models.catalog import Catalog
from models.pricing import Usage, as_wire, cost_of
from models.routing import Vitals

LOW_BYTES, USUAL_BYTES, HIGH_BYTES = 5, 4, 3
"""UTF-8 bytes of prose that make a token: at most, usually, at least in languages of the Latin script."""

OVERHEAD_TOKENS = 12
"""What a chat template usually adds to a prompt."""


def estimate(form: Form, taken: Taken, catalog: Catalog, vitals: Mapping[str, Vitals], jobs_at_once: int) -> Any:
    """The estimate object of a dry run (Any: JSON); ``jobs_at_once``: what the workers of its queue keep in flight."""
    llm = taken.route[0]
    out_high = form.request.max_tokens * taken.distinct
    out_usual = ceil(out_high / 2)
    overhead = OVERHEAD_TOKENS * taken.distinct
    in_usual = ceil(taken.prompt_bytes / USUAL_BYTES) + overhead
    price = catalog.llms[llm].tariff.at(datetime.now(UTC))
    seconds, speed = _seconds(form, taken, vitals.get(llm, Vitals()), jobs_at_once)
    return {
        "object": "batch.estimate",
        "rows": taken.rows,
        "distinct_rows": taken.distinct,
        "columns": taken.columns,
        "model": llm,
        "route": list(taken.route),
        "tokens": {
            "input": {
                "low": taken.prompt_bytes // LOW_BYTES,
                "expected": in_usual,
                "high": ceil(taken.prompt_bytes / HIGH_BYTES) + overhead,
            },
            "output": {"low": taken.distinct, "expected": out_usual, "high": out_high},
        },
        "expected_cost_usd": as_wire(cost_of(Usage(in_usual, out_usual), price)),
        "worst_case_usd": as_wire(taken.worst_usd),
        "seconds": seconds,
        "assumptions": [
            f"{USUAL_BYTES} bytes of text are a token; {HIGH_BYTES} to {LOW_BYTES} are the range.",
            "An answer takes half of max_tokens.",
            f"Every row is answered by {llm}, at today's price.",
            "The worst case, which is reserved: a token for each byte, full answers, the dearest price of the route.",
            speed,
        ],
    }


def _seconds(form: Form, taken: Taken, known: Vitals, jobs_at_once: int) -> tuple[float | None, str]:
    """How long the rows take, and how that is known."""
    if not jobs_at_once:
        return None, "No worker serves this model now, so the time is unknown."
    if known.tokens_per_s:
        each = (known.time_to_first_token_s or 0.0) + form.request.max_tokens / 2 / known.tokens_per_s
    elif known.latency_s is not None:
        each = known.latency_s
    else:
        return None, "Nothing was measured of this model lately, so the time is unknown."
    at_once = min(jobs_at_once, form.max_parallel or jobs_at_once)
    said = f"{at_once} rows run at once, each for {each:.2f} s, as measured in the last minutes; nothing else does."
    return round(max(1.0, taken.distinct / at_once) * each, 1), said
