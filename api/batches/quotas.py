"""What the plan of a batch's key allows of rows: asked once, when the file has been read to its end."""

from dataclasses import dataclass, field
from uuid import UUID

from api.ratelimits import Grant, RateLimiter
from models.errors import RateLimited

RETRY_AFTER_S = 60.0


@dataclass(slots=True)
class RowQuota:
    """The rows that one batch may have; ``live_rows`` are those of the tenant's batches that have not ended."""

    limiter: RateLimiter
    plan: str | None
    api_key_id: UUID | None
    live_rows: int = 0
    _grant: Grant | None = field(default=None, init=False)

    def check(self, rows: int) -> None:
        """Raises RateLimited for a file that has more rows, so far, than the plan can ever take."""
        plan = self.limiter.plan(self.plan)
        if plan is None:
            return
        if plan.most_rows is not None and rows > plan.most_rows:
            raise RateLimited(
                f"The plan {self.plan!r} of this API key allows {plan.most_rows:,} rows of batches: send fewer.",
                retry_after_s=RETRY_AFTER_S,
                headers={"x-should-retry": "false"},
            )
        if plan.batch_rows is not None and self.live_rows + rows > plan.batch_rows:
            raise RateLimited(
                f"The plan {self.plan!r} of this API key allows {plan.batch_rows:,} rows of unfinished batches at a"
                f" time, and {self.live_rows:,} are under way: wait for them, or send fewer.",
                retry_after_s=RETRY_AFTER_S,
            )

    async def take(self, rows: int, tokens: int) -> None:
        """Charge the batch's rows; raises RateLimited."""
        self.check(rows)
        self._grant = await self.limiter.admit_rows(self.plan, self.api_key_id, rows, tokens)

    async def give_back(self) -> None:
        """Return what was taken for a batch that came to nothing."""
        grant, self._grant = self._grant, None
        await self.limiter.give_back_rows(grant)
