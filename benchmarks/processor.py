"""The processor time of a running stack, by part, from ``/proc``."""

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")

_PARTS = {
    "uvicorn": "API",
    "workers.relay": "relay",
    "flower": "Flower",
    "celery": "worker",
    "valkey": "Valkey",
    "postgres": "Postgres",
}
"""Parts by what their command line contains; the first that fits."""

SUPERVISOR = "supervisor"


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    command: str
    seconds: float


def parts_of(supervisor: int) -> dict[int, str]:
    """The part of each process of the stack that ``supervisor`` started: the supervisor's children are told by their
    command lines, and what is below one of them belongs to it."""
    return _parts(supervisor, _processes())


def seconds_by_part(supervisor: int) -> Mapping[str, float]:
    """Processor seconds of each part so far, with those of its children that ended: Postgres's backends too."""
    processes = _processes()
    seconds: defaultdict[str, float] = defaultdict(float)
    for pid, part in _parts(supervisor, processes).items():
        seconds[part] += processes[pid].seconds
    return seconds


def seconds_of(pid: int) -> float:
    """Processor seconds so far of a process and of all below it, with those of its children that ended."""
    processes = _processes()
    family = {pid}
    while more := {child for child, process in processes.items() if process.parent in family} - family:
        family |= more
    return sum(processes[member].seconds for member in family if member in processes)


def _processes() -> dict[int, _Process]:
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text()
            command = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        fields = stat.rpartition(")")[2].split()
        ticks = sum(int(value) for value in fields[11:15])
        found[int(path.name)] = _Process(int(fields[1]), command, ticks / TICKS_PER_S)
    return found


def _parts(supervisor: int, processes: dict[int, _Process]) -> dict[int, str]:
    parts = {supervisor: SUPERVISOR}
    while True:
        new = {
            pid: _part(process.command) if process.parent == supervisor else parts[process.parent]
            for pid, process in processes.items()
            if process.parent in parts and pid not in parts
        }
        if not new:
            return {pid: part for pid, part in parts.items() if pid in processes}
        parts |= new


def _part(command: str) -> str:
    return next((part for mark, part in _PARTS.items() if mark in command), SUPERVISOR)
