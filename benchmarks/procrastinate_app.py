"""Procrastinate with a task that does nothing.

python -m benchmarks.procrastinate_app schema|worker <database URL> [concurrency]
"""

import asyncio
import sys

import procrastinate


def make_app(url: str) -> procrastinate.App:
    """An app over psycopg's async pool."""
    connector = procrastinate.PsycopgConnector(conninfo=url.replace("+psycopg", ""), min_size=4, max_size=32)
    app = procrastinate.App(connector=connector)

    @app.task(name="noop", queue="bench")
    async def noop(number: int) -> None:
        """Nothing."""

    return app


async def defer_all(url: str, jobs: int, *, clients: int) -> None:
    """Defer jobs from concurrent clients."""
    app = make_app(url)
    numbers = iter(range(jobs))

    async def client() -> None:
        for number in numbers:
            await app.configure_task("noop", queue="bench").defer_async(number=number)

    async with app.open_async():
        await asyncio.gather(*(client() for _ in range(clients)))


async def _main(command: str, url: str, concurrency: int) -> None:
    app = make_app(url)
    async with app.open_async():
        if command == "schema":
            await app.schema_manager.apply_schema_async()
        else:
            await app.run_worker_async(queues=["bench"], concurrency=concurrency, wait=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1))
