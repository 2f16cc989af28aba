"""What memory there is, by the kernel's own files, and the levels of its use."""

import os
from pathlib import Path

import pytest

from workers.engine.memory import (
    MemoryLevel,
    MemoryReading,
    Thresholds,
    next_level,
    read_memory,
    read_process_memory,
    usable_cpus,
)

GIB = 1 << 30
NORMAL, HOLD, UNLOAD, REFUSE = MemoryLevel


@pytest.mark.parametrize(
    ("before", "used", "after"),
    [
        (NORMAL, 0.69, NORMAL),
        (NORMAL, 0.70, HOLD),
        (NORMAL, 0.85, UNLOAD),
        (HOLD, 0.97, REFUSE),
        (REFUSE, 0.91, REFUSE),
        (REFUSE, 0.89, UNLOAD),
        (REFUSE, 0.20, NORMAL),
        (UNLOAD, 0.81, UNLOAD),
        (UNLOAD, 0.79, HOLD),
        (HOLD, 0.66, HOLD),
        (HOLD, 0.64, NORMAL),
    ],
)
def test_a_level_rises_at_once_and_falls_only_well_below(before: MemoryLevel, used: float, after: MemoryLevel) -> None:
    assert next_level(before, used, Thresholds()) is after


def test_memory_that_hovers_at_a_threshold_changes_the_level_once() -> None:
    level, changes = NORMAL, 0
    for used in [0.69, 0.71] * 50:
        after = next_level(level, used, Thresholds())
        changes, level = changes + (after is not level), after
    assert (changes, level) == (1, HOLD)


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A file system with a machine of 8 GiB, 6 of them free, and what else is given."""
    meminfo = f"MemTotal: {8 << 20} kB\nMemFree: 1 kB\nMemAvailable: {6 << 20} kB\n"
    for name, content in {"proc/meminfo": meminfo, "proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/user\n", {"sys/fs/cgroup/user/memory.max": "max\n"})
    assert read_memory(root) == MemoryReading(8 * GIB, 6 * GIB, 0.25)


def test_a_limit_of_cgroup_v2_counts_without_pages_of_files(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/pod/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/pod/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/pod/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file {GIB}\n",
        "sys/fs/cgroup/pod/one/memory.max": "max\n",
    }
    assert read_memory(machine(tmp_path, "0::/pod/one\n", files)) == MemoryReading(4 * GIB, 3 * GIB, 0.25)


def test_a_limit_of_cgroup_v1_counts_and_the_fullest_scope_sets_the_share(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{3 * GIB // 2}\n",
        "sys/fs/cgroup/memory/box/memory.stat": "cache 1\ntotal_inactive_file 0\ntotal_active_file 0\n",
    }
    root = machine(tmp_path, "4:memory:/box\n1:cpu:/\n0::/\n", files)
    assert read_memory(root) == MemoryReading(2 * GIB, GIB // 2, 0.75)


def test_a_group_whose_path_is_the_hosts_is_passed_over(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/memory.current": "0\n",
        "sys/fs/cgroup/memory.stat": "\n",
    }
    assert read_memory(machine(tmp_path, "0::/../../elsewhere/pod\n", files)).total_bytes == GIB


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/a\n", {"sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
        ("0::/a\n", {"sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        (
            "1:cpu,cpuacct:/a\n",
            {
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        ("1:cpu:/a\n", {"sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n"}, None),
    ],
)
def test_a_quota_bounds_the_processors(tmp_path: Path, groups: str, files: dict[str, str], cpus: int | None) -> None:
    assert usable_cpus(machine(tmp_path, groups, files)) == (cpus or len(os.sched_getaffinity(0)))


def test_this_machine_and_this_process_can_be_read() -> None:
    reading = read_memory()
    assert 0 < reading.available_bytes < reading.total_bytes
    assert 0 < reading.used_share < 1
    before = read_process_memory()
    held = b"x" * (64 << 20)
    after = read_process_memory()
    assert after.private_bytes - before.private_bytes > 0.9 * len(held)
    assert after.resident_bytes >= after.private_bytes
