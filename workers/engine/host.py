"""The local models of one process: loaded when they are first needed, shared while used, unloaded when not.

::

    use() --> loading --> loaded --+-- used, or essential: stays
                 |                 +-- idle for its time, or the least recently used when memory is wanted: unloaded
                 +-- ModelError: its jobs fail with its message, and for some seconds nobody tries again

Used from one event loop; loads and unloads run in threads. What to decide is in :mod:`workers.engine.placement` and
:mod:`workers.engine.memory`; here it is done. Whoever changes which models there are holds ``_changing``.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from models.catalog import LLM, Catalog, Quantization
from models.errors import FailureCode
from workers.engine.errors import EngineError, ModelError
from workers.engine.gguf import ModelFile, read_model_file
from workers.engine.grammars import Grammars
from workers.engine.memory import MemoryLevel, MemoryReading, Thresholds, next_level, read_memory
from workers.engine.placement import KEPT_BACK, Held, Plan, choose_evictions, plan_for, room_for_models
from workers.engine.reports import LoadedModel, MemoryChange
from workers.engine.sources import choose_variant, variants_of

if TYPE_CHECKING:
    from workers.engine.engine import Engine

UPKEEP_EVERY_S = 1.0
REMEMBER_FAILURE_S = 5.0
RETRY_AFTER_S = 5.0
"""When a job that found no memory for its model is told to come back."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HostOptions:
    """``concurrency`` is how many jobs the process runs at once; ``budget_bytes`` the memory for all its models,
    unset four fifths of what the process may use."""

    concurrency: int = 4
    budget_bytes: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)


@dataclass(slots=True, eq=False)
class _Seat:
    """A model that is loaded or being loaded; ``users`` are the jobs on it, those that wait for it included."""

    name: str
    essential: bool
    last_used: float
    users: int = 0
    plan: Plan | None = None
    loading: "asyncio.Task[Engine] | None" = None
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def engine(self) -> "Engine | None":
        """The engine, when it is there."""
        task = self.loading
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    @property
    def is_idle(self) -> bool:
        return self.users == 0 and self.engine is not None


@dataclass(frozen=True, slots=True)
class _Failure:
    until: float
    error: ModelError | EngineError


class EngineHost:
    """The loaded models of one process; every method is called from its event loop."""

    def __init__(
        self,
        catalog: Catalog,
        options: HostOptions | None = None,
        *,
        on_change: Callable[[], None] = lambda: None,
        on_memory: Callable[[MemoryChange], None] = lambda change: None,
        memory: Callable[[], MemoryReading] = read_memory,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """``on_change`` hears of every load and unload, ``on_memory`` of every change of the memory's level."""
        self.level = MemoryLevel.NORMAL
        self.grammars = Grammars()
        self._catalog = catalog
        self._options = options or HostOptions()
        self._on_change = on_change
        self._on_memory = on_memory
        self._memory = memory
        self._clock = clock
        self._seats: dict[str, _Seat] = {}
        self._failures: dict[str, _Failure] = {}
        self._changing = asyncio.Lock()
        self._preloads: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def loaded(self) -> list[LoadedModel]:
        """The models in memory, by name."""
        return [
            LoadedModel(
                llm=seat.name,
                since=seat.since,
                memory_bytes=seat.plan.memory_bytes,
                quantization=seat.plan.file.quantization,
                jobs=engine.jobs,
                tokens_per_s=engine.tokens_per_s,
            )
            for _, seat in sorted(self._seats.items())
            if seat.plan is not None and (engine := seat.engine) is not None
        ]

    @asynccontextmanager
    async def use(self, llm_name: str) -> AsyncIterator["Engine"]:
        """An LLM's engine, which stays loaded within the block; waits for its load.

        Raises EngineError: ``overloaded`` when there is no memory for it now, ``internal`` when its file cannot be
        served.
        """
        self._admit(llm_name)
        seat = self._seats.get(llm_name) or self._begin(llm_name)
        seat.users += 1
        try:
            yield await _engine_of(seat)
        finally:
            seat.users -= 1
            seat.last_used = self._clock()

    def preload(self, queues: Collection[str]) -> None:
        """Begin to load the essential LLMs of some queues, in the background."""
        for name, llm in self._catalog.llms.items():
            if llm.provider == "llamacpp" and llm.essential and self._catalog.queue_of(name) in queues:
                task = asyncio.create_task(self._preload(name))
                self._preloads.add(task)
                task.add_done_callback(self._preloads.discard)

    async def keep(self) -> None:
        """Look after memory and idle models, for ever."""
        while True:
            try:
                await self.upkeep()
            except Exception:
                log.exception("models.upkeep_failed")
            await asyncio.sleep(UPKEEP_EVERY_S)

    async def upkeep(self) -> None:
        """One look at the memory and at the idle models."""
        self._look()
        now = self._clock()
        async with self._changing:
            idle = sorted((seat for seat in self._seats.values() if _may_go(seat)), key=lambda seat: seat.last_used)
            due = [seat for seat in idle if now - seat.last_used >= self._llm(seat.name).idle_unload_s]
            if self.level >= MemoryLevel.UNLOAD and idle and not due:
                due = idle[:1]  # one at a time: the next look tells whether it was enough
            for seat in due:
                if _may_go(seat):
                    await self._unload(seat, "memory" if self.level >= MemoryLevel.UNLOAD else "idle")

    async def close(self) -> None:
        """Unload everything; jobs that are still running end with an error."""
        self._closed = True
        loading = [seat.loading for seat in self._seats.values() if seat.loading is not None]
        await asyncio.gather(*loading, *self._preloads, return_exceptions=True)
        async with self._changing:
            for seat in list(self._seats.values()):
                await self._unload(seat, "closing")
        await self.grammars.close()

    def _llm(self, name: str) -> LLM:
        return self._catalog.llms[name]

    def _look(self) -> MemoryReading:
        """Read the memory and note its level; a change is told once."""
        reading = self._memory()
        level = next_level(self.level, reading.used_share, self._options.thresholds)
        if level is not self.level:
            change = MemoryChange(self.level, level, reading)
            self.level = level
            (log.warning if level > change.before else log.info)("worker.memory", **change.as_wire())
            self._on_memory(change)
        return reading

    def _admit(self, name: str) -> None:
        """Refuse what the memory's level or an earlier failure forbids."""
        if self._closed:
            raise EngineError(FailureCode.OVERLOADED, "this worker is stopping", RETRY_AFTER_S)
        if self.level >= MemoryLevel.REFUSE:
            raise _overloaded("this worker's memory is full")
        if name in self._seats:
            return
        self._admit_load(name)
        failure = self._failures.get(name)
        if failure is not None and self._clock() < failure.until:
            raise _again(failure.error)

    def _admit_load(self, name: str) -> None:
        if self.level >= MemoryLevel.HOLD and not self._llm(name).essential:
            raise _overloaded(f"this worker has too little memory to load {name} now")

    def _begin(self, name: str) -> _Seat:
        seat = _Seat(name, self._llm(name).essential, last_used=self._clock())
        self._seats[name] = seat
        seat.loading = asyncio.create_task(self._load(seat))
        seat.loading.add_done_callback(lambda task: self._loaded(seat, task))
        return seat

    def _loaded(self, seat: _Seat, task: "asyncio.Task[Engine]") -> None:
        error = None if task.cancelled() else task.exception()
        if not task.cancelled() and error is None:
            self._on_change()
            return
        if self._seats.get(seat.name) is seat:
            del self._seats[seat.name]
        if isinstance(error, ModelError):
            self._failures[seat.name] = _Failure(self._clock() + REMEMBER_FAILURE_S, error)
        log.warning("model.not_loaded", llm=seat.name, problem=str(error))

    async def _load(self, seat: _Seat) -> "Engine":
        try:  # here, so that workers without local models need no native library
            from workers.engine.loading import gpu_layers, open_engine
        except ImportError as error:
            raise ModelError(f"llama-cpp-python is not installed, or does not work: {error}") from error
        llm, pool, began_at = self._llm(seat.name), self._catalog.pool_of(seat.name), self._clock()
        async with self._changing:
            files = await asyncio.to_thread(_read_files, llm)
            layers = await asyncio.to_thread(gpu_layers, llm, pool)
            plan = await self._make_room(seat.name, files, layers)
            seat.plan = plan  # counted from here on
        engine = await asyncio.to_thread(open_engine, llm, plan, pool)
        seat.since, seat.last_used = datetime.now(UTC), self._clock()
        log.info(
            "model.loaded",
            llm=seat.name,
            quantization=plan.file.quantization,
            memory_mb=plan.memory_bytes >> 20,
            cells=plan.cells,
            parallel=plan.parallel,
            seconds=round(seat.last_used - began_at, 2),
        )
        return engine

    async def _make_room(self, name: str, files: Mapping[Quantization | None, ModelFile], gpu_layers: int) -> Plan:
        """Choose the variant that fits and unload what it needs the memory of. Raises EngineError."""
        reading, held = self._look(), self._held()
        self._admit_load(name)
        budget = self._options.budget_bytes or int(reading.total_bytes * (1 - KEPT_BACK))
        plans = self._plans(name, files, budget, gpu_layers)
        room = room_for_models(held, budget, reading.available_bytes)
        plan = _choose(plans, room.at_most)
        if plan is None:
            least = min(plan.memory_bytes for plan in plans.values())
            raise _overloaded(f"{name} needs {least >> 20} MB, and {max(0, room.at_most) >> 20} MB can be had")
        for other in choose_evictions(held, budget, reading.available_bytes, plan.memory_bytes):
            if not _may_go(self._seats[other]):
                raise _overloaded(f"{other}, which was to make room for {name}, is in use again")
            await self._unload(self._seats[other], "room")
        return plan

    def _plans(
        self, name: str, files: Mapping[Quantization | None, ModelFile], budget: int, gpu_layers: int
    ) -> dict[Quantization | None, Plan]:
        llm = self._llm(name)
        return {
            quantization: plan_for(
                file,
                llm.engine,
                context_window=llm.context_window,
                concurrency=self._options.concurrency,
                budget_bytes=budget,
                gpu_layers=gpu_layers,
            )
            for quantization, file in files.items()
        }

    def _held(self) -> list[Held]:
        return [
            Held(name, seat.plan.memory_bytes, seat.plan.weight_bytes, seat.last_used, _may_go(seat))
            for name, seat in self._seats.items()
            if seat.plan is not None
        ]

    async def _unload(self, seat: _Seat, reason: str) -> None:
        """Take a model out and free it; who comes next loads it anew."""
        engine = seat.engine
        if self._seats.get(seat.name) is seat:
            del self._seats[seat.name]
        if engine is not None:
            await asyncio.to_thread(engine.close)
            log.info("model.unloaded", llm=seat.name, reason=reason)
            self._on_change()

    async def _preload(self, name: str) -> None:
        try:
            async with self.use(name):
                pass
        except EngineError as error:
            log.warning("model.not_preloaded", llm=name, problem=str(error))
        except Exception:
            log.exception("model.not_preloaded", llm=name)


def _may_go(seat: _Seat) -> bool:
    return seat.is_idle and not seat.essential


def _overloaded(message: str) -> EngineError:
    return EngineError(FailureCode.OVERLOADED, message, RETRY_AFTER_S)


def _again(error: ModelError | EngineError) -> EngineError:
    """An error for one more job: each has its own, with a trace of its own."""
    if isinstance(error, EngineError):
        return EngineError(error.code, str(error), error.retry_after_s)
    return EngineError(FailureCode.INTERNAL, f"cannot load the model: {error}")


async def _engine_of(seat: _Seat) -> "Engine":
    if seat.loading is None:
        raise RuntimeError("the load was not begun")
    try:
        return await asyncio.shield(seat.loading)
    except (ModelError, EngineError) as error:
        raise _again(error) from None


def _choose(plans: Mapping[Quantization | None, Plan], room_bytes: int) -> Plan | None:
    """The plan that fits; among variants, the one for the memory that there is."""
    sizes = {quantization: plan.memory_bytes for quantization, plan in plans.items() if quantization is not None}
    if not sizes:
        return next((plan for plan in plans.values() if plan.memory_bytes <= room_bytes), None)
    chosen = choose_variant(int(room_bytes / (1 - KEPT_BACK)), sizes, room_bytes)
    return None if chosen is None else plans[chosen]


def _read_files(llm: LLM) -> dict[Quantization | None, ModelFile]:
    """The files that can serve an LLM. Raises ModelError when none can, with what is wrong with the last."""
    found: dict[Quantization | None, ModelFile] = {}
    problem: ModelError | None = None
    for quantization, path in variants_of(llm).items():
        try:
            found[quantization] = read_model_file(path)
        except ModelError as error:
            problem = error
            log.warning("model.file_unusable", quantization=quantization, problem=str(error))
    if not found and problem is not None:
        raise problem
    return found
