"""Who takes part in the measurement of the local engine: each opens its model once and then computes waves of jobs."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Any

from benchmarks.engine_work import LocalModel, Wave

PARALLEL = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contestants are given; ``longest`` is the tokens of the longest job, prompt and output."""

    model: LocalModel
    threads: int
    gpu: bool
    longest: int

    @property
    def cells(self) -> int:
        """A cache that has room for every job of a wave without sharing."""
        return -(-PARALLEL * self.longest // 256) * 256


@dataclass(frozen=True, slots=True)
class Computed:
    """Tokens of one wave; ``prompt`` are those of prompts that were really computed, where that is known."""

    output: int
    prompt: int | None


RunWave = Callable[[Wave], Computed]
Contestant = Callable[[Setting], AbstractContextManager[RunWave]]


@contextmanager
def one_by_one(setting: Setting, *, reuse: bool, flash_attention: bool) -> Iterator[RunWave]:
    """llama-cpp-python's ``Llama``; with ``reuse`` it keeps the beginning that a prompt shares with the one before."""
    import llama_cpp
    from llama_cpp import Llama

    llama = Llama(
        str(setting.model.path),
        n_ctx=-(-setting.longest // 256) * 256,
        n_threads=setting.threads,
        n_threads_batch=setting.threads,
        n_gpu_layers=-1 if setting.gpu else 0,
        flash_attn=flash_attention or setting.gpu,
        swa_full=True,
        verbose=False,
    )

    def run(wave: Wave) -> Computed:
        llama_cpp.llama_perf_context_reset(llama.ctx)
        tokens = 0
        for prompt in wave.prompts:
            if not reuse:
                llama.reset()  # type: ignore[no-untyped-call]  # the library's
            tokens += sum(1 for _ in islice(llama.generate(prompt, temp=0.0), wave.output))
        computed = llama_cpp.llama_perf_context(llama.ctx).n_p_eval
        if not reuse:
            assert computed == sum(map(len, wave.prompts)), f"of the prompts, {computed} tokens were computed"
        return Computed(tokens, computed)

    try:
        yield run
    finally:
        llama.close()


@contextmanager
def in_process_server(setting: Setting, *, slots: int) -> Iterator[RunWave]:
    """``xllamacpp``: llama.cpp's own server in this process, asked by as many threads as there are jobs.

    Its cache is split among the slots, which is its default and was its faster choice.
    """
    xllamacpp: Any = import_module("xllamacpp")  # Any: it has no type stubs
    params = xllamacpp.CommonParams()
    params.model.path = str(setting.model.path)
    params.n_parallel = slots
    params.n_ctx = slots * (-(-setting.longest // 256) * 256)
    params.n_batch = params.n_ubatch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = setting.threads
    params.n_gpu_layers = -1 if setting.gpu else 0
    params.swa_full = params.cache_prompt = True
    params.verbosity = -1
    if setting.gpu:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    server = xllamacpp.Server(params)

    def ask(wave: Wave, prompt: tuple[int, ...]) -> Computed:
        answer = server.handle_completions(
            {
                "prompt": list(prompt),
                "n_predict": wave.output,
                "temperature": 0.0,
                "ignore_eos": True,
                "cache_prompt": True,
            }
        )
        return Computed(answer["usage"]["completion_tokens"], answer["timings"]["prompt_n"])

    def run(wave: Wave) -> Computed:
        with ThreadPoolExecutor(len(wave.prompts)) as askers:
            answers = list(askers.map(partial(ask, wave), wave.prompts))
        return Computed(sum(one.output for one in answers), sum(one.prompt or 0 for one in answers))

    yield run


@contextmanager
def engine(setting: Setting, *, parallel: int) -> Iterator[RunWave]:
    """Headrace's engine; all jobs of a wave are submitted at once."""
    from workers.engine.engine import Engine, EngineOptions
    from workers.engine.gpu import GpuOptions
    from workers.engine.model import Model
    from workers.engine.sampling import Sampling
    from workers.engine.sequence import Work

    gpu = GpuOptions(layers=-1, flash_attention="on") if setting.gpu else GpuOptions()
    options = EngineOptions(
        parallel=parallel, cells=setting.cells, context_window=setting.longest, threads=setting.threads, gpu=gpu
    )
    ours = Engine(Model.load(setting.model.path, gpu, setting.model.chat_template), options)

    def run(wave: Wave) -> Computed:
        before = ours.stats.prompt_tokens
        greedy = Sampling(temperature=0.0)
        works = [Work(prompt, wave.output, greedy, ignore_eos=True) for prompt in wave.prompts]
        tickets = [ours.submit(work) for work in works]
        completions = [ticket.future.result() for ticket in tickets]
        return Computed(sum(len(one.tokens) for one in completions), ours.stats.prompt_tokens - before)

    try:
        yield run
    finally:
        ours.close()


@contextmanager
def limit(setting: Setting, *, repack: bool) -> Iterator[RunWave]:
    """The bare loop; with ``repack`` the weights are copied into the form that is fastest for long prompts."""
    from benchmarks.engine_limit import BareLoop, quiet_library

    with quiet_library():
        loop = BareLoop(
            setting.model,
            parallel=PARALLEL,
            cells=setting.cells,
            threads=setting.threads,
            gpu=setting.gpu,
            repack=repack,
        )

        def run(wave: Wave) -> Computed:
            prompt = loop.run(wave)
            return Computed(wave.tokens, prompt)

        try:
            yield run
        finally:
            loop.close()


CONTESTANTS: dict[str, Contestant] = {
    "llama": partial(one_by_one, reuse=False, flash_attention=False),
    "llama-fa": partial(one_by_one, reuse=False, flash_attention=True),
    "llama-reuse": partial(one_by_one, reuse=True, flash_attention=False),
    "llama-reuse-fa": partial(one_by_one, reuse=True, flash_attention=True),
    "xllamacpp-16": partial(in_process_server, slots=16),
    "xllamacpp-8": partial(in_process_server, slots=8),
    "engine": partial(engine, parallel=16),
    "limit": partial(limit, repack=False),
    "limit-repacked": partial(limit, repack=True),
    "engine-1": partial(engine, parallel=1),
    "engine-4": partial(engine, parallel=4),
    "engine-8": partial(engine, parallel=8),
    "engine-unshared": partial(engine, parallel=16),
}
