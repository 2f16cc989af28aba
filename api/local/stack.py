"""The whole of Headrace on one machine: servers where no URL is set, then every process, supervised."""

import signal
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import httpx

from api.local.errors import LocalError, SettingsError
from api.local.housing import make_data_directory
from api.local.lock import DirectoryLock
from api.local.ports import choose_port, port_is_free
from api.local.postgres import EmbeddedPostgres
from api.local.processes import StopStep, python
from api.local.servers import EmbeddedServer
from api.local.settings import url_of
from api.local.supervisor import ProcessSpec, Supervisor
from api.local.valkey import EmbeddedValkey
from models.catalog import Catalog, Pool, read_catalog, select_optional
from models.errors import ConfigurationError
from models.settings import CatalogSettings, read_settings
from models.sources import installed_optional_llms

LOOPBACK = "127.0.0.1"
USUAL_PORT = 8000
USUAL_FLOWER_PORT = 5555
KEY_FILE = "api_key"
OPTIONAL_LLMS = "HEADRACE_OPTIONAL_LLMS"
PROVISION_TIMEOUT_S = 600.0
API_START_TIMEOUT_S = 60.0
SERVERS: Mapping[str, type[EmbeddedServer]] = {
    "HEADRACE_DATABASE_URL": EmbeddedPostgres,
    "HEADRACE_REDIS_URL": EmbeddedValkey,
}
DRAIN_S = 5.0
"""The default of a worker's own setting HEADRACE_DRAIN_S."""

AFTER_DRAIN_S = 25.0
"""What a worker may take beyond its drain time: it reports what was cut off, and frees its models."""

# Celery's warning about root, which is for workers that unpickle what they are sent, is no news to who started this
# as root.
WORKER_ENV = {
    "PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges",
}

Environment = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """What the person who starts the stack chose; a port of ``None`` is the usual one, or a free one."""

    data_dir: Path
    host: str = LOOPBACK
    port: int | None = None
    flower: bool = True
    flower_port: int | None = None


@dataclass(frozen=True, kw_only=True)
class Running:
    """A stack that is up, and where to find it."""

    supervisor: Supervisor
    data_dir: Path
    api_url: str
    flower_url: str | None

    @property
    def key_file(self) -> Path:
        """The file that holds the development tenant's API key."""
        return self.data_dir / KEY_FILE


@dataclass(frozen=True)
class _Ports:
    api: int
    flower: int | None


@contextmanager
def running_stack(
    options: StackOptions,
    environment: Environment,
    *,
    show: Callable[[str, str], None] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Running]:
    """Start everything, yield once the API is ready, and stop everything on the way out.

    ``environment`` is what the processes inherit; an embedded server is started for each URL that is missing
    there. ``show`` is told what the processes write, ``progress`` what is being done.

    Raises LocalError when something cannot start, and Interrupted when a signal asks to stop before that.
    """
    catalog, chosen = _catalog(environment, progress)
    missing = [name for name in SERVERS if url_of(environment, name) is None]
    ports = _choose_ports(options)
    data_dir = make_data_directory(options.data_dir)
    with ExitStack() as cleanup:
        lock = DirectoryLock(data_dir / "headrace.lock")
        lock.acquire()
        cleanup.callback(lock.release)
        servers = {name: SERVERS[name](data_dir) for name in missing}
        for server in servers.values():
            cleanup.callback(server.close)
        supervisor = cleanup.enter_context(Supervisor(data_dir / "logs", show))
        env = {**environment, **chosen, "HEADRACE_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"}
        env |= _start_servers(servers, supervisor, progress)
        progress("migrating the database")
        supervisor.complete(_provision(data_dir / KEY_FILE, env))
        progress("starting the processes")
        pools = _pools_that_can_start(catalog, env, progress)
        for spec in _processes(options, ports, catalog, pools, env):
            supervisor.start(spec)
        yield Running(
            supervisor=supervisor,
            data_dir=data_dir,
            api_url=local_url(options.host, ports.api),
            flower_url=local_url(LOOPBACK, ports.flower) if ports.flower else None,
        )
        progress("stopping")


def _start_servers(
    servers: Mapping[str, EmbeddedServer], supervisor: Supervisor, progress: Callable[[str], None]
) -> Environment:
    """Start servers, and return the variables that say where they are."""
    found = {}
    for variable, server in servers.items():
        progress(f"starting {server.name}")
        supervisor.start(server.process_spec())
        found[variable] = server.url
    return found


def _processes(
    options: StackOptions, ports: _Ports, catalog: Catalog, pools: Collection[Pool], env: Environment
) -> Iterator[ProcessSpec]:
    """Every process in the order of its start; the API, which is waited for, last: the others boot meanwhile."""
    yield _relay(env)
    yield from (_worker(pool, catalog, env) for pool in pools)
    if ports.flower:
        yield _flower(ports.flower, env)
    yield _api(options.host, ports.api, env)


def _catalog(environment: Environment, progress: Callable[[str], None]) -> tuple[Catalog, Environment]:
    """The catalogue, and the variable that tells every process the same optional LLMs.

    Where that is not set, these are the ones that are installed: here, unlike in a cluster, this machine runs them all.
    """
    given = {"catalog": environment.get("HEADRACE_CATALOG"), "optional_llms": environment.get(OPTIONAL_LLMS, "")}
    try:
        settings = read_settings(CatalogSettings, given)  # of the processes' environment, not this one's
        whole = read_catalog(settings.catalog)
        optional = list(settings.optional_llms)
        if OPTIONAL_LLMS not in environment:
            optional = installed_optional_llms(whole)
        catalog = select_optional(whole, optional)
    except ConfigurationError as error:
        raise SettingsError(str(error)) from error
    if left_out := whole.llms.keys() - catalog.llms.keys():
        progress(f"leaving out {', '.join(sorted(left_out))}: optional, and not installed or not named")
    return catalog, {OPTIONAL_LLMS: ",".join(optional)}


def _pools_that_can_start(catalog: Catalog, env: Environment, progress: Callable[[str], None]) -> list[Pool]:
    """The pools of the catalogue; that of the GPUs only where a worker of it finds one.

    A process of its own looks: the native library stays out of the supervisor.
    """
    pools = list(catalog.pools_in_use)
    if "gpu" in pools:
        look = subprocess.run(
            python("-m", "workers.gpu_pool"), env={**env}, capture_output=True, text=True, check=False
        )
        if look.returncode:
            why = (look.stdout or look.stderr).strip().splitlines()[-1:] or ["it cannot look for one"]
            tiers = ", ".join(name for name, tier in catalog.tiers.items() if tier.pool == "gpu")
            progress(f"the pool gpu is not started: {why[0]}; jobs of its tiers ({tiers}) wait for a worker elsewhere")
            pools.remove("gpu")
    return pools


def _choose_ports(options: StackOptions) -> _Ports:
    """The ports for the processes; raises LocalError when one that was asked for is taken."""
    api = _port(options.host, options.port, USUAL_PORT, "--port")
    if not options.flower:
        return _Ports(api, None)
    return _Ports(api, _port(LOOPBACK, options.flower_port, USUAL_FLOWER_PORT, "--flower-port"))


def _port(host: str, asked: int | None, usual: int, option: str) -> int:
    if asked is None:
        return choose_port(host, [usual])
    if not port_is_free(host, asked):
        raise LocalError(f"port {asked} is in use by another program; choose another {option}, or leave it out")
    return asked


def local_url(host: str, port: int) -> str:
    """Where a client on this machine reaches a server that listens on ``host``."""
    try:
        address = ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:
        address = ip_address("::1" if isinstance(address, IPv6Address) else LOOPBACK)
    return f"http://[{address}]:{port}" if isinstance(address, IPv6Address) else f"http://{address}:{port}"


def _provision(key_file: Path, env: Environment) -> ProcessSpec:
    """A process of its own: the supervisor lives long, and need not carry the database libraries."""
    return ProcessSpec(
        name="migrate",
        argv=python("-m", "api.local.provision", str(key_file)),
        env=env,
        start_timeout_s=PROVISION_TIMEOUT_S,
    )


def _api(host: str, port: int, env: Environment) -> ProcessSpec:
    return ProcessSpec(
        name="api",
        argv=python(
            *("-m", "uvicorn", "api.app:create_app", "--factory", "--host", host, "--port", str(port)),
            *("--no-access-log", "--log-level", "warning", "--timeout-graceful-shutdown", "5"),
        ),
        env=env,
        ready=lambda: _is_ready(local_url(host, port)),
        start_timeout_s=API_START_TIMEOUT_S,
        stop=(StopStep(signal.SIGTERM, 10.0),),
    )


def _is_ready(url: str) -> bool:
    try:
        # A proxy set for the outside world knows nothing of this machine.
        with httpx.Client(trust_env=False, timeout=2.0) as client:
            return client.get(f"{url}/readyz").is_success
    except httpx.HTTPError:
        return False


def _relay(env: Environment) -> ProcessSpec:
    return ProcessSpec(name="relay", argv=python("-m", "workers.relay"), env=env)


def _worker(pool: Pool, catalog: Catalog, env: Environment) -> ProcessSpec:
    """The worker process of a pool."""
    concurrency = catalog.pools_in_use[pool].concurrency
    return ProcessSpec(
        name=f"worker-{pool}",
        argv=python(
            *("-m", "celery", "-A", "workers.celery", "--quiet", "worker", "-P", "threads", "-n", f"{pool}@%h"),
            *("-Q", ",".join(catalog.queues_of_pool(pool)), "-c", str(concurrency)),
            *("--without-gossip", "--without-mingle", "--heartbeat-interval", "30", "--loglevel", "warning"),
        ),
        env={**WORKER_ENV, **env},
        stop=_worker_stop(env),
    )


def _worker_stop(env: Environment) -> Sequence[StopStep]:
    """A worker finishes what it can in its own drain time; the leases of the jobs that it cuts off expire, and they
    run again. The quit is for one that hangs."""
    try:
        drain_s = float(env.get("HEADRACE_DRAIN_S") or DRAIN_S)
    except ValueError:
        drain_s = DRAIN_S  # the worker names the mistake itself
    return (StopStep(signal.SIGTERM, drain_s + AFTER_DRAIN_S), StopStep(signal.SIGQUIT, 5.0))


def _flower(port: int, env: Environment) -> ProcessSpec:
    return ProcessSpec(
        name="flower",
        argv=python(
            *("-m", "celery", "-A", "workers.celery", "flower"),
            *(f"--address={LOOPBACK}", f"--port={port}", "--logging=error"),
        ),
        env=env,
        stop=(StopStep(signal.SIGTERM, 5.0),),
    )
