"""Keys of providers: where they come from, and where they never go."""

from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from models.errors import ConfigurationError
from tests.stack import Database, Stack
from tests.workers.providers.calling import call, llm
from tests.workers.providers.scripted import Call
from workers.providers.keys import Key, read_key

KEY = "sk-never-to-be-seen-0123456789"


def test_a_missing_key_is_the_operators_mistake_and_names_the_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="NO_SUCH_KEY holds no API key"):
        read_key(llm("openai", "http://x", api_key_env="NO_SUCH_KEY"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_key(llm("openai", "http://x", api_key_file=str(tmp_path / "missing")))


@pytest.mark.parametrize("text", ["", "\n", f"{KEY} and more", f"{KEY}\nheader: injected", f"{KEY}é"])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        read_key(llm("openai", "http://x", api_key_file=str(file)))
    assert KEY not in str(caught.value)


def test_a_key_shows_itself_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    assert KEY not in repr(Key(llm("openai", "http://x", api_key_env="SOME_KEY")))


def test_a_key_file_is_read_again_after_a_refusal(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old")
    key = Key(llm("openai", "http://x", api_key_file=str(file)))
    file.write_text("new")
    assert key.value == "old"
    key.read_again()
    assert key.value == "new"


def test_an_echoed_key_is_not_in_the_error() -> None:
    async def echo(call: Call) -> None:
        await call.answer(401, f"no: {call.headers}".encode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_KEY", KEY)
        outcomes = [call(provider, echo, api_key_env="SOME_KEY") for provider in ("openai", "anthropic")]
    for outcome in outcomes:
        assert KEY in str(outcome.server.calls[0].headers)
        assert KEY not in outcome.error.failure.message
        assert outcome.error.__cause__ is None


def test_a_key_is_in_no_table_message_or_log_after_a_call_whose_server_echoes_it(
    stack: Stack, database: Database, httpserver: HTTPServer
) -> None:
    seen: list[str] = []

    def echo(request: Request) -> Response:
        seen.append(request.headers["authorization"])
        body = {401: f"bad key: {request.headers}", 500: f"broken: {seen[-1]}"}
        status = 401 if "auth" in request.get_data(as_text=True) else 500
        return Response(body[status], status=status)

    httpserver.expect_request("/v1/chat/completions").respond_with_handler(echo)
    entry = {"provider": "openai", "base_url": httpserver.url_for("/v1"), "api_key_env": "SECRET_KEY", "retries": 1}
    missing = {**entry, "api_key_env": "KEY_THAT_IS_MISSING"}
    stack.catalog({"remote": entry, "keyless": missing})
    stack.settings["SECRET_KEY"] = KEY
    stack.relay()
    stack.worker()
    database.submit(["auth", "broken"], route=["remote"])
    database.submit(["no key"], route=["keyless"])
    database.wait_until_finished()
    assert f"Bearer {KEY}" in seen
    codes = database.rows("SELECT DISTINCT error ->> 'code' AS code FROM jobs ORDER BY 1")
    assert [row["code"] for row in codes] == ["overloaded", "provider_auth"]
    tables = database.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    dump = "".join(str(database.rows(f'SELECT t::text FROM "{table["tablename"]}" t')) for table in tables)
    logs = "".join(log.read_text(errors="replace") for log in stack.directory.glob("*.log"))
    assert "bad key" in logs  # what providers say of access to them is the operator's
    assert "bad key" not in dump
    assert "KEY_THAT_IS_MISSING" in logs  # the worker said so at its start
    assert "KEY_THAT_IS_MISSING" not in dump
    for place in (dump, logs):
        assert KEY not in place
