"""Drive a flow in a thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, Protocol

from ..core.commands import (
    Acquire,
    Closed,
    Command,
    Done,
    Failed,
    Now,
    Opened,
    Owner,
    Refresh,
    Relay,
    Send,
    Settle,
    Sleep,
    Steps,
    StreamEnd,
    throw,
)
from ..core.model import Lease, Unavailable
from ..telemetry.base import Watch, untold
from .guard import fault
from .pool import Pool, unbooked

__all__ = ["Performer", "Stream", "run", "run_stream"]


class Stream(Protocol):
    """A stream that the SDK opened, whose first chunk is here."""

    def __iter__(self) -> Iterator[Any]:
        """Give the chunks, the first included."""

    def end(self, error: Exception | None) -> StreamEnd:
        """Tell what became of it."""

    def close(self) -> None:
        """Close the SDK's own generator."""


class Performer:
    """Do what a flow asks for, blocking the thread."""

    def __init__(
        self,
        pool: Pool,
        send: Callable[[Lease], Done | Opened | Failed],
        watch: Watch | None = None,
    ) -> None:
        self._pool = pool
        self._send_request = send
        self.watch = watch
        self._untold = untold(watch)

    def __call__(self, command: Command) -> Any:
        """Perform *command*, watched; give its reply."""
        watch = self.watch
        if watch is None or type(command) in self._untold:
            return _DO[type(command)](self, command)
        watch.before(command)
        try:
            reply = _DO[type(command)](self, command)
        except BaseException as error:
            watch.after(command, error)
            raise
        watch.after(command, reply)
        return reply

    def finish(self, error: BaseException | None) -> None:
        """Tell the watch that the call is over."""
        if self.watch is not None:
            self.watch.finish(error)

    def _now(self, _command: Now) -> tuple[float, float]:
        return self._pool.clock.time(), self._pool.draw()

    def _acquire(self, command: Acquire) -> Lease | Unavailable:
        try:
            return self._pool.state.acquire(command.info, command.candidates, spread=command.spread)
        except Exception:
            fault("state")
            return unbooked(command, self._pool.clock.time())

    def _send(self, command: Send) -> Done | Opened | Failed:
        watch = self.watch
        if watch is None or not watch.thorough:
            return self._send_request(command.lease)
        token = watch.attach()
        try:
            return self._send_request(command.lease)
        finally:
            watch.detach(token)

    def _settle(self, command: Settle) -> float | None:
        self._pool.witness(command)
        try:
            if command.lease.books is None:
                return None
            return self._pool.state.settle(command.lease, command.outcome, command.names)
        except Exception:
            fault("state")
            return None

    def _owner(self, command: Owner) -> tuple[str, str] | None:
        try:
            return self._pool.state.owner(command.names)
        except Exception:
            fault("state")
            return None

    def _refresh(self, command: Refresh) -> bool:
        return self._pool.refresh(command.key_id)

    def _sleep(self, command: Sleep) -> None:
        self._pool.clock.sleep(command.seconds)


_DO: dict[type, Callable[[Performer, Any], Any]] = {
    Now: Performer._now,
    Acquire: Performer._acquire,
    Send: Performer._send,
    Settle: Performer._settle,
    Owner: Performer._owner,
    Refresh: Performer._refresh,
    Sleep: Performer._sleep,
}


def run(flow: Steps, perform: Performer) -> Any:
    """Carry a unary call through; give the SDK's response."""
    try:
        command = next(flow)
        while True:
            try:
                reply = perform(command)
            except BaseException as error:
                command = throw(flow, error)
            else:
                command = flow.send(reply)
    except StopIteration as stop:
        perform.finish(None)
        return stop.value
    except Closed:
        closed = GeneratorExit()
        perform.finish(closed)
        raise closed from None
    except BaseException as error:
        perform.finish(error)
        raise


def run_stream(flow: Steps, perform: Performer) -> Generator[Any, None, None]:
    """Carry a streamed call through; yield the SDK's chunks as they come."""
    try:
        command = next(flow)
        while True:
            try:
                if isinstance(command, Relay):
                    reply = yield from _relay(command.stream, perform.watch)
                else:
                    reply = perform(command)
            except BaseException as error:
                command = throw(flow, error)
            else:
                command = flow.send(reply)
    except StopIteration:
        perform.finish(None)
    except Closed:
        closed = GeneratorExit()
        perform.finish(closed)
        raise closed from None
    except BaseException as error:
        perform.finish(error)
        raise


def _relay(stream: Stream, watch: Watch | None) -> Generator[Any, None, StreamEnd]:
    """Yield the chunks; the attempt is current only while the SDK works on the next one."""
    chunks = iter(stream)
    try:
        while True:
            chunk, failed = _next(chunks, watch)
            if chunk is None:
                break
            yield chunk
        end = stream.end(failed)
    except BaseException:
        with suppress(Exception):  # its own complaint must not hide the reason
            stream.close()
        raise
    stream.close()
    return end


def _next(chunks: Iterator[Any], watch: Watch | None) -> tuple[Any, Exception | None]:
    """Wait for a chunk; `(None, …)` at the end."""
    token = watch.attach() if watch is not None else None
    try:
        return next(chunks, None), None
    except Exception as error:
        return None, error
    finally:
        if watch is not None:
            watch.detach(token)
