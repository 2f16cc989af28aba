"""Where the embedded servers live, and under which account, when Headrace itself runs as root.

Postgres refuses to run as root, so root starts the servers as the system's ``nobody``. That account must
reach the servers' directories and programs, and on many machines it cannot: ``/root`` is closed to it, and so
is everything below. Opening a parent directory is not ours to do. So, as root only:

- a data directory that the account can reach holds the servers' directories itself, as it does for ordinary
  users;
- otherwise they live in a directory of their own under ``/var/lib/headrace``, and ``<data dir>/servers`` is a
  symbolic link to it. The link decides from then on: the same data directory finds the same servers, and one
  whose link was deleted starts afresh and leaves the old directory for a person to remove (only what belonged
  to a data directory in the system's temporary directory is removed once that is gone);
- programs in a closed place (a virtual environment below ``/root``) are copied beside it, once per version.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from api.local.errors import LocalError
from api.local.processes import Account

STATE_ROOT = Path("/var/lib/headrace")
LINK = "servers"
OWNER_FILE = "data-dir"


def service_account(existing: Path) -> Account | None:
    """The account to run a server under: ours (``None``) unless we are root.

    As root it is the owner of the ``existing`` server directory, so that what an ordinary user made goes on
    as that user's, and ``nobody`` for a new one.
    """
    if os.geteuid() != 0:
        return None
    owner = existing.stat().st_uid if existing.is_dir() else 0
    try:
        entry = pwd.getpwuid(owner) if owner != 0 else pwd.getpwnam("nobody")
    except KeyError:
        raise LocalError(
            "running as root needs the system account `nobody` for the embedded servers; "
            "run as an ordinary user, or set HEADRACE_DATABASE_URL and HEADRACE_REDIS_URL"
        ) from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def can_reach(account: Account | None, path: Path) -> bool:
    """Whether an account may pass through ``path`` and every directory above it."""
    if account is None:
        return True
    resolved = path.resolve()
    return all(_may_pass(account, step.stat()) for step in (resolved, *resolved.parents))


def _may_pass(account: Account, status: os.stat_result) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def make_data_directory(data_dir: Path) -> Path:
    """Create the data directory if need be and return its absolute path.

    A new one is closed to other users; as root they may pass through it (the servers' account has to), not
    list it. Raises LocalError when it cannot be created or written to.
    """
    try:
        path = data_dir.expanduser().absolute()
    except RuntimeError as error:
        raise LocalError(f"cannot use the data directory {data_dir}: {error}") from None
    try:
        if not path.is_dir():
            path.mkdir(parents=True)
            path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        (path / "logs").mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise LocalError(f"cannot use the data directory {path}: {error.strerror or error}") from error
    return path


def home_of(data_dir: Path, name: str, state_root: Path = STATE_ROOT) -> Path:
    """The directory that holds a server's own directory ``name``: the data directory, or the one its link
    names.

    Raises LocalError when existing data cannot be reached by the account that has to.
    """
    link = data_dir / LINK
    if link.is_symlink():
        home = link.resolve()
        if not home.is_dir():
            raise LocalError(f"{link} names {home}, which is gone; restore it, or remove the link to start afresh")
        return home
    account = service_account(data_dir / name)
    if can_reach(account, data_dir):
        return data_dir
    if account is not None and (data_dir / name).exists():
        raise LocalError(f"the user {account.name} cannot reach {data_dir / name}: a directory above it became closed")
    return _outside_home(link, account, state_root)


def _outside_home(link: Path, account: Account | None, state_root: Path) -> Path:
    prefix = hashlib.sha256(str(link.parent).encode()).hexdigest()[:12] + "-"
    try:
        state_root.mkdir(mode=0o755, parents=True, exist_ok=True)
        _forget_temporary_homes(state_root)
        home = Path(tempfile.mkdtemp(prefix=prefix, dir=state_root))
        home.chmod(0o711)
        link.symlink_to(home)
        (home / OWNER_FILE).write_text(f"{link.parent}\n")
    except OSError as error:
        raise LocalError(f"cannot keep server data under {state_root}: {error.strerror or error}") from error
    if not can_reach(account, home):
        raise LocalError(f"the embedded servers cannot reach {home}; choose a --data-dir that other users may enter")
    return home


def _forget_temporary_homes(state_root: Path) -> None:
    """Remove the homes whose data directory was a temporary one (a test's) and is gone."""
    temporary = Path(tempfile.gettempdir()).resolve()
    for record in state_root.glob(f"*/{OWNER_FILE}"):
        owner = Path(record.read_text().strip())
        if owner.is_relative_to(temporary) and not (owner / LINK).is_symlink():
            shutil.rmtree(record.parent, ignore_errors=True)


def own_directory(path: Path, account: Account | None) -> None:
    """Create a directory, or take it as it is, that only the server's account may read."""
    path.mkdir(mode=0o700, exist_ok=True)
    if account is not None:
        os.chown(path, account.uid, account.gid)


def own_file(path: Path, text: str, account: Account | None) -> None:
    """Write a file that only the server's account (and root) may read, from its first moment on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        if account is not None:
            os.fchown(descriptor, account.uid, account.gid)
        file.write(text)


def packages_for(
    account: Account | None, distribution: str, names: Sequence[str], state_root: Path = STATE_ROOT
) -> Path:
    """The directory that holds a distribution's packages where the account can run programs from them.

    That is where they are installed, or a copy of the directories ``names``. Raises LocalError when
    the distribution is not installed.
    """
    spec = importlib.util.find_spec(names[0])
    if spec is None or not spec.submodule_search_locations:
        raise LocalError(
            f"the Python package {distribution} is not installed; "
            "install Headrace with its extra `embedded`, "
            "or set HEADRACE_DATABASE_URL and HEADRACE_REDIS_URL to servers of your own"
        )
    installed = Path(spec.submodule_search_locations[0]).parent
    if can_reach(account, installed / names[0]):
        return installed
    copy = state_root / f"{distribution}-{importlib.metadata.version(distribution)}"
    if not copy.is_dir():
        _copy_packages(installed, names, copy)
    return copy


def _copy_packages(installed: Path, names: Sequence[str], target: Path) -> None:
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            whole = Path(scratch) / "packages"
            whole.mkdir(mode=0o755)
            for name in names:
                if (installed / name).is_dir():
                    ignored = shutil.ignore_patterns("include", "*.a", "__pycache__")
                    shutil.copytree(installed / name, whole / name, symlinks=True, ignore=ignored)
            # Renamed as the last step, so that a directory of this name is always complete.
            whole.rename(target)
    except FileExistsError:
        return
    except OSError as error:
        if not target.is_dir():
            raise LocalError(f"cannot copy {names[0]} to {target}: {error.strerror or error}") from error
