"""A relay on loopback in front of a server: it resets, delays, or swallows what it relays."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

from support.servers import free_port, wait_for

RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: a closed connection is reset."""


class Relay:
    """Relays connections to a server on loopback, from a thread of its own."""

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self.delay_s = 0.0
        """How long each reply takes."""
        self.loses: Callable[[], bool] = lambda: False
        """Asked at each reply: reset its connection instead? The server has run the request."""
        self.lost = 0
        """Replies that were not passed on."""
        self._to_port = to_port
        self._open = asyncio.Event()
        self._open.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._over = asyncio.Event()
        """Set from within the loop, as `_open` is."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread.start()
        wait_for(self._listens)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._open.clear)

    def open(self) -> None:
        """Relay again; data that was sent over an open connection arrives late."""
        self._loop.call_soon_threadsafe(self._open.set)

    def lose_next(self, replies: int = 1) -> None:
        ends = self.lost + replies
        self.loses = lambda: self.lost < ends

    def lose(self, share: float, random: Random) -> None:
        self.loses = lambda: random.random() < share

    def reset_all(self) -> None:
        self._loop.call_soon_threadsafe(lambda: [_reset(one) for one in list(self._writers)])

    def remove(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        self._loop.close()

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    async def _run(self) -> None:
        relay = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
        await self._over.wait()
        relay.close()
        self._open.set()
        for writer in list(self._writers):
            _reset(writer)
        mine = asyncio.all_tasks() - {asyncio.current_task()}
        if mine:
            await asyncio.wait(mine, timeout=5)

    async def _relay(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self._writers.add(back)
        try:
            await self._open.wait()
            server, forth = await asyncio.open_connection("127.0.0.1", self._to_port)
            await asyncio.gather(self._pass(client, forth), self._pass_replies(server, back))
        except OSError:
            _reset(back)
        finally:
            self._writers.discard(back)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while chunk := await source.read(65_536):
                await self._open.wait()
                target.write(chunk)
        except OSError:
            pass
        finally:
            target.close()

    async def _pass_replies(self, source: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            while chunk := await source.read(65_536):
                await self._open.wait()
                if self.loses():
                    self.lost += 1
                    _reset(back)
                    return
                if self.delay_s:  # a later chunk waits no longer than the first one
                    self._loop.call_later(self.delay_s, _write, back, chunk)
                else:
                    back.write(chunk)
        except OSError:
            pass
        finally:
            self._loop.call_later(self.delay_s, back.close)


def _write(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    if not writer.is_closing():
        writer.write(chunk)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: Any = writer.get_extra_info("socket")
    with suppress(OSError):  # it is closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


@contextmanager
def relay_to(port: int) -> Iterator[Relay]:
    relay = Relay(port)
    try:
        yield relay
    finally:
        relay.remove()
