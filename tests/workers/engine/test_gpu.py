"""What the catalogue says of GPUs arrives in llama.cpp's structures; what the machine has comes from llama.cpp."""

import os

import pytest
from llama_cpp import llama_cpp as llama

from models.catalog import EngineConfig
from workers.engine.errors import ModelError
from workers.engine.gpu import GpuOptions, available_gpus, devices, why_no_gpu


def model_params(options: GpuOptions) -> llama.llama_model_params:
    params: llama.llama_model_params = llama.llama_model_default_params()
    options.apply_to_model(params)
    return params


def context_params(options: GpuOptions) -> llama.llama_context_params:
    params: llama.llama_context_params = llama.llama_context_default_params()
    options.apply_to_context(params)
    return params


@pytest.mark.parametrize(
    ("pool", "given", "layers"), [("cpu", None, 0), ("gpu", None, -1), ("gpu", 0, 0), ("gpu", 12, 12), ("cpu", -1, -1)]
)
def test_all_layers_of_a_gpu_pools_llm_are_on_gpus_unless_it_says_otherwise(
    pool: object, given: int | None, layers: int
) -> None:
    options = GpuOptions.of(EngineConfig(gpu_layers=given), pool)  # type: ignore[arg-type]  # a Literal, from parametrize
    assert model_params(options).n_gpu_layers == layers


def test_the_split_over_gpus_is_what_the_library_reads() -> None:
    config = EngineConfig(split_mode="row", tensor_split=(3, 1), main_gpu=1)
    params = model_params(GpuOptions.of(config, "gpu"))
    assert (params.split_mode, params.main_gpu) == (llama.LLAMA_SPLIT_MODE_ROW, 1)
    most = llama.llama_max_devices()
    assert params.tensor_split[:most] == [3.0, 1.0, *[0.0] * (most - 2)]


def test_without_shares_the_library_splits_by_free_memory() -> None:
    params = model_params(GpuOptions.of(EngineConfig(split_mode="none"), "gpu"))
    assert params.split_mode == llama.LLAMA_SPLIT_MODE_NONE
    assert not params.tensor_split


def test_more_shares_than_the_library_has_places_for_are_refused() -> None:
    with pytest.raises(ModelError, match="tensor_split"):
        model_params(GpuOptions(layers=-1, tensor_split=(1.0,) * (llama.llama_max_devices() + 1)))


@pytest.mark.parametrize(
    ("choice", "native"),
    [
        ("auto", llama.LLAMA_FLASH_ATTN_TYPE_AUTO),
        ("on", llama.LLAMA_FLASH_ATTN_TYPE_ENABLED),
        ("off", llama.LLAMA_FLASH_ATTN_TYPE_DISABLED),
    ],
)
def test_flash_attention_is_as_chosen(choice: object, native: int) -> None:
    config = EngineConfig(flash_attention=choice)  # type: ignore[arg-type]  # a Literal, from parametrize
    assert context_params(GpuOptions.of(config, "cpu")).flash_attn_type == native


def test_the_cache_goes_to_the_gpus_only_with_the_layers() -> None:
    on_gpu = context_params(GpuOptions.of(EngineConfig(), "gpu"))
    cache_at_home = context_params(GpuOptions.of(EngineConfig(offload_kv=False), "gpu"))
    on_cpu = context_params(GpuOptions.of(EngineConfig(), "cpu"))
    assert (on_gpu.offload_kqv, on_gpu.op_offload) == (True, True)
    assert (cache_at_home.offload_kqv, cache_at_home.op_offload) == (False, True)
    assert (on_cpu.offload_kqv, on_cpu.op_offload) == (False, False)


def test_the_library_names_its_devices_with_their_memory() -> None:
    """The CPU is one of them everywhere, and its memory the machine's: so what is read of a GPU is its too."""
    (cpu,) = (device for device in devices() if device.kind == "cpu")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert cpu.name == "CPU"
    assert cpu.total_bytes == machine
    assert 0 < cpu.free_bytes <= machine


def test_there_is_a_reason_just_where_there_is_no_gpu() -> None:
    assert (why_no_gpu() is None) == bool(available_gpus())
    assert all(device.total_bytes > 0 for device in available_gpus())
