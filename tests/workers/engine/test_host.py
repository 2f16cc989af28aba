"""The models of a process, with the real small one: loaded, shared, unloaded, refused."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from models.catalog import Catalog
from models.errors import FailureCode
from tests.stack import ROOT
from tests.workers.engine.local_models import local_catalog, smollm_path
from workers.engine.engine import Engine
from workers.engine.errors import EngineError
from workers.engine.host import RETRY_AFTER_S, EngineHost, HostOptions
from workers.engine.memory import MemoryLevel, MemoryReading
from workers.engine.reports import MemoryChange
from workers.engine.sampling import Sampling
from workers.engine.sequence import Work

MIB = 1 << 20
ONE_MODEL = 250 * MIB
"""A budget with room for the weights, cache and buffers of one, and not of two."""

TWO_MODELS = 450 * MIB
NORMAL, HOLD, UNLOAD, REFUSE = MemoryLevel


@dataclass
class World:
    """What a host sees of the world, set by the tests: a clock, and how full the memory is."""

    now: float = 1000.0
    used: float = 0.1
    changes: list[MemoryChange] = field(default_factory=list)
    news: int = 0

    def memory(self) -> MemoryReading:
        return MemoryReading(64 << 30, int((64 << 30) * (1 - self.used)), self.used)

    def hear(self) -> None:
        self.news += 1


Story = Callable[[EngineHost, World], Awaitable[None]]


def tell(catalog: Catalog, story: Story, **options: Any) -> None:  # Any: the host's options
    """Play a story with a host, which is closed after it."""

    async def main() -> None:
        world = World()
        host = EngineHost(
            catalog,
            HostOptions(**options),
            on_change=world.hear,
            on_memory=world.changes.append,
            memory=world.memory,
            clock=lambda: world.now,
        )
        try:
            await story(host, world)
        finally:
            await host.close()
        assert host.loaded == []

    asyncio.run(main())


def names(host: EngineHost) -> list[str]:
    return [model.llm for model in host.loaded]


async def use(host: EngineHost, name: str) -> Engine:
    async with host.use(name) as engine:
        return engine


async def refused(host: EngineHost, name: str) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await use(host, name)
    return caught.value


async def answer(engine: Engine) -> str:
    prompt = engine.model.prompt([{"role": "user", "content": "Name a colour."}])
    ticket = engine.submit(Work(prompt, 8, Sampling(temperature=0.0)))
    return (await asyncio.wrap_future(ticket.future)).text


def test_those_who_come_at_once_share_one_load(tmp_path: Path) -> None:
    async def story(host: EngineHost, world: World) -> None:
        engines = await asyncio.gather(*(use(host, "tiny") for _ in range(8)))
        assert len(set(map(id, engines))) == 1
        assert await use(host, "tiny") is engines[0]
        assert world.news == 1
        (model,) = host.loaded
        assert (model.llm, model.quantization, model.jobs) == ("tiny", "Q4_1", 0)
        assert model.memory_bytes > smollm_path().stat().st_size
        async with host.use("tiny") as engine:
            assert (await answer(engine)).strip()

    tell(local_catalog(tmp_path, tiny={}), story)


def test_one_who_gives_up_waiting_takes_the_load_from_nobody(tmp_path: Path) -> None:
    async def story(host: EngineHost, world: World) -> None:
        first, second = (asyncio.create_task(use(host, "tiny")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
        assert (names(host), world.news) == (["tiny"], 1)

    tell(local_catalog(tmp_path, tiny={}), story)


def test_an_idle_model_is_unloaded_after_its_time_and_an_essential_one_is_not(tmp_path: Path) -> None:
    async def story(host: EngineHost, world: World) -> None:
        await use(host, "kept")
        async with host.use("brief"):
            world.now += 100
            await host.upkeep()
            assert names(host) == ["brief", "kept"]
        world.now += 9
        await host.upkeep()
        assert names(host) == ["brief", "kept"]
        world.now += 2
        await host.upkeep()
        assert (names(host), world.news) == (["kept"], 3)
        await use(host, "brief")
        assert names(host) == ["brief", "kept"]

    tell(local_catalog(tmp_path, brief={"idle_unload_s": 10}, kept={"idle_unload_s": 10, "essential": True}), story)


def test_essential_models_of_the_queues_are_loaded_in_the_background(tmp_path: Path) -> None:
    async def story(host: EngineHost, world: World) -> None:
        host.preload(["other"])
        host.preload(["small"])
        async with asyncio.timeout(30):
            while not host.loaded:  # noqa: ASYNC110 - what is waited for is in a thread
                await asyncio.sleep(0.01)
        assert names(host) == ["kept"]

    tell(local_catalog(tmp_path, tiny={}, kept={"essential": True}), story)


def test_the_least_recently_used_makes_room_and_one_in_use_never_does(tmp_path: Path) -> None:
    async def story(host: EngineHost, world: World) -> None:
        for name in ("a", "b", "a"):
            world.now += 1
            await use(host, name)
        await use(host, "c")
        assert names(host) == ["a", "c"]
        async with host.use("a") as a, host.use("c"):
            error = await refused(host, "b")
            assert (error.code, error.retry_after_s) == (FailureCode.OVERLOADED, RETRY_AFTER_S)
            assert "b needs 1" in str(error)
            assert await answer(a)
        await use(host, "b")
        assert "b" in names(host)

    tell(local_catalog(tmp_path, a={}, b={}, c={}), story, budget_bytes=TWO_MODELS)


def test_models_that_do_not_fit_together_take_turns_under_load(tmp_path: Path) -> None:
    async def story(host: EngineHost, world: World) -> None:
        async def job(number: int) -> str:
            while True:
                try:
                    async with host.use("ab"[number % 2]) as engine:
                        return await answer(engine)
                except EngineError as error:
                    assert error.code is FailureCode.OVERLOADED  # noqa: PT017 - either outcome is right
                    await asyncio.sleep(0.01)

        answers = await asyncio.gather(*map(job, range(12)))
        assert len(set(answers)) == 1
        assert len(names(host)) == 1

    tell(local_catalog(tmp_path, a={}, b={}), story, budget_bytes=ONE_MODEL)


def test_under_pressure_first_loads_stop_then_idle_models_go_then_all_is_refused(tmp_path: Path) -> None:
    async def story(host: EngineHost, world: World) -> None:
        for name in ("a", "b", "used"):
            world.now += 1
            await use(host, name)
        async with host.use("used") as used:
            world.used = 0.75
            await host.upkeep()
            assert (await refused(host, "late")).code is FailureCode.OVERLOADED
            assert names(host) == ["a", "b", "used"]
            await use(host, "a")
            await use(host, "kept")
            world.used = 0.9
            await host.upkeep()
            assert names(host) == ["a", "kept", "used"]
            await host.upkeep()
            await host.upkeep()
            assert names(host) == ["kept", "used"]
            world.used = 0.96
            await host.upkeep()
            for name in ("used", "kept", "late"):
                error = await refused(host, name)
                assert (error.code, error.retry_after_s) == (FailureCode.OVERLOADED, RETRY_AFTER_S)
            assert await answer(used)
        world.used = 0.3
        await host.upkeep()
        await use(host, "late")
        assert [change.level for change in world.changes] == [HOLD, UNLOAD, REFUSE, NORMAL]
        assert world.changes[0].as_wire() == {
            "level": "hold",
            "before": "normal",
            "used_percent": 75.0,
            "total_bytes": 64 << 30,
            "available_bytes": 16 << 30,
        }

    tell(local_catalog(tmp_path, a={}, b={}, used={}, late={}, kept={"essential": True}), story)


@pytest.mark.parametrize("wrong", ["missing", "not GGUF", "truncated", "no chat template"])
def test_a_file_that_cannot_be_served_is_a_clear_error_which_is_remembered_for_seconds(
    tmp_path: Path, wrong: str
) -> None:
    path = tmp_path / "model.gguf"
    whole = smollm_path().read_bytes()
    if wrong == "not GGUF":
        path.write_bytes(b"PK\x03\x04" * 100)
    elif wrong == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif wrong == "no chat template":
        path.write_bytes(whole.replace(b"tokenizer.chat_template", b"tokenizer.chat_tomplate", 1))
    says = {"missing": "there is no", "not GGUF": "is not a GGUF", "truncated": "is cut off", "no chat template": wrong}

    async def story(host: EngineHost, world: World) -> None:
        errors = await asyncio.gather(*(refused(host, "broken") for _ in range(3)))
        assert {error.code for error in errors} == {FailureCode.INTERNAL}
        assert len({id(error) for error in errors}) == 3
        assert all(says[wrong] in str(error) for error in errors), errors
        path.write_bytes(whole)
        world.now += 4
        assert says[wrong] in str(await refused(host, "broken"))
        world.now += 2
        await use(host, "broken")
        assert names(host) == ["broken"]

    tell(local_catalog(tmp_path, broken={"source": path}), story)


def test_of_several_sources_one_that_is_there_and_whole_is_taken(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"nothing")
    sources = {"int4": tmp_path / "missing.gguf", "int8": smollm_path(), "f16": broken}

    async def story(host: EngineHost, world: World) -> None:
        engine = await use(host, "tiny")
        assert engine.model.path == smollm_path()

    tell(local_catalog(tmp_path, tiny={"source": None, "sources": sources}), story)


def test_closing_ends_what_runs_with_an_error_and_takes_nothing_new(tmp_path: Path) -> None:
    async def story(host: EngineHost, world: World) -> None:
        async with host.use("tiny") as engine:
            ticket = engine.submit(Work(engine.model.tokenize("once upon a time"), 400, ignore_eos=True))
            await host.close()
            with pytest.raises(EngineError, match="unloaded"):
                await asyncio.wrap_future(ticket.future)
        assert (await refused(host, "tiny")).code is FailureCode.OVERLOADED

    tell(local_catalog(tmp_path, tiny={}), story)


def test_a_fuller_memory_is_noticed_by_the_load_itself(tmp_path: Path) -> None:
    async def story(host: EngineHost, world: World) -> None:
        world.used = 0.75  # and nobody has looked since
        assert (await refused(host, "tiny")).code is FailureCode.OVERLOADED
        assert [change.level for change in world.changes] == [HOLD]

    tell(local_catalog(tmp_path, tiny={}), story)


_WITHOUT_LIBRARY = """
import asyncio, sys
sys.modules["llama_cpp"] = None  # importing it fails, as where it is not installed
import workers.runner
from models.catalog import load_catalog
from workers.engine.host import EngineHost

async def main():
    async with EngineHost(load_catalog()).use("smollm2-135m"):
        pass

asyncio.run(main())
"""


def test_a_worker_without_the_native_library_starts_and_says_why_it_has_no_model() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _WITHOUT_LIBRARY], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "EngineError: cannot load the model: llama-cpp-python is not installed" in ended.stderr
