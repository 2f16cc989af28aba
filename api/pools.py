"""The API's connections to Postgres, in pools apart: what one kind of request needs, no other kind can take.

=========== ==================================================================================================
``submit``  authentication, and what records jobs and batches: nothing that a caller can make slow
``light``   statements of milliseconds about one thing: a job's or a batch's state; and what runs in the background
``reads``   what may read much: usage, lists, results, files; short time limit, few at a time of a tenant
``control`` what changes many rows at once: batches that are cancelled or run again, budgets
``files``   files that come in, and small batches whose file this process reads itself
=========== ==================================================================================================
"""

from dataclasses import dataclass
from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import create_engine

FEWEST = 11
"""The least that the pools need together: two each, and three to read a file and write its rows at the same time."""

_POOLS = 5
_ONE_PROCESS = {"max_parallel_workers_per_gather": "0"}
"""A read takes one processor of Postgres's machine, not three."""


@dataclass(frozen=True, slots=True)
class Pools:
    """One engine for each kind of request."""

    submit: AsyncEngine
    light: AsyncEngine
    reads: AsyncEngine
    control: AsyncEngine
    files: AsyncEngine

    @classmethod
    def create(cls, url: str, connections: int, read_timeout_s: float) -> Self:
        """Pools with so many connections together, made as they are needed."""
        sizes = split(connections)
        reads = create_engine(
            url,
            name="api-reads",
            pool_size=sizes["reads"],
            pool_timeout_s=read_timeout_s + 5,
            statement_timeout_s=read_timeout_s,
            parameters=_ONE_PROCESS,
        )
        return cls(
            submit=create_engine(url, name="api", pool_size=sizes["submit"]),
            light=create_engine(url, name="api-light", pool_size=sizes["light"]),
            reads=reads,
            control=create_engine(url, name="api-control", pool_size=sizes["control"]),
            files=create_engine(url, name="api-files", pool_size=sizes["files"]),
        )

    async def renew(self) -> None:
        """Drop the connections that nobody uses now; those in use are dropped when they come back."""
        for engine in (self.submit, self.light, self.reads, self.control, self.files):
            await engine.dispose()


def split(connections: int) -> dict[str, int]:
    """How many connections each pool has: a fifth each, and what is left over for submissions."""
    each = connections // _POOLS
    sizes = {"light": each, "reads": each, "control": each, "files": max(3, each)}
    return {**sizes, "submit": connections - sum(sizes.values())}
