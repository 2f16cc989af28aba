"""The pure rules: catalogue, routes, prices, ids, and the lifecycle against the schema that guards it."""

from decimal import Decimal
from itertools import product
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalog import load_catalog
from models.errors import ConfigurationError
from models.ids import from_wire, new_id, to_wire
from models.lifecycle import TERMINAL, JobStatus, can_move
from models.pricing import Price, Usage, as_wire, cost_of, worst_case
from tests.stack import Database

CATALOG = """
default = "small"
[pools.cpu]
concurrency = 2
[tiers.small]
queue = "small"
pool = "cpu"
[tiers.large]
queue = "large"
pool = "remote"
[llms.a]
tier = "small"
provider = "mock"
context_window = 10
input_price = "0.10"
output_price = "0.20"
fallbacks = ["b"]
[llms.b]
tier = "large"
provider = "mock"
context_window = 10
input_price = "3"
output_price = "15"
"""


@pytest.fixture
def catalog_file(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.toml"
    path.write_text(CATALOG)
    return path


def test_the_shipped_catalogue_loads() -> None:
    assert "smollm2-135m" in load_catalog().llms


def test_pools_know_their_queues_and_concurrency(catalog_file: Path) -> None:
    catalog = load_catalog(catalog_file)
    assert catalog.queues_of_pool("cpu") == ["small"]
    assert {name: pool.concurrency for name, pool in catalog.pools_in_use.items()} == {"cpu": 2, "remote": 200}
    assert catalog.concurrency_of(["small", "elsewhere"]) == 2


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('tier = "large"', 'tier = "huge"', "llms.b.tier"),
        ('fallbacks = ["b"]', 'fallbacks = ["c"]', "llms.a.fallbacks"),
        ('fallbacks = ["b"]', 'fallback = ["b"]', "llms.a.fallback"),
        ('input_price = "3"', 'input_price = "-3"', "llms.b.input_price"),
        ('queue = "small"', 'queue = "webhooks"', "reserved"),
        ('default = "small"', 'default = "smal"', "default"),
        ('provider = "mock"', 'provider = "openai"', "base_url"),
        ("[llms.a]", "[llms.a", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_catalogue_is_named(catalog_file: Path, old: str, new: str, named: str) -> None:
    catalog_file.write_text(CATALOG.replace(old, new, 1))
    with pytest.raises(ConfigurationError, match=named):
        load_catalog(catalog_file)


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml"):
        load_catalog(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("usage", "price", "shown"),
    [
        (Usage(1000, 500), Price(Decimal("0.15"), Decimal("0.60")), "0.000450"),
        (Usage(0, 0), Price(Decimal("0.15"), Decimal("0.60")), "0.000000"),
        (Usage(24, 0), Price(Decimal("0.02"), Decimal(0)), "0.00000048"),
        (Usage(1, 0), Price(Decimal("0.000001"), Decimal(0)), "0.000000000001"),
        (Usage(2**31 - 1, 0), Price(Decimal("123.456789"), Decimal(0)), "265121.435488629483"),
    ],
)
def test_costs_are_exact_to_twelve_decimals_and_shown_with_at_least_six(usage: Usage, price: Price, shown: str) -> None:
    assert as_wire(cost_of(usage, price)) == shown


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_worst_case_is_never_below_what_a_job_costs(prompt: int, limit: int, used: int) -> None:
    prices = [Price(Decimal("0.15"), Decimal("0.60")), Price(Decimal(3), Decimal(15))]
    usage = Usage(prompt, min(used, limit))
    assert all(cost_of(usage, price) <= worst_case(prompt, limit, prices) for price in prices)


@given(st.uuids())
def test_ids_survive_the_wire(value: UUID) -> None:
    assert from_wire("job", to_wire("job", value)) == value


@pytest.mark.parametrize("text", ["", "job", "job_", "job_zz", f"batch_{'0' * 32}", f"job_{'0' * 31}"])
def test_what_is_no_id_is_none(text: str) -> None:
    assert from_wire("job", text) is None


def test_new_ids_are_ordered() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert {value.version for value in ids} == {7}


def test_terminal_states_have_no_way_out() -> None:
    assert {"completed", "failed", "cancelled", "expired"} == TERMINAL


@pytest.mark.parametrize(("source", "target"), list(product(JobStatus, JobStatus)))
def test_postgres_allows_just_the_transitions_of_the_table(
    database: Database, source: JobStatus, target: JobStatus
) -> None:
    (job_id,) = database.submit(["prompt"])
    for step in _way_to(source):
        database.rows("UPDATE jobs SET status = %s WHERE id = %s", step, job_id)
    if source == target or can_move(source, target):
        database.rows("UPDATE jobs SET status = %s WHERE id = %s", target, job_id)
    else:
        with pytest.raises(psycopg.errors.CheckViolation):
            database.rows("UPDATE jobs SET status = %s WHERE id = %s", target, job_id)


def _way_to(status: JobStatus) -> list[JobStatus]:
    if status is JobStatus.QUEUED:
        return []
    if status is JobStatus.COMPLETED:
        return [JobStatus.IN_PROGRESS, status]
    return [status]
