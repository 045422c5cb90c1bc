"""Fail and restore real servers; `tests/support/servers.py` runs them."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from support.servers import BINARIES, Server, free_port, wait_for, watched_pair

__all__ = ["FAULTS", "Fault"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A server for the state, and how it fails and recovers."""

    url: str
    begin: Callable[[], object]
    end: Callable[[], object]
    """Returns when the server, or its successor, is available again."""


@contextmanager
def killed() -> Iterator[Fault]:
    """SIGKILL; started again it is empty."""
    with _server() as server:
        yield Fault(server.strict_url, server.stop, server.start)


@contextmanager
def stopped() -> Iterator[Fault]:
    """SIGSTOP and SIGCONT: connections stay, nothing is answered, sent commands run later."""
    with _server() as server:
        yield Fault(
            server.strict_url,
            lambda: server.signal(signal.SIGSTOP),
            lambda: server.signal(signal.SIGCONT),
        )


@contextmanager
def black_holed() -> Iterator[Fault]:
    """The network swallows everything, of old and of new connections; the server is healthy."""
    with _server() as server:
        relay = _Relay(server.port)
        try:
            yield Fault(f"redis://127.0.0.1:{relay.port}/0", relay.close, relay.open)
        finally:
            relay.remove()


@contextmanager
def failed_over() -> Iterator[Fault]:
    """The master is killed for good; a sentinel promotes its replica."""
    with watched_pair() as (master, replica, sentinel):
        yield Fault(
            f"redis+sentinel://127.0.0.1:{sentinel.port}/main",
            master.stop,
            lambda: wait_for(lambda: replica.execute("ROLE")[0] == b"master", 30),
        )


FAULTS = {
    "killed, restarted empty": killed,
    "SIGSTOP": stopped,
    "black-holed": black_holed,
    "failed over by Sentinel": failed_over,
}


@contextmanager
def _server() -> Iterator[Server]:
    server = Server(BINARIES["valkey"])
    try:
        yield server
    finally:
        server.remove()


class _Relay:
    """A relay on loopback; closed, it accepts connections and bytes, and forwards none of them."""

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self._to_port = to_port
        self._open = asyncio.Event()
        self._open.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._over = asyncio.Event()
        self._thread.start()
        wait_for(self._listens)

    def close(self) -> None:
        """Swallow everything from now on."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def open(self) -> None:
        """Relay again; data that was sent over an open connection arrives late."""
        self._loop.call_soon_threadsafe(self._open.set)

    def remove(self) -> None:
        """End the relay."""
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
        mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)

    async def _relay(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        await self._open.wait()
        server, forth = await asyncio.open_connection("127.0.0.1", self._to_port)
        await asyncio.gather(self._pass(client, forth), self._pass(server, back))

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while chunk := await source.read(65_536):
                await self._open.wait()
                target.write(chunk)
        except OSError:
            pass
        finally:
            target.close()
