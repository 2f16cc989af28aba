"""Where a request goes, by the ``base_url`` of its LLM: the request line and the header of the key."""

import asyncio
import json

import pytest

from tests.workers.providers.calling import PROVIDERS, REQUEST, call, llm
from tests.workers.providers.scripted import Call, serve
from tests.workers.providers.test_openai import WHOLE
from workers.providers.base import Meter
from workers.providers.openai import OpenAIProvider

VERSION = "api-version=2024-10-21"
MESSAGE = {"type": "message", "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn"}


async def answers(call: Call) -> None:
    await call.answer(200, json.dumps(MESSAGE if call.path.partition("?")[0].endswith("/messages") else WHOLE).encode())


@pytest.mark.parametrize(
    ("provider", "base", "line"),
    [
        ("openai", "/v1", "/v1/chat/completions"),
        ("openai", "/v1/", "/v1/chat/completions"),
        ("openai", "", "/chat/completions"),
        ("openai", "/v1/chat/completions", "/v1/chat/completions"),
        ("openai", "/v1/chat/completions/", "/v1/chat/completions"),
        ("openai", "/v1/embeddings", "/v1/chat/completions"),
        ("openai", "/v1/completions", "/v1/chat/completions"),
        ("openai", "/v1#a", "/v1/chat/completions"),
        ("openai", f"/openai/deployments/g?{VERSION}", f"/openai/deployments/g/chat/completions?{VERSION}"),
        ("openai", f"/openai/deployments/g/?{VERSION}", f"/openai/deployments/g/chat/completions?{VERSION}"),
        (
            "openai",
            f"/openai/deployments/g/chat/completions?{VERSION}&x=%20y",
            f"/openai/deployments/g/chat/completions?{VERSION}&x=%20y",
        ),
        ("openai", f"/?{VERSION}", f"/openai/deployments/their-name/chat/completions?{VERSION}"),
        ("openai", f"/openai?{VERSION}", f"/openai/deployments/their-name/chat/completions?{VERSION}"),
        ("openai", f"/models?{VERSION}", f"/models/chat/completions?{VERSION}"),
        ("anthropic", "", "/v1/messages"),
        ("anthropic", "/v1", "/v1/messages"),
        ("anthropic", "/v1/", "/v1/messages"),
        ("anthropic", "/v1/messages", "/v1/messages"),
        ("anthropic", "/proxy/v1?team=a", "/proxy/v1/messages?team=a"),
    ],
)
def test_the_endpoint_is_added_to_the_path_and_the_query_stays(provider: str, base: str, line: str) -> None:
    """ax-llm/ax#19, BerriAI/litellm#8572, can1357/oh-my-pi#782, ThinkInAIXYZ/deepchat#262."""

    async def main() -> str:
        async with serve(answers) as server:
            made = PROVIDERS[provider](llm(provider, server.url, base_url=f"{server.url}{base}"))
            generation = await made.generate(REQUEST, Meter())
            assert generation.text == "hello"
            await made.close()
            return server.calls[0].path

    assert asyncio.run(main()) == line


@pytest.mark.parametrize(
    ("base_url", "key", "header"),
    [
        ("https://api.openai.com/v1", "sk-1", {"authorization": "Bearer sk-1"}),
        ("https://x.openai.azure.com/openai/v1", "k", {"api-key": "k"}),
        (f"https://x.openai.azure.com?{VERSION}", "k", {"api-key": "k"}),
        (f"https://gateway.example/openai/deployments/g?{VERSION}", "k", {"api-key": "k"}),
        ("https://x.services.ai.azure.com/openai/v1", "eyJ0.eyJ1.sig", {"authorization": "Bearer eyJ0.eyJ1.sig"}),
        ("https://azure.com.example/v1", "k", {"authorization": "Bearer k"}),
    ],
)
def test_a_key_goes_where_the_server_looks_for_it(base_url: str, key: str, header: dict[str, str]) -> None:
    assert OpenAIProvider(llm("openai", "", base_url=base_url)).headers(key) == header


@pytest.mark.parametrize(
    ("provider", "name", "header"),
    [
        ("openai", "api-key", {"api-key": "k"}),
        ("openai", "Authorization", {"authorization": "Bearer k"}),
        ("anthropic", "authorization", {"anthropic-version": "2023-06-01", "authorization": "Bearer k"}),
    ],
)
def test_an_entry_may_name_the_header(provider: str, name: str, header: dict[str, str]) -> None:
    entry = llm(provider, "http://x", api_key_header=name)
    assert PROVIDERS[provider](entry).headers("k") == header


def test_without_a_key_none_is_sent() -> None:
    assert "authorization" not in call("openai", answers).server.calls[0].headers
