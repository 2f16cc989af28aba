"""Settings of the processes that do the work."""

from pydantic import Field

from models.settings import CatalogSettings, StoreSettings


class WorkSettings(StoreSettings, CatalogSettings):
    """What the relay and the workers share."""

    broker_url: str | None = Field(default=None, description="The Celery broker; the Redis URL if unset.")
    lease_s: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="Seconds without a heartbeat after which a process counts as gone; it beats every third.",
    )

    @property
    def broker(self) -> str:
        return self.broker_url or self.redis_url

    @property
    def heartbeat_s(self) -> float:
        return self.lease_s / 3

    @property
    def republish_s(self) -> float:
        """Age at which a published job that nobody holds counts as lost; more than a heartbeat, which
        renews it for whoever holds its message."""
        return self.lease_s / 2


class WorkerSettings(WorkSettings):
    """One worker process; its number of jobs in flight is Celery's ``--concurrency``."""

    drain_s: float = Field(
        default=5.0,
        ge=0,
        description="Seconds that running jobs get to finish when a worker is told to stop.",
    )


class RelaySettings(WorkSettings):
    """One relay process, which also rescues."""

    poll_s: float = Field(default=0.5, gt=0, description="Seconds between looks for due jobs without a wake-up.")
    window_factor: float = Field(
        default=2.0, ge=1, description="Jobs published per queue, as a multiple of its workers' capacity."
    )
    window_min: int = Field(default=8, ge=1, description="The smallest window of a queue.")
    jobs_per_message: int = Field(default=64, ge=1, description="The most job ids that one message carries.")
    max_deliveries: int = Field(
        default=5,
        ge=1,
        description="Workers that may vanish under a job before it is failed as their killer.",
    )
