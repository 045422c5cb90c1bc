"""The processes of `keyrot serve`: uvicorn, with a limit of time for what waits, and its end.

With several workers the command's own process only starts and ends them. All accept connections of
one socket.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from ..core.wording import plural
from . import Door

HEAD_S = 15.0
"""How long a connection may stay without a request that is being answered, seconds."""
TAKE_S = 300.0
"""How long a client may take nothing of a reply, seconds."""
STOP_S = 30
"""How long requests in flight may take when it ends, seconds."""
_CUT_S = 1.0
"""How long those that are cut may take to see it."""
_LOOK_S = 0.2
"""Longest time until a signal or the end of a worker is seen."""
_RESTART_S = 1.0
"""Shortest time between the start of a worker and of the one that replaces it."""

_log = logging.getLogger("keyrot_middleware")


class Protocol(H11Protocol):
    """A connection, which is closed where it waits too long for a request, or for its client.

    uvicorn limits only the time between two requests, until a byte of the second one comes. Not the
    time until the end of a head, not that of a body which nothing reads, since the reply is
    complete, and not how long a client takes nothing of a reply.
    """

    _timer: asyncio.TimerHandle | None = None
    _full: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        """Stop to wait if a head is complete."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Wait again, unless the next request is here already."""
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        """Wait until the client has taken what there is."""
        super().pause_writing()
        self._full = self.loop.call_later(TAKE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop to wait for that."""
        super().resume_writing()
        if self._full is not None:
            self._full.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave no timer behind."""
        super().connection_lost(exc)
        self._stop()
        if self._full is not None:
            self._full.cancel()

    def _look(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self._close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self.transport.close()  # when the client has taken the last bytes of the reply
        self._timer = self.loop.call_later(TAKE_S, self.transport.abort)


class DoorServer(uvicorn.Server):
    """Ends with its last request; what is left after `STOP_S`, or on a second signal, is cut."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and Ctrl-C."""
        # To a worker systemd or a terminal sends one, and the first process too: that is no second.
        is_worker = multiprocessing.parent_process() is not None
        self.force_exit = self.should_exit and not is_worker
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Return whether it ends: also where the process that started it has."""
        parent = multiprocessing.parent_process()
        is_alone = parent is not None and counter % 10 == 0 and not parent.is_alive()
        return await super().on_tick(counter) or is_alone

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new requests, and wait for those in flight."""
        if count := len(self.server_state.tasks):
            text = (
                "%s in flight: it ends with the last one, after %s seconds at most; "
                "a second signal ends it at once"
            )
            _log.warning(text, plural(count, "request"), STOP_S)
        ending = asyncio.create_task(super().shutdown(sockets))
        while not (await asyncio.wait([ending], timeout=_LOOK_S))[0] and not self.force_exit:
            pass
        ending.cancel()
        if tasks := list(self.server_state.tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CUT_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await self.config.app.aclose()  # type: ignore[union-attr]  # it is a Door


def run(app: Door, listener: socket.socket, **options: Any) -> None:
    """Serve in this process until a signal ends it.

    Args:
        app: What answers; it is closed at the end.
        listener: Listens already.
        options: More of uvicorn's.

    Raises:
        KeyboardInterrupt: It has ended by Ctrl-C, which is sent again.
    """
    config = uvicorn.Config(app, http=Protocol, timeout_graceful_shutdown=STOP_S, **options)
    server = DoorServer(config)
    # Also before it serves and after: uvicorn sends a signal again when it has ended.
    signal.signal(signal.SIGTERM, server.handle_exit)
    server.run(sockets=[listener])


def run_workers(count: int, work: Callable[..., None], *args: Any, listener: socket.socket) -> int:
    """Run *work* in several processes until a signal ends them; replace one that is killed.

    uvicorn's own supervisor is no documented interface, and its constructor has changed twice. Its
    workers are stopped by another class than `DoorServer`, and are killed where they take five
    seconds to start.

    Args:
        count: The processes.
        work: Runs `run()`; a function of a module.
        args: Its arguments, which no other program of this machine can see.
        listener: Its last argument. It is closed here at the end: what comes then is refused at
            once, as by one process, and does not wait for the last request of the workers.

    Returns:
        0; or the exit code of a worker that has ended by itself, and the others with it.
    """
    signals: list[int] = []
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, lambda number, _: signals.append(number))
    context = multiprocessing.get_context("spawn")
    context.allow_connection_pickling()  # of the socket

    def start() -> BaseProcess:
        process = context.Process(target=work, args=(*args, listener))
        # A worker inherits it: a Ctrl-C in the terminal reaches it too, before it can handle it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.start()
        signal.signal(signal.SIGINT, handler)
        return process

    workers = [start() for _ in range(count)]
    failed = _watch(workers, start, signals)
    listener.close()
    for one in workers:
        one.terminate()
    while alive := [one for one in workers if one.is_alive()]:
        if len(signals) > 1:
            for one in alive:
                one.kill()
        wait([one.sentinel for one in alive], timeout=_LOOK_S)
    return failed


def _watch(
    workers: list[BaseProcess], start: Callable[[], BaseProcess], signals: Sequence[int]
) -> int:
    """Replace workers that are killed until a signal comes, or one ends by itself.

    Returns:
        The exit code of that one, or 0.
    """
    started = time.monotonic()
    while not signals:
        wait([one.sentinel for one in workers if one.is_alive()], timeout=_LOOK_S)
        ended = next((one for one in workers if not one.is_alive()), None)
        if ended is None or signals:
            continue
        if code := max(ended.exitcode or 0, 0):
            return code
        if time.monotonic() > started + _RESTART_S:
            _log.warning("worker %s has ended; another one starts", ended.pid)
            workers[workers.index(ended)], started = start(), time.monotonic()
    return 0
