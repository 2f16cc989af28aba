"""Making tenants and API keys from the command line."""

import asyncio

from models.account import create_key, create_tenant
from models.database import create_engine


def make_key(database_url: str, tenant: str, name: str) -> str:
    """A new API key of a tenant, which is made if it does not exist; the key cannot be had again."""

    async def make() -> str:
        engine = create_engine(database_url, name="keys", pool_size=1)
        try:
            return await create_key(engine, await create_tenant(engine, tenant), name)
        finally:
            await engine.dispose()

    return asyncio.run(make())
