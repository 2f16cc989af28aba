"""Free TCP ports on this machine."""

import errno
import socket
from collections.abc import Iterable

from api.local.errors import LocalError


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now.

    Raises LocalError when nobody could: an unknown host, an address of another machine, a reserved
    port.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As servers do, so that a port whose last connections are still closing counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise LocalError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return True


def choose_port(host: str, wanted: Iterable[int]) -> int:
    """The first free port of ``wanted``, else one that the system picks."""
    for port in wanted:
        if port_is_free(host, port):
            return port
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port
