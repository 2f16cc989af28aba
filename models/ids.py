"""Identifiers: a UUIDv7 in Postgres, a prefix and its 32 hex digits on the wire."""

from uuid import UUID

from uuid_utils.compat import uuid7

JOB = "job"
BUDGET = "budget"
BATCH = "batch"
FILE = "file"
"""Written with a hyphen, as OpenAI's are."""


def new_id() -> UUID:
    """A new UUIDv7: unique, and ordered by its time of creation."""
    return uuid7()


def to_wire(prefix: str, value: UUID) -> str:
    """The wire form of an id, such as ``job_0198c0ffee...``."""
    return f"{prefix}{_separator(prefix)}{value.hex}"


def from_wire(prefix: str, text: str) -> UUID | None:
    """The UUID in a wire id, or None when the text is no id of this kind."""
    head, _, digits = text.partition(_separator(prefix))
    if head != prefix or not 32 <= len(digits) <= 36:
        return None
    try:
        return UUID(digits)
    except ValueError:
        return None


def _separator(prefix: str) -> str:
    return "-" if prefix == FILE else "_"
