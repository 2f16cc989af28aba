"""How each LLM did in the last minutes, from its attempts: what routing and the metrics look at."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import RowMapping, text

from models.errors import PROVIDER_SIDE, FailureCode
from models.routing import Vitals

WINDOW_S = 300
MOST_ATTEMPTS = 3000
_FAILURES = sorted(PROVIDER_SIDE - {FailureCode.CIRCUIT_OPEN})

SELECT_PERFORMANCE = text("""
    WITH recent AS (
        SELECT id, llm, outcome, error ->> 'code' AS code, duration_ms, time_to_first_token_ms AS first_ms,
               output_tokens, CASE error ->> 'code' WHEN :refused THEN error ->> 'message' END AS refusal
        FROM attempts WHERE id > :since ORDER BY id DESC LIMIT :most
    )
    SELECT llm,
           count(*) FILTER (WHERE outcome = 'completed' OR code = ANY(:failures)) AS attempts,
           count(*) FILTER (WHERE code = ANY(:failures)) AS failures,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY duration_ms) FILTER (WHERE outcome = 'completed') AS latency_ms,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY first_ms) FILTER (WHERE outcome = 'completed') AS first_ms,
           sum(output_tokens) FILTER (WHERE outcome = 'completed') AS tokens,
           sum(duration_ms - coalesce(first_ms, 0)) FILTER (WHERE outcome = 'completed') AS writing_ms,
           (array_agg(refusal ORDER BY id DESC))[1] AS refusal
    FROM recent WHERE outcome IN ('completed', 'failed') GROUP BY llm
""")
"""Each LLM's latest attempts, ``most`` of them in all; ``refusal``: why the latest one failed, if it is the operator's.

An attempt's id is a UUIDv7, so the primary key finds the latest: the cost is bounded however many there were, and
no index slows the reports down.
"""


def performance_params(now: datetime) -> dict[str, object]:
    """What SELECT_PERFORMANCE is asked with."""
    since = now.astimezone(UTC) - timedelta(seconds=WINDOW_S)
    oldest = UUID(int=(int(since.timestamp() * 1000) << 80) | (7 << 76) | (2 << 62))
    refused = FailureCode.PROVIDER_AUTH.value
    return {"since": oldest, "most": MOST_ATTEMPTS, "failures": _FAILURES, "refused": refused}


def to_vitals(row: RowMapping) -> Vitals:
    """An LLM's vitals from its row; the breaker is not in it."""
    tokens, writing_ms = row["tokens"] or 0, row["writing_ms"] or 0
    return Vitals(
        attempts=row["attempts"],
        failures=row["failures"],
        latency_s=_seconds(row["latency_ms"]),
        time_to_first_token_s=_seconds(row["first_ms"]),
        tokens_per_s=float(1000 * tokens / writing_ms) if tokens and writing_ms else None,
        refusal=row["refusal"],
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
