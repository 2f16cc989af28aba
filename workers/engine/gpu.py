"""GPUs, as llama.cpp itself sees them, and how a model is spread over them.

What is here is what the native library says, for that is what a model can use: a driver's own tools may list a GPU that
the installed library cannot reach.
"""

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as llama

from models.catalog import EngineConfig, Pool, SplitMode, Switch
from workers.engine.errors import ModelError

ALL_LAYERS = -1
_SPLIT_MODES: dict[SplitMode, int] = {
    "none": llama.LLAMA_SPLIT_MODE_NONE,
    "layer": llama.LLAMA_SPLIT_MODE_LAYER,
    "row": llama.LLAMA_SPLIT_MODE_ROW,
}
_FLASH_ATTENTION: dict[Switch, int] = {
    "auto": llama.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_KINDS = ("cpu", "gpu", "integrated gpu", "accelerator")
"""``enum ggml_backend_dev_type`` of ggml-backend.h, in its order."""


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How a model uses GPUs; without layers on them, it does not."""

    layers: int = 0
    split_mode: SplitMode = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    flash_attention: Switch = "auto"
    offload_kv: bool = True

    @classmethod
    def of(cls, config: EngineConfig, pool: Pool) -> "GpuOptions":
        """What the catalogue says of an LLM; one of a GPU pool has all its layers there unless it says otherwise."""
        usual = ALL_LAYERS if pool == "gpu" else 0
        return cls(
            usual if config.gpu_layers is None else config.gpu_layers,
            config.split_mode,
            config.tensor_split,
            config.main_gpu,
            config.flash_attention,
            config.offload_kv,
        )

    def apply_to_model(self, params: llama.llama_model_params) -> None:
        """Set what loading needs. Raises ModelError for more shares than the library can use."""
        params.n_gpu_layers = self.layers
        params.split_mode = _SPLIT_MODES[self.split_mode]
        params.main_gpu = self.main_gpu
        if self.tensor_split:
            params.tensor_split = _shares(self.tensor_split)

    def apply_to_context(self, params: llama.llama_context_params) -> None:
        """Set what a context needs: flash attention, and whether its cache and its work go to the GPUs."""
        params.flash_attn_type = _FLASH_ATTENTION[self.flash_attention]
        params.offload_kqv = self.offload_kv and self.layers != 0
        params.op_offload = self.layers != 0


@lru_cache(maxsize=64)
def _shares(split: tuple[float, ...]) -> Any:  # Any: C's pointer to floats, which keeps its array
    """Shares as the array that the library reads; kept, since a loaded model goes on pointing to it."""
    most = llama.llama_max_devices()
    if len(split) > most:
        raise ModelError(f"tensor_split has {len(split)} shares, and the library uses at most {most} GPUs")
    return ctypes.cast((ctypes.c_float * most)(*split), ctypes.POINTER(ctypes.c_float))


@dataclass(frozen=True, slots=True)
class Device:
    """Something that ggml can compute on; its memory in bytes."""

    name: str
    description: str
    kind: str
    free_bytes: int
    total_bytes: int


def devices() -> list[Device]:
    """Every device of the native library, the CPU among them."""
    ggml = _ggml()
    return [_device(ggml, ggml.ggml_backend_dev_get(index)) for index in range(ggml.ggml_backend_dev_count())]


def available_gpus() -> list[Device]:
    """The GPUs that a model would be put on: as llama.cpp does, integrated ones only where there is no other."""
    found = devices()
    discrete = [device for device in found if device.kind == "gpu"]
    return discrete or [device for device in found if device.kind == "integrated gpu"]


def why_no_gpu() -> str | None:
    """Why models cannot use a GPU here, or None when they can."""
    if not llama.llama_supports_gpu_offload():
        return "the installed llama-cpp-python is built without GPU support or finds no GPU"
    return None if available_gpus() else "llama.cpp finds no GPU"


def _device(ggml: ctypes.CDLL, handle: int) -> Device:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    kind = ggml.ggml_backend_dev_type(handle)
    return Device(
        ggml.ggml_backend_dev_name(handle).decode(errors="replace"),
        ggml.ggml_backend_dev_description(handle).decode(errors="replace"),
        _KINDS[kind] if kind < len(_KINDS) else "other",
        free.value,
        total.value,
    )


def _ggml() -> ctypes.CDLL:
    """ggml, which libllama has brought along, with the types of what is called of it (ggml-backend.h)."""
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    prefix = "" if sys.platform == "win32" else "lib"
    ggml = ctypes.CDLL(str(Path(llama.__file__).parent / "lib" / f"{prefix}ggml{suffix}"))
    size_p = ctypes.POINTER(ctypes.c_size_t)
    signatures: dict[str, tuple[Any, list[Any]]] = {  # Any: ctypes has no common type of types
        "ggml_backend_dev_count": (ctypes.c_size_t, []),
        "ggml_backend_dev_get": (ctypes.c_void_p, [ctypes.c_size_t]),
        "ggml_backend_dev_name": (ctypes.c_char_p, [ctypes.c_void_p]),
        "ggml_backend_dev_description": (ctypes.c_char_p, [ctypes.c_void_p]),
        "ggml_backend_dev_type": (ctypes.c_int, [ctypes.c_void_p]),
        "ggml_backend_dev_memory": (None, [ctypes.c_void_p, size_p, size_p]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml
