"""How much memory this process may use, how full it is, and what follows from that.

The kernel's own notion of free memory is used: pages of files, which mapped weights are too, can be dropped and
count as free. The machine and every control group above this process set limits; the tightest counts.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

HYSTERESIS = 0.05
"""How far below a threshold memory must fall before the level does, as a share of all."""

_UNLIMITED = 1 << 60
_V1_STAT = ("total_inactive_file", "total_active_file")
_V2_STAT = ("inactive_file", "active_file")


class MemoryLevel(IntEnum):
    """How full the memory is; each level does what those before it do."""

    NORMAL = 0
    """Nothing is restricted."""

    HOLD = 1
    """No further model is loaded, but for essential ones."""

    UNLOAD = 2
    """Idle models are unloaded, before their time."""

    REFUSE = 3
    """No job of a local model is begun."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The shares of memory at which the levels begin, from 0 to 1, ascending."""

    hold: float = 0.70
    unload: float = 0.85
    refuse: float = 0.95

    def of(self, level: MemoryLevel) -> float:
        """Where a level begins."""
        return (0.0, self.hold, self.unload, self.refuse)[level]


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """The memory that this process may use, shared with whoever else lives under the same limits; in bytes."""

    total_bytes: int
    available_bytes: int
    used_share: float


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """What this process holds in memory; ``private_bytes`` is without pages of files, such as mapped weights."""

    resident_bytes: int
    private_bytes: int


def next_level(level: MemoryLevel, used_share: float, thresholds: Thresholds) -> MemoryLevel:
    """The level that follows a reading: it rises at once, and falls only well below its threshold."""
    reached = max(step for step in MemoryLevel if used_share >= thresholds.of(step))
    if reached >= level:
        return reached
    kept = (step for step in MemoryLevel if reached < step <= level)
    return max((step for step in kept if used_share >= thresholds.of(step) - HYSTERESIS), default=reached)


def read_memory(root: Path = Path("/")) -> MemoryReading:
    """Look at the machine and at the control groups above this process; ``root`` is where ``proc`` and ``sys`` are."""
    machine = _numbers(root / "proc/meminfo", 1024)
    scopes = [(machine["MemTotal:"], machine["MemTotal:"] - machine["MemAvailable:"])]
    for directory, is_v2 in _groups(root, "memory"):
        scope = _group_memory(directory, is_v2)
        if scope is not None and scope[0] < machine["MemTotal:"]:
            scopes.append(scope)
    return MemoryReading(
        total_bytes=min(limit for limit, _ in scopes),
        available_bytes=max(0, min(limit - used for limit, used in scopes)),
        used_share=max(used / limit for limit, used in scopes),
    )


def read_process_memory(root: Path = Path("/")) -> ProcessMemory:
    """What this process holds."""
    status = _numbers(root / "proc/self/status", 1024)
    return ProcessMemory(status.get("VmRSS:", 0), status.get("RssAnon:", 0))


def usable_cpus(root: Path = Path("/")) -> int:
    """The processors that this process may keep busy: those it is bound to, or fewer by a group's quota."""
    quotas = []
    for directory, is_v2 in _groups(root, "cpu"):
        try:
            if is_v2:
                quota, period = (directory / "cpu.max").read_text().split()
            else:
                quota, period = (
                    (directory / "cpu.cfs_quota_us").read_text(),
                    (directory / "cpu.cfs_period_us").read_text(),
                )
            if quota != "max" and int(quota) > 0:
                quotas.append(math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):
            continue
    return max(1, min(len(os.sched_getaffinity(0)), *quotas, _UNLIMITED))


def _group_memory(directory: Path, is_v2: bool) -> tuple[int, int] | None:
    """The limit of a control group and what counts against it; None when it has no limit."""
    names = ("memory.max", "memory.current") if is_v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    try:
        limit, used = ((directory / name).read_text().strip() for name in names)
        if limit == "max" or not 0 < int(limit) < _UNLIMITED:
            return None
        stat = _numbers(directory / "memory.stat")
        return int(limit), max(0, int(used) - sum(stat.get(key, 0) for key in (_V2_STAT if is_v2 else _V1_STAT)))
    except (OSError, ValueError):
        return None


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """The control groups that this process is in, from the inmost to the outmost, and whether each is of version 2.

    In a container the path may be the host's, which is not mounted: what is not there is passed over.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        is_v2 = not controllers
        if is_v2 or controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / ("" if is_v2 else controllers)
            below = [part for part in path.split("/") if part and part != ".."]
            for depth in range(len(below), -1, -1):
                directory = base.joinpath(*below[:depth])
                if directory.is_dir():
                    yield directory, is_v2


def _numbers(path: Path, unit: int = 1) -> dict[str, int]:
    """A file of ``name number`` lines."""
    found = {}
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) > 1 and words[1].isdigit():
            found[words[0]] = int(words[1]) * unit
    return found
