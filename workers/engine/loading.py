"""From a plan to a running engine: the one place that loads models and so needs the native library."""

from models.catalog import LLM, Pool
from workers.engine.engine import Engine, EngineOptions
from workers.engine.errors import ModelError
from workers.engine.gpu import GpuOptions, why_no_gpu
from workers.engine.memory import usable_cpus
from workers.engine.model import Model
from workers.engine.placement import Plan


def gpu_layers(llm: LLM, pool: Pool) -> int:
    """How many of an LLM's layers will be in a GPU's memory, -1 for all; 0 where the library finds no GPU."""
    layers = GpuOptions.of(llm.engine, pool).layers
    return layers if layers and why_no_gpu() is None else 0


def open_engine(llm: LLM, plan: Plan, pool: Pool) -> Engine:
    """Load a model and start its engine; takes seconds for a large one. Raises ModelError."""
    gpu = GpuOptions.of(llm.engine, pool)
    model = Model.load(plan.file.path, gpu, llm.chat_template)
    options = EngineOptions(
        parallel=plan.parallel,
        cells=plan.cells,
        context_window=plan.context_window,
        threads=llm.threads or usable_cpus(),
        batch=llm.engine.batch,
        step_timeout_s=llm.engine.step_timeout_s,
        gpu=gpu,
    )
    try:
        return Engine(model, options)
    except ModelError:
        model.close()
        raise
