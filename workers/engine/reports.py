"""What a host of models tells others: what it has loaded, and how full the memory is."""

from dataclasses import dataclass
from datetime import datetime

from workers.engine.memory import MemoryLevel, MemoryReading


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, for people; ``memory_bytes`` is weights, cache and buffers."""

    llm: str
    since: datetime
    memory_bytes: int
    quantization: str
    jobs: int
    tokens_per_s: float | None

    def as_wire(self) -> dict[str, object]:
        """As JSON, with numbers rounded so that an idle model does not look changed."""
        speed = None if self.tokens_per_s is None else round(self.tokens_per_s, 1)
        return {
            "llm": self.llm,
            "since": self.since.isoformat(),
            "memory_bytes": self.memory_bytes,
            "quantization": self.quantization,
            "jobs": self.jobs,
            "tokens_per_s": speed,
        }


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """The memory's level went from ``before`` to ``level``."""

    before: MemoryLevel
    level: MemoryLevel
    reading: MemoryReading

    def as_wire(self) -> dict[str, object]:
        """The payload of the event."""
        return {
            "level": self.level.name.lower(),
            "before": self.before.name.lower(),
            "used_percent": round(100 * self.reading.used_share, 1),
            "total_bytes": self.reading.total_bytes,
            "available_bytes": self.reading.available_bytes,
        }
