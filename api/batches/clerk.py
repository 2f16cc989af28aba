"""A process that takes uploaded files in, one at a time, so that a hostile or large one is no burden to the API.

    python -m api.batches.clerk <file descriptor of a socket>

Its memory, its processor time and its files are limited. It ends when the API does: the socket is then closed, and a
thread watches it, so that the batch of a file that is being read does not begin.
"""

import asyncio
import os
import queue
import resource
import signal
import socket
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import orjson
import structlog
from sqlalchemy.exc import SQLAlchemyError

from api.batches.intake import take_in
from api.batches.orders import LENGTH, TOO_MUCH, Order, encode_failure, encode_refusal, encode_taken
from api.errors import not_storable
from models.catalog import Catalog, load_catalog
from models.database import WAITING_HELPS, NotStorable, classify, describe, is_unstorable
from models.errors import HeadraceError, Unavailable, ValidationFailed
from models.telemetry import configure_logging

CPU_S = 300
"""Processor time for one file, in seconds."""

_NICENESS = 5

Work = tuple[Order, int]

log = structlog.get_logger()


def main() -> None:
    """Take in what the API sends, until it is gone."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    memory_bytes = int(sys.argv[2])
    configure_logging()
    _limit(memory_bytes)
    works: queue.SimpleQueue[Work] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(channel, works), daemon=True).start()
    with asyncio.Runner() as runner:
        while True:
            order, descriptor = works.get()
            _limit_processor()
            with os.fdopen(descriptor, "rb") as file:
                reply = runner.run(_reply(order, file))
            channel.sendall(LENGTH.pack(len(reply)) + reply)


async def _reply(order: Order, file: BinaryIO) -> bytes:
    try:
        return encode_taken(await take_in(order, file, _catalog(order.catalog, order.optional_llms)))
    except HeadraceError as refusal:
        return encode_refusal(refusal)
    except MemoryError:
        return encode_refusal(ValidationFailed(TOO_MUCH, param="file"))
    except (SQLAlchemyError, OSError, NotStorable, UnicodeEncodeError) as error:
        if classify(error) in WAITING_HELPS:
            log.warning("clerk.postgres_away", error=describe(error))
            detail = "Postgres went away; your list of batches says whether the batch was recorded."
            return encode_refusal(Unavailable(detail, retry_after_s=1))
        if is_unstorable(error):
            return encode_refusal(not_storable())
        log.exception("clerk.failed")
        return encode_failure()
    except Exception:
        log.exception("clerk.failed")
        return encode_failure()


@lru_cache(maxsize=4)
def _catalog(path: Path | None, optional: tuple[str, ...]) -> Catalog:
    return load_catalog(path, optional)


def _receive(channel: socket.socket, works: "queue.SimpleQueue[Work]") -> None:
    """Receive orders, each with its file; end the process when the API has gone or does not want it any more."""
    try:
        while True:
            head, descriptors, _, _ = socket.recv_fds(channel, LENGTH.size, 1)
            if len(head) < LENGTH.size or not descriptors:
                os._exit(0)
            (length,) = LENGTH.unpack(head)
            message = bytearray()
            while len(message) < length:
                message += channel.recv(length - len(message)) or os._exit(0)
            works.put((Order.model_validate(orjson.loads(message)), descriptors[0]))
    except OSError:
        os._exit(0)
    finally:
        os._exit(1)


def _limit(memory_bytes: int) -> None:
    """Limit what a file can cost; other processes go first on a busy machine."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the API's to act upon
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit is not kept, or counts what is shared too
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _limit_processor() -> None:
    """Give the next file its processor time: beyond it, the process is ended."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    main()
