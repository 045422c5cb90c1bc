"""Drive a flow in an asyncio task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
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

__all__ = ["AsyncPerformer", "AsyncRelay", "AsyncStream", "run", "run_stream"]


class AsyncStream(Protocol):
    """A stream that the SDK opened, whose first chunk is here."""

    def __aiter__(self) -> AsyncIterator[Any]:
        """Give the chunks, the first included."""

    def end(self, error: Exception | None) -> StreamEnd:
        """Tell what became of it."""

    async def aclose(self) -> None:
        """Close the SDK's own generator."""


class AsyncPerformer:
    """Do what a flow asks for, blocking only the task."""

    def __init__(
        self,
        pool: Pool,
        send: Callable[[Lease], Awaitable[Done | Opened | Failed]],
        watch: Watch | None = None,
    ) -> None:
        self._pool = pool
        self._send_request = send
        self.watch = watch
        self._untold = untold(watch)

    async def __call__(self, command: Command) -> Any:
        """Perform *command*, watched; give its reply."""
        watch = self.watch
        if watch is None or type(command) in self._untold:
            return await _DO[type(command)](self, command)
        watch.before(command)
        try:
            reply = await _DO[type(command)](self, command)
        except BaseException as error:
            watch.after(command, error)
            raise
        watch.after(command, reply)
        return reply

    def finish(self, error: BaseException | None) -> None:
        """Tell the watch that the call is over."""
        if self.watch is not None:
            self.watch.finish(error)

    def settle_now(self, command: Command) -> float | None:
        """Settle without waiting: for a stream that is collected outside of any task."""
        if isinstance(command, Settle) and command.lease.books is not None:
            try:
                return self._pool.state.settle(command.lease, command.outcome, command.names)
            except Exception:
                fault("state")
        return None

    async def _now(self, _command: Now) -> tuple[float, float]:
        return self._pool.clock.time(), self._pool.draw()

    async def _acquire(self, command: Acquire) -> Lease | Unavailable:
        state = self._pool.state
        try:
            return await state.aacquire(command.info, command.candidates, spread=command.spread)
        except Exception:
            fault("state")
            return unbooked(command, self._pool.clock.time())

    async def _send(self, command: Send) -> Done | Opened | Failed:
        watch = self.watch
        if watch is None or not watch.thorough:
            return await self._send_request(command.lease)
        token = watch.attach()
        try:
            return await self._send_request(command.lease)
        finally:
            watch.detach(token)

    async def _settle(self, command: Settle) -> float | None:
        state, lease = self._pool.state, command.lease
        self._pool.witness(command)
        try:
            if lease.books is None:
                return None
            if state.instant:
                return state.settle(lease, command.outcome, command.names)
            return await _shielded(state.asettle(lease, command.outcome, command.names))
        except Exception:
            fault("state")
            return None

    async def _owner(self, command: Owner) -> tuple[str, str] | None:
        try:
            return await self._pool.state.aowner(command.names)
        except Exception:
            fault("state")
            return None

    async def _refresh(self, command: Refresh) -> bool:
        return await asyncio.to_thread(self._pool.refresh, command.key_id)

    async def _sleep(self, command: Sleep) -> None:
        await self._pool.clock.asleep(command.seconds)


_DO: dict[type, Callable[[AsyncPerformer, Any], Awaitable[Any]]] = {
    Now: AsyncPerformer._now,
    Acquire: AsyncPerformer._acquire,
    Send: AsyncPerformer._send,
    Settle: AsyncPerformer._settle,
    Owner: AsyncPerformer._owner,
    Refresh: AsyncPerformer._refresh,
    Sleep: AsyncPerformer._sleep,
}


async def run(flow: Steps, perform: AsyncPerformer) -> Any:
    """Carry a unary call through; give the SDK's response."""
    try:
        result = await _drive(flow, next(flow), perform)
    except BaseException as error:
        perform.finish(error)
        raise
    perform.finish(None)
    return result


async def run_stream(flow: Steps, perform: AsyncPerformer) -> AsyncRelay:
    """Carry a streamed call to its first chunk; give the chunks as they come."""
    try:
        relay = await _drive(flow, next(flow), perform, until=Relay)
    except BaseException as error:
        perform.finish(error)
        raise
    return AsyncRelay(flow, perform, relay)


async def _drive(
    flow: Steps, command: Command, perform: AsyncPerformer, until: type | None = None
) -> Any:
    """Perform commands until the flow returns, or asks for one of type *until*."""
    try:
        while until is None or not isinstance(command, until):
            try:
                reply = await perform(command)
            except BaseException as error:
                command = throw(flow, error)
            else:
                command = flow.send(reply)
    except StopIteration as stop:
        return stop.value
    except Closed:
        raise GeneratorExit from None
    return command


class AsyncRelay:
    """The chunks of an open stream. Its lease is settled once, however it ends.

    An async generator that was never started has no `finally` to run, so the case of a stream
    that is dropped before its first chunk was asked for is settled by `__del__`.
    """

    def __init__(self, flow: Steps, perform: AsyncPerformer, relay: Relay) -> None:
        self._flow = flow
        self._perform = perform
        self._started = False
        self._stream: AsyncStream = relay.stream
        self._chunks = _relay(flow, perform, relay.stream)

    def __aiter__(self) -> AsyncRelay:
        """Give itself."""
        return self

    async def __anext__(self) -> Any:
        """Give the next chunk.

        Raises:
            StopAsyncIteration: The stream ended.
            BaseException: The SDK's own error.
        """
        self._started = True
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """Close the stream; what it has used so far is booked."""
        if not self._started:
            self._started = True
            self._abandon()
            await _quietly(self._stream.aclose())
        await self._chunks.aclose()

    def __del__(self) -> None:
        if not self._started:
            self._abandon()

    def _abandon(self) -> None:
        """Settle what never started, without a loop to wait in."""
        perform, closed = self._perform, GeneratorExit()
        try:
            command = throw(self._flow, closed)
            while True:
                command = self._flow.send(perform.settle_now(command))
        except (Closed, StopIteration):
            perform.finish(closed)


async def _relay(
    flow: Steps, perform: AsyncPerformer, stream: AsyncStream
) -> AsyncGenerator[Any, None]:
    """Yield the chunks. No method: a cycle with its object would be collected in any order."""
    try:
        try:
            chunks = aiter(stream)
            failed: Exception | None = None
            while True:
                chunk, failed = await _next(chunks, perform.watch)
                if chunk is None:
                    break
                yield chunk
            end = stream.end(failed)
            await stream.aclose()
        except BaseException as error:  # cancelled, closed, or thrown into
            try:
                await _quietly(stream.aclose())
            finally:  # even when cancelled once more
                with suppress(GeneratorExit):
                    await _drive(flow, throw(flow, error), perform)
            raise
        await _drive(flow, flow.send(end), perform)
    except BaseException as error:
        perform.finish(error)
        raise
    perform.finish(None)


async def _next(chunks: AsyncIterator[Any], watch: Watch | None) -> tuple[Any, Exception | None]:
    """Wait for a chunk; the attempt is current only meanwhile. `(None, …)` at the end."""
    token = watch.attach() if watch is not None else None
    try:
        return await anext(chunks), None
    except StopAsyncIteration:
        return None, None
    except Exception as error:
        return None, error
    finally:
        if watch is not None:
            watch.detach(token)


async def _quietly(closing: Awaitable[None]) -> None:
    """Close what is being abandoned; its own complaint must not hide the reason."""
    with suppress(Exception):
        await closing


async def _shielded(settling: Coroutine[Any, Any, float | None]) -> float | None:
    """Finish *settling* even when the task is cancelled meanwhile, then be cancelled."""
    task = asyncio.ensure_future(settling)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
