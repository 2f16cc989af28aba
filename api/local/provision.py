"""Makes a database ready for use: its tables, the development tenant, and that tenant's key in a file.

Run as ``python -m api.local.provision <key file>`` with ``HEADRACE_DATABASE_URL`` set.
"""

import os
import sys
from pathlib import Path

from api.local.database import database_errors_as_sentences
from api.local.errors import LocalError
from api.local.settings import database_url_of
from models.account import ensure_development_tenant
from models.database import migrate


def migrate_or_say_why(database_url: str) -> None:
    """Migrate to the newest revision; raises LocalError when the database, or what stands before it, refuses."""
    with database_errors_as_sentences(database_url):
        migrate(database_url)


def provision(database_url: str, key_file: Path) -> None:
    """Migrate to the newest revision, and see that the API key in ``key_file`` (mode 600) works."""
    migrate_or_say_why(database_url)
    existing = key_file.read_text(errors="replace").strip() if key_file.is_file() else None
    with database_errors_as_sentences(database_url):
        key = ensure_development_tenant(database_url, existing)
    if key != existing:
        _write_secret(key_file, key)


def _write_secret(file: Path, text: str) -> None:
    # Written aside and renamed: a reader finds the old key or the new one, never half of it.
    scratch = file.with_name(f".{file.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        os.fchmod(descriptor, 0o600)
        opened.write(f"{text}\n")
    scratch.replace(file)


def main() -> None:
    """Provision the database that the environment names."""
    try:
        provision(database_url_of(os.environ), Path(sys.argv[1]))
    except LocalError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
