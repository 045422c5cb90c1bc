"""The transport: an asyncio server on loopback, in a thread and a loop of its own."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from keyrot_middleware.testing.http1 import HttpRequest, NotHttpError, RequestReader
from keyrot_middleware.testing.scripted import Ending

__all__ = ["Handler", "LoopbackServer", "Plan"]

_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes out for one request, and when.

    Attributes:
        writes: Bytes, each in one write; none at all for a fault.
        delay_s: Seconds before the first of them.
        gap_s: Seconds before each of the others.
        ending: What happens to the connection afterwards.
        done: Called once when the last byte went out or the peer went away.
    """

    writes: tuple[bytes, ...]
    done: Callable[[], None]
    delay_s: float = 0.0
    gap_s: float = 0.0
    ending: Ending = "end"


Handler = Callable[[HttpRequest], Plan]


class _Connection(asyncio.Protocol):
    """One client's connection: requests in order, one at a time."""

    _transport: asyncio.Transport

    def __init__(self, handler: Handler, everyone: set[_Connection]) -> None:
        self._handler = handler
        self._everyone = everyone
        self._reader = RequestReader()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the server's connections."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP server makes no other
        self._transport = transport
        self._everyone.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what is being sent: nobody reads it."""
        self._everyone.discard(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer whatever is whole."""
        self._reader.feed(data)
        self._serve()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    def _serve(self) -> None:
        try:
            while self._task is None and (request := self._reader.next()) is not None:
                self._answer(self._handler(request))
        except NotHttpError:
            self._transport.close()

    def _answer(self, plan: Plan) -> None:
        if plan.delay_s or plan.gap_s:
            self._task = asyncio.get_running_loop().create_task(self._play(plan))
            self._task.add_done_callback(partial(self._played, plan))
            return
        if plan.writes:
            self._transport.write(b"".join(plan.writes))
        self._end(plan)

    async def _play(self, plan: Plan) -> None:
        await asyncio.sleep(plan.delay_s)
        for index, data in enumerate(plan.writes):
            if index and plan.gap_s:
                await asyncio.sleep(plan.gap_s)
            self._transport.write(data)

    def _played(self, plan: Plan, task: asyncio.Task[None]) -> None:
        # Here and not in _play: a task that is cancelled before its first step runs no `finally`.
        self._task = None
        self._end(plan)
        if not task.cancelled() and not self._transport.is_closing():
            self._serve()

    def _end(self, plan: Plan) -> None:
        plan.done()
        if plan.ending == "reset":
            self._reset()
        elif plan.ending == "close":
            self._transport.close()

    def _reset(self) -> None:
        # A linger of zero makes close() send RST instead of FIN.
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


class LoopbackServer:
    """Serves a handler on a free port of 127.0.0.1; the handler runs in the server's thread."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._connections: set[_Connection] = set()
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None
        self.port = 0

    def start(self) -> None:
        """Open a port and serve it; it serves when this returns.

        Raises:
            RuntimeError: If it runs already.
        """
        if self._thread is not None:
            raise RuntimeError("the server runs already")
        listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self.port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener, ready)),
            name="fake-gemini",
            daemon=True,
        )
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """Close every connection and the port, and end the thread; a second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop()
            thread.join()

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        self._stop = partial(loop.call_soon_threadsafe, stopping.set)
        server = await loop.create_server(self._connection, sock=listener)
        ready.set()
        await stopping.wait()
        server.close()
        for connection in list(self._connections):
            connection.abort()
        # One turn of the loop, in which connection_lost cancels whatever is being sent; what is
        # left of it is ended by asyncio.run().
        await asyncio.sleep(0)

    def _connection(self) -> _Connection:
        return _Connection(self._handler, self._connections)
