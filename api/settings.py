"""What the front door can be told."""

from pydantic import Field, field_validator

from api.access import parse_networks
from api.pools import FEWEST
from models.settings import CatalogSettings, StoreSettings


class ApiSettings(StoreSettings, CatalogSettings):
    """The settings of the API process; it has no provider keys and no broker."""

    EMPTY_IS_A_VALUE = frozenset({"metrics_allow"})

    max_body_bytes: int = Field(
        default=4 * 1024 * 1024, ge=1024, description="Larger request bodies are refused with 413."
    )
    max_upload_mb: int = Field(
        default=1024, ge=1, le=1024 * 1024, description="Larger uploads are refused with 413, in MiB."
    )
    sync_wait_s: float = Field(
        default=600.0,
        gt=0,
        le=86_400,
        description="The longest that a chat completion or embedding is waited for; its job goes on after that.",
    )
    stream_heartbeat_s: float = Field(
        default=15.0,
        ge=0,
        le=3600,
        description="Seconds of silence after which a stream sends a comment, so that no proxy takes it for dead;"
        " errors are events from then on. 0: never.",
    )
    max_batch_rows: int = Field(
        default=5_000_000, ge=1, le=50_000_000, description="Uploaded files with more rows are refused with 422."
    )
    api_pool_size: int = Field(
        default=15,
        ge=FEWEST,
        le=200,
        description="Postgres connections that one API process keeps at most: a fifth each for submissions, states,"
        " long reads, control and files. Processes that read uploaded files come on top: 3 for batches of large files,"
        " with 3 connections each, and 3 for uploads, with one each.",
    )
    api_read_timeout_s: float = Field(
        default=10.0,
        ge=0.1,
        le=600,
        description="Seconds that Postgres may take for usage, a list, or a page of results: beyond it they are refused"
        " with 503.",
    )
    api_key_cache_s: float = Field(
        default=5.0,
        ge=0.1,
        le=300,
        description="Seconds an API key is trusted without asking Postgres: the delay of a revocation.",
    )
    rate_limit_timeout_s: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="Seconds to wait for Redis before rate limits are counted by each process alone.",
    )
    submit_group_limit: int = Field(
        default=256, ge=1, le=5000, description="Concurrent submissions recorded by one INSERT, at most."
    )
    submit_retry_s: float = Field(
        default=5.0,
        ge=0,
        le=60,
        description="Seconds a submission is tried again when Postgres went away in mid-statement.",
    )
    metrics_allow: str = Field(
        default="127.0.0.0/8,::1/128",
        description="Networks (CIDR, with commas between) from which `/metrics` and the parts of `/health` are shown"
        " without an API key. The connection's own address counts, and none that came through a proxy.",
    )

    @field_validator("metrics_allow")
    @classmethod
    def _check_networks(cls, given: str) -> str:
        parse_networks(given)
        return given
