"""The release before this one goes on working on this one's schema, and beside its processes (docs/upgrades.md)."""

from pathlib import Path

import psycopg

from api.local.postgres import EmbeddedPostgres
from api.local.valkey import EmbeddedValkey
from tests.revisions import PREVIOUS, exported, skip_without
from tests.upgrade import Load, upgrade


def test_nothing_fails_while_schema_and_processes_are_replaced_one_by_one(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    """Old processes under load on the new schema, then beside new ones: no failed request, no failed job."""
    skip_without(PREVIOUS)
    stages: list[str] = []

    def said(stage: str, _: Load) -> None:
        stages.append(stage)

    with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE DATABASE upgraded")
        try:
            with exported(PREVIOUS) as old_root:
                urls = f"{postgres.url.rsplit('/', 1)[0]}/upgraded", valkey.url
                load = upgrade(old_root, urls, tmp_path, callers=2, each_s=0.5, said=said)
        finally:
            connection.execute("DROP DATABASE upgraded WITH (FORCE)")
    assert load.problems == []
    assert len(stages) == 5
    assert load.jobs
    assert load.batches
