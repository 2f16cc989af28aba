"""``headrace keys``: what an operator makes, sees, changes and ends."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import commands
from models.catalog import SHIPPED
from tests.stack import Database


class Operator:
    """Someone at a terminal with ``headrace keys``."""

    def __init__(self, database: Database) -> None:
        self.environment = {"HEADRACE_DATABASE_URL": database.url, "COLUMNS": "200", "TERM": "dumb"}

    def run(self, *arguments: str, fails: bool = False) -> str:
        """What a command prints; fails the test when it ends otherwise than expected."""
        result = CliRunner().invoke(commands, ["keys", *arguments], env=self.environment)
        assert (result.exit_code != 0) == fails, result.output
        return result.output.strip()

    def create(self, *arguments: str) -> str:
        key = self.run("create", "--tenant", "acme", *arguments)
        assert re.fullmatch(r"hr_[0-9a-f]{12}_[0-9a-f]{48}", key)
        return key

    def listed(self, *arguments: str) -> list[list[str]]:
        """The list's rows, without when each key was made."""
        rows = [re.split(r"\s{2,}", line.strip()) for line in self.run("list", *arguments).splitlines()[1:]]
        return [[*row[:4], row[5]] for row in rows]


@pytest.fixture
def operator(database: Database) -> Operator:
    return Operator(database)


def first_part(key: str) -> str:
    return key.rpartition("_")[0]


def test_keys_are_listed_with_their_plans_and_never_with_their_secrets(operator: Operator, database: Database) -> None:
    plain = operator.create("--name", "[red]script")
    pro = operator.create("--plan", "pro", "--name", "web")
    assert operator.listed("--tenant", "acme") == [
        [first_part(plain), "acme", "[red]script", "none", "live"],
        [first_part(pro), "acme", "web", "pro", "live"],
    ]
    assert first_part(database.api_key) in operator.run("list")
    for key in (plain, pro, database.api_key):
        assert key.rpartition("_")[2] not in operator.run("list")
    assert operator.listed("--tenant", "nobody") == []


def test_the_development_key_has_no_plan(operator: Operator, database: Database) -> None:
    key = database.api_key
    assert operator.listed() == [[first_part(key), "development", "development", "none", "live"]]


def test_a_key_is_given_another_plan_or_none(operator: Operator) -> None:
    key = operator.create("--plan", "free")
    operator.run("plan", first_part(key), "enterprise")
    assert operator.listed()[0][3] == "enterprise"
    operator.run("plan", key, "none")
    assert operator.listed()[0][3] == "none"


def test_a_plan_that_the_catalogue_does_not_have_is_refused(operator: Operator, tmp_path: Path) -> None:
    message = operator.run("create", "--tenant", "acme", "--plan", "gold", fails=True)
    assert "no plan 'gold'" in message
    assert "enterprise" in message
    assert operator.listed() == []
    catalog = SHIPPED.read_text()
    (tmp_path / "catalog.toml").write_text(f"{catalog}\n[plans.gold]\nrequests_per_day = 5\n")
    operator.environment["HEADRACE_CATALOG"] = str(tmp_path / "catalog.toml")
    operator.create("--plan", "gold")


def test_a_revoked_key_is_shown_so_and_stays_revoked(operator: Operator, database: Database) -> None:
    key, other = operator.create(), operator.create()
    operator.run("revoke", first_part(key))
    ended = database.value("SELECT revoked_at FROM api_keys WHERE revoked_at IS NOT NULL")
    operator.run("revoke", key)
    assert database.value("SELECT revoked_at FROM api_keys WHERE revoked_at IS NOT NULL") == ended
    assert [(row[0], row[4]) for row in operator.listed()] == [
        (first_part(key), "revoked"),
        (first_part(other), "live"),
    ]


@pytest.mark.parametrize("arguments", [["revoke", "hr_nobody"], ["plan", "hr_nobody", "pro"], ["revoke", ""]])
def test_a_key_that_does_not_exist_is_an_error_in_one_line(operator: Operator, arguments: list[str]) -> None:
    message = operator.run(*arguments, fails=True)
    assert "there is no API key" in message
    assert len(message.splitlines()) == 1
