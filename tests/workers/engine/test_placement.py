"""Which variant, how many cells, whose memory: the decisions, without any model."""

from pathlib import Path

import pytest

from models.catalog import LLM, EngineConfig, Quantization
from workers.engine.gguf import ModelFile
from workers.engine.placement import (
    COMPUTE_BYTES,
    Held,
    choose_evictions,
    derive_cells,
    plan_for,
    room_for_models,
)
from workers.engine.sources import choose_variant

GIB = 1 << 30
MIB = 1 << 20


@pytest.mark.parametrize(
    ("available", "sizes", "chosen"),
    [
        (1.9, {"int4": 0.3, "int8": 0.5, "f16": 0.9}, "int4"),
        (2.0, {"int4": 0.3, "int8": 0.5, "f16": 0.9}, "int8"),
        (3.9, {"int4": 0.3, "int8": 0.5, "f16": 0.9}, "int8"),
        (4.0, {"int4": 0.3, "int8": 0.5, "f16": 0.9}, "f16"),
        (8.0, {"int4": 4.0, "int8": 7.0, "f16": 14.0}, "int4"),
        (8.0, {"int4": 4.0, "int8": 6.3, "f16": 14.0}, "int8"),
        (8.0, {"int8": 5.0}, "int8"),
        (1.0, {"int8": 0.5, "f16": 0.7}, "int8"),
        (1.0, {"f16": 0.7}, "f16"),
        (1.0, {"int4": 0.9}, None),
    ],
)
def test_the_variant_is_that_for_the_memory_or_the_next_that_fits(
    available: float, sizes: dict[Quantization, float], chosen: str | None
) -> None:
    in_bytes: dict[Quantization, int] = {name: int(size * GIB) for name, size in sizes.items()}
    assert choose_variant(int(available * GIB), in_bytes, room_bytes=int(available * 0.8 * GIB)) == chosen


@pytest.mark.parametrize("fields", [{}, {"source": "a", "sources": {"int4": "b"}}, {"sources": {"int3": "b"}}])
def test_a_local_llm_has_either_one_source_or_several(fields: dict[str, object]) -> None:
    entry = {"tier": "t", "provider": "llamacpp", "context_window": 1, "input_price": "0", "output_price": "0"}
    with pytest.raises(ValueError, match="source"):
        LLM.model_validate(entry | fields)


def test_cells_are_512_for_each_job_within_a_quarter_of_the_budget_and_one_window_at_least() -> None:
    assert derive_cells(16, 2048, 23_040, 16 * GIB) == 16 * 512
    assert derive_cells(2, 2048, 23_040, 16 * GIB) == 2048
    assert derive_cells(16, 2048, 100_000, GIB) == 2816  # a quarter of a GiB, rounded up to llama.cpp's step
    assert derive_cells(16, 8192, 100_000, GIB) == 8192
    assert derive_cells(3, 700, 0, GIB) == 1536


def file(size: int = 100 * MIB) -> ModelFile:
    return ModelFile(Path("m.gguf"), size, "llama", "Q4_0", 4096, 10, (4,) * 10, 64, 64)


def test_a_plan_counts_weights_cache_and_buffers_and_keeps_to_the_trained_window() -> None:
    plan = plan_for(file(), EngineConfig(), context_window=8192, concurrency=4, budget_bytes=8 * GIB)
    assert (plan.context_window, plan.parallel, plan.cells) == (4096, 4, 4096)
    assert plan.memory_bytes == 100 * MIB + 4096 * 10 * 4 * 128 * 2 + COMPUTE_BYTES
    chosen = plan_for(
        file(), EngineConfig(parallel=2, cells=640), context_window=512, concurrency=4, budget_bytes=8 * GIB
    )
    assert (chosen.context_window, chosen.parallel, chosen.cells) == (512, 2, 640)


@pytest.mark.parametrize(("layers", "weights"), [(-1, 0), (5, 50 * MIB), (40, 0), (0, 100 * MIB)])
def test_layers_on_a_gpu_take_no_memory_of_the_machine(layers: int, weights: int) -> None:
    plan = plan_for(file(), EngineConfig(), context_window=512, concurrency=1, budget_bytes=8 * GIB, gpu_layers=layers)
    assert plan.weight_bytes == weights


def held(name: str, last_used: float, is_free: bool = True) -> Held:
    return Held(name, 300 * MIB, 200 * MIB, last_used, is_free)


def test_the_room_is_what_the_budget_and_the_memory_leave() -> None:
    models = [held("a", 1), held("b", 2, is_free=False)]
    by_budget = room_for_models(models, 1000 * MIB, 100 * GIB)
    assert (by_budget.now, by_budget.at_most) == (400 * MIB, 700 * MIB)
    by_memory = room_for_models(models, 100 * GIB, 1400 * MIB)  # 400 of it are mapped weights that are in use
    assert (by_memory.now, by_memory.at_most) == (800 * MIB, 1040 * MIB)


def test_the_least_recently_used_go_first_and_never_more_than_needed() -> None:
    models = [held("new", 3), held("old", 1), held("used", 0, is_free=False), held("middle", 2)]
    assert choose_evictions(models, 1300 * MIB, 100 * GIB, 100 * MIB) == []
    assert choose_evictions(models, 1300 * MIB, 100 * GIB, 300 * MIB) == ["old"]
    assert choose_evictions(models, 1300 * MIB, 100 * GIB, 500 * MIB) == ["old", "middle"]
    assert choose_evictions(models, 100 * GIB, 1100 * MIB, 500 * MIB) == ["old", "middle"]
    assert choose_evictions(models, 1300 * MIB, 100 * GIB, 1300 * MIB) == ["old", "middle", "new"]
