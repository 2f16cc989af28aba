"""OpenAI's own client, unmodified, against real processes; ``benchmarks/openai_clients.py`` tries its 1.x too."""

from collections.abc import Mapping
from typing import Any

import openai

from tests import openai_client
from tests.stack import Database, Stack

LLMS: Mapping[str, Mapping[str, Any]] = {  # Any: TOML values
    "echo": {"mock": {"word_s": 0.05}},
    "slow": {"mock": {"latency_s": 60}},
    "broken": {"mock": {"error": "provider_rejected"}},
    "vectors": {"embeddings": True},
}


def test_openais_client_works_unmodified(stack: Stack, database: Database) -> None:
    stack.catalog(LLMS)
    stack.relay()
    stack.worker(concurrency=32)
    _, url = stack.api()
    with openai.OpenAI(base_url=f"{url}/v1", api_key=database.api_key) as client:
        for step in openai_client.STEPS:
            step(client)
