"""What a model is given: how much cache, how many threads, and whose memory. Pure decisions."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.catalog import EngineConfig
from workers.engine.gguf import ModelFile

KEPT_BACK = 0.2
"""The share of memory that models never get: for what a load needs besides, and for other processes."""

COMPUTE_BYTES = 64 << 20
"""What a context takes beside weights and cache: the buffers of its steps. Measured: 36 MB for SmolLM2-135M with 16
sequences."""

CELLS_PER_JOB = 512
CACHE_SHARE = 0.25
_CELLS_STEP = 256  # llama.cpp rounds a context up to this


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model file will be held; ``cells`` are the tokens that its cache keeps over all sequences.

    ``gpu_share`` is the share of its layers, from 0 to 1, that are not in the machine's memory but in a GPU's.
    """

    file: ModelFile
    context_window: int
    parallel: int
    cells: int
    gpu_share: float = 0.0

    @property
    def weight_bytes(self) -> int:
        return int(self.file.size_bytes * (1 - self.gpu_share))

    @property
    def cache_bytes(self) -> int:
        return int(self.cells * self.file.bytes_per_cell * (1 - self.gpu_share))

    @property
    def memory_bytes(self) -> int:
        """Weights, cache and buffers in the machine's memory."""
        return self.weight_bytes + self.cache_bytes + COMPUTE_BYTES


@dataclass(frozen=True, slots=True)
class Held:
    """A model that is in memory; one that is used or essential is not unloaded for another."""

    name: str
    memory_bytes: int
    weight_bytes: int
    last_used: float
    is_free: bool


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that a further model may take, in bytes."""

    now: int
    """As it is."""

    at_most: int
    """When every model that nobody needs is unloaded."""


def plan_for(
    file: ModelFile,
    config: EngineConfig,
    *,
    context_window: int,
    concurrency: int,
    budget_bytes: int,
    gpu_layers: int = 0,
) -> Plan:
    """How to hold a file, for a pool of so many jobs at once and so much memory for all models.

    ``gpu_layers`` is how many layers a GPU holds, -1 for all.
    """
    window = min(context_window, file.context_length or context_window)
    parallel = config.parallel or concurrency
    cells = config.cells or derive_cells(parallel, window, file.bytes_per_cell, budget_bytes)
    gpu_share = 1.0 if gpu_layers < 0 else min(1.0, gpu_layers / max(1, file.layers))
    return Plan(file, window, parallel, cells, gpu_share)


def derive_cells(parallel: int, window: int, bytes_per_cell: int, budget_bytes: int) -> int:
    """The cells of a cache: 512 for each job, within a quarter of the budget, and at least one whole window."""
    affordable = int(CACHE_SHARE * budget_bytes) // max(1, bytes_per_cell)
    cells = max(window, min(parallel * CELLS_PER_JOB, affordable))
    return -(-cells // _CELLS_STEP) * _CELLS_STEP


def room_for_models(held: Sequence[Held], budget_bytes: int, available_bytes: int) -> Room:
    """How much a further model may take, by the budget and by what is free.

    The kernel counts mapped weights as free, since it could drop them; those of models that are in memory are not.
    """
    taken = sum(model.memory_bytes for model in held)
    freeable = sum(model.memory_bytes for model in held if model.is_free)
    free = available_bytes - sum(model.weight_bytes for model in held)
    return Room(
        now=int(min(budget_bytes - taken, free * (1 - KEPT_BACK))),
        at_most=int(min(budget_bytes - taken + freeable, (free + freeable) * (1 - KEPT_BACK))),
    )


def choose_evictions(held: Sequence[Held], budget_bytes: int, available_bytes: int, needed_bytes: int) -> list[str]:
    """The models to unload so that one more fits, the least recently used first; all that may be if none suffice."""
    left = list(held)
    evicted = []
    for model in sorted((model for model in held if model.is_free), key=lambda model: model.last_used):
        if room_for_models(left, budget_bytes, available_bytes).now >= needed_bytes:
            break
        left.remove(model)
        available_bytes += model.memory_bytes - model.weight_bytes
        evicted.append(model.name)
    return evicted
