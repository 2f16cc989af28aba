"""What stands before Postgres in a test: a pooler that refuses start-up parameters, and one that ignores them."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

_SSL_REQUEST, _GSSENC_REQUEST = 80877103, 80877104
_PROTOCOL_VIOLATION = "08P01"


@contextmanager
def refusing(message: str) -> Iterator[str]:
    """The URL of a server that answers every start-up with an error, in the words of a pooler."""
    fields = f"SFATAL\0VFATAL\0C{_PROTOCOL_VIOLATION}\0M{message}\0\0".encode()
    answer = b"E" + struct.pack("!I", 4 + len(fields)) + fields

    def refuse(client: socket.socket) -> None:
        with client:
            _read_startup(client)
            client.sendall(answer)

    with _serving(refuse) as port:
        yield f"postgresql+psycopg://headrace:secret@127.0.0.1:{port}/headrace"


@contextmanager
def ignoring(database_url: str) -> Iterator[str]:
    """The URL of a server that passes everything on to Postgres but the start-up parameter ``options``, as PgBouncer
    does with ``ignore_startup_parameters = options``."""
    parts = urlsplit(database_url)
    assert parts.hostname
    assert parts.port
    host, port = parts.hostname, parts.port

    def pass_on(client: socket.socket) -> None:
        protocol, parameters = _read_startup(client)
        parameters.pop("options", None)
        text = "".join(f"{name}\0{value}\0" for name, value in parameters.items()).encode() + b"\0"
        with client, socket.create_connection((host, port)) as server:
            server.sendall(struct.pack("!II", 8 + len(text), protocol) + text)
            threading.Thread(target=_copy, args=(client, server), daemon=True).start()
            _copy(server, client)

    with _serving(pass_on) as own_port:
        yield database_url.replace(f":{port}/", f":{own_port}/")


@contextmanager
def _serving(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=_quietly, args=(serve, client), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _quietly(serve: Callable[[socket.socket], None], client: socket.socket) -> None:
    try:
        serve(client)
    except OSError:
        client.close()


def _read_startup(client: socket.socket) -> tuple[int, dict[str, str]]:
    """The protocol's version and the parameters; offers of encryption are declined before."""
    while True:
        (length,) = struct.unpack("!I", _read(client, 4))
        body = _read(client, length - 4)
        (code,) = struct.unpack("!I", body[:4])
        if code not in (_SSL_REQUEST, _GSSENC_REQUEST):
            words = body[4:].decode().rstrip("\0").split("\0")
            return code, dict(zip(words[::2], words[1::2], strict=True))
        client.sendall(b"N")


def _read(client: socket.socket, wanted: int) -> bytes:
    data = b""
    while len(data) < wanted:
        piece = client.recv(wanted - len(data))
        if not piece:
            raise ConnectionError("closed within the start-up")
        data += piece
    return data


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
