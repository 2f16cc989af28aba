"""Settings of the processes that do the work."""

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from models.settings import CatalogSettings, HeadraceSettings, StoreSettings
from models.urls import redis_url

_OTHER_BROKERS = ("amqp://", "amqps://", "pyamqp://")


class WorkSettings(StoreSettings, CatalogSettings):
    """What the relay and the workers share."""

    broker_url: str | None = Field(default=None, description="The Celery broker; the Redis URL if unset.")
    lease_s: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="Seconds without a heartbeat after which a process counts as gone; it beats every third.",
    )

    alive_file: Path | None = Field(
        default=None, description="A file that is touched while the process's event loop moves, for health checks."
    )

    @field_validator("broker_url")
    @classmethod
    def _read_broker_url(cls, given: str | None) -> str | None:
        return given if given is None or given.startswith(_OTHER_BROKERS) else redis_url(given)

    @property
    def broker(self) -> str:
        return self.broker_url or self.redis_url

    @property
    def heartbeat_s(self) -> float:
        return self.lease_s / 3

    @property
    def stalled_s(self) -> float:
        """How long the event loop may stand still; longer than a lease, and than a machine's short pauses."""
        return self.lease_s + 15

    @property
    def republish_s(self) -> float:
        """Age at which a published job that nobody holds counts as lost; more than a heartbeat, which
        renews it for whoever holds its message."""
        return self.lease_s / 2


class GpuSettings(HeadraceSettings):
    """Where workers of a GPU pool start."""

    gpu_required: bool = Field(
        default=True,
        description="Whether a worker refuses the queues of a GPU pool where llama.cpp finds no GPU.",
    )


class WorkerSettings(WorkSettings, GpuSettings):
    """One worker process; its number of jobs in flight is Celery's ``--concurrency``."""

    drain_s: float = Field(
        default=5.0,
        ge=0,
        description="Seconds that running jobs get to finish when a worker is told to stop.",
    )
    model_memory_mb: int | None = Field(
        default=None, ge=1, description="Memory for all local models; 80 % of what the process may use if unset."
    )
    memory_hold_percent: float = Field(
        default=70.0, gt=0, le=100, description="Memory in use from which on no further model is loaded."
    )
    memory_unload_percent: float = Field(
        default=85.0, gt=0, le=100, description="Memory in use from which on idle models are unloaded."
    )
    memory_refuse_percent: float = Field(
        default=95.0, gt=0, le=100, description="Memory in use from which on no job of a local model is begun."
    )

    @model_validator(mode="after")
    def _levels_ascend(self) -> Self:
        if not self.memory_hold_percent <= self.memory_unload_percent <= self.memory_refuse_percent:
            raise ValueError("memory_hold_percent, memory_unload_percent and memory_refuse_percent must ascend")
        return self


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
        description="Workers that may vanish under a job before it is failed as their killer; of a local model, while"
        " the job runs alone, as it does after two deaths in company.",
    )
