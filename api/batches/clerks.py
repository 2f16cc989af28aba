"""The API's clerks: a few processes that take files in; tenants rotate, and none has all of them.

A clerk is kept for the next file, since its start takes half a second, until it has done enough of them, has grown,
or has waited for long. It is ended in the middle of its work when its caller hangs up or the time is over: what it
had written is then swept away.
"""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO
from uuid import UUID

import structlog

from api.batches.orders import LENGTH, TOO_MUCH, Order, Taken, decode_reply
from api.batches.turns import Places
from models.errors import ValidationFailed

MAX_CLERKS = 3
MAX_CLERKS_OF_TENANT = 2
MAX_FILES = 50
IDLE_S = 300.0
TIME_LIMIT_S = 600.0
MEMORY_BYTES = 512 << 20

log = structlog.get_logger()


class Clerk:
    """A process that takes files in, seen from the API."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        with there:
            arguments = ("-m", "api.batches.clerk", str(there.fileno()), str(MEMORY_BYTES))
            self.process = subprocess.Popen(
                [sys.executable, *arguments], pass_fds=[there.fileno()], stdin=subprocess.DEVNULL
            )
        self.files = 0
        self._channel = here

    def work(self, order: bytes, file: BinaryIO) -> bytes | None:
        """Have a file taken in, and wait for it: the reply, or None if the process ended before."""
        self.files += 1
        try:
            socket.send_fds(self._channel, [LENGTH.pack(len(order))], [file.fileno()])
            self._channel.sendall(order)
            head = self._receive(LENGTH.size)
            return head and self._receive(LENGTH.unpack(head)[0])
        except OSError:
            return None

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self._channel.close()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def _receive(self, length: int) -> bytes | None:
        received = bytearray()
        while len(received) < length:
            piece = self._channel.recv(length - len(received))
            if not piece:
                return None
            received += piece
        return bytes(received)


class Clerks:
    """Lends clerks to uploads."""

    def __init__(self) -> None:
        self._places = Places(MAX_CLERKS, MAX_CLERKS_OF_TENANT)
        self._free: list[Clerk] = []
        self._all: set[Clerk] = set()
        self._starting: asyncio.Task[None] | None = None
        self._closing: dict[Clerk, asyncio.TimerHandle] = {}

    def prepare(self) -> None:
        """Start a clerk if none is there, so that one is ready when the file has come in."""
        if not self._all and self._starting is None:
            self._starting = asyncio.create_task(self._start())

    async def take_in(self, order: Order, file: BinaryIO) -> Taken:
        """Have a file taken in; raises what the clerk refused it for.

        When it is cancelled, the clerk is ended: its batch does not begin.
        """
        async with self._lent(order.tenant_id) as clerk:
            work = asyncio.create_task(asyncio.to_thread(clerk.work, order.model_dump_json().encode(), file))
            try:
                reply = await asyncio.wait_for(asyncio.shield(work), TIME_LIMIT_S)
            except BaseException as error:
                await self._end(clerk)
                await work
                if not isinstance(error, TimeoutError):
                    raise
                reply = None
            if reply is None:
                # It may be dying still, and look alive to whoever asks for one next.
                await self._end(clerk)
                log.warning("uploads.clerk_ended", exit=clerk.process.returncode)
                raise ValidationFailed(TOO_MUCH, param="file")
        return decode_reply(reply)

    async def close(self) -> None:
        """End them all."""
        if self._starting is not None:
            await asyncio.wait([self._starting])
        for clerk in list(self._all):
            await self._end(clerk)

    @asynccontextmanager
    async def _lent(self, tenant_id: UUID) -> AsyncIterator[Clerk]:
        async with self._places.one_of(tenant_id):
            if self._starting is not None:
                await asyncio.wait([self._starting])
            while self._free and not self._free[-1].alive:
                await self._end(self._free[-1])
            clerk = self._free.pop() if self._free else await self._made()
            if timer := self._closing.pop(clerk, None):
                timer.cancel()
            try:
                yield clerk
            finally:
                self._take_back(clerk)

    def _take_back(self, clerk: Clerk) -> None:
        if clerk not in self._all:
            return
        self._free.append(clerk)
        loop = asyncio.get_running_loop()
        worn = clerk.files >= MAX_FILES
        self._closing[clerk] = loop.call_later(0 if worn else IDLE_S, self._dismiss, clerk)

    def _dismiss(self, clerk: Clerk) -> None:
        """End a clerk that nobody has asked for."""
        del self._closing[clerk]
        self._free.remove(clerk)
        self._all.discard(clerk)
        clerk.end()

    async def _start(self) -> None:
        try:
            self._take_back(await self._made())
        finally:
            self._starting = None

    async def _made(self) -> Clerk:
        clerk = await asyncio.to_thread(Clerk)
        self._all.add(clerk)
        return clerk

    async def _end(self, clerk: Clerk) -> None:
        self._all.discard(clerk)
        if clerk in self._free:
            self._free.remove(clerk)
        if timer := self._closing.pop(clerk, None):
            timer.cancel()
        await asyncio.to_thread(clerk.end)
