"""Drive a flow in an asyncio task."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
)
from contextlib import suppress
from types import CoroutineType
from typing import Any, ClassVar, Protocol

from ..core.commands import (
    Acquire,
    Closed,
    Command,
    Done,
    Failed,
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
from ..telemetry.base import Watch
from .guard import fault
from .performer import Performer
from .pool import unbooked

__all__ = ["AsyncPerformer", "AsyncRelay", "AsyncStream", "run", "run_stream"]


class AsyncStream(Protocol):
    """A stream that the SDK opened, whose first chunk is here."""

    def __aiter__(self) -> AsyncIterator[Any]:
        """Give the chunks, the first included."""

    def end(self, error: Exception | None) -> StreamEnd:
        """Tell what became of it."""

    async def aclose(self) -> None:
        """Close the SDK's own generator."""


class AsyncPerformer(Performer):
    """The same, blocking only the task: what has to wait is given as a coroutine."""

    __slots__ = ()

    def __call__(self, command: Command) -> Any:
        """Perform *command*, watched; give its reply, or a coroutine that does."""
        if self.watch is None:
            return self.does[type(command)](self, command)
        return self._watched(command, self.watch)

    async def _watched(self, command: Command, watch: Watch) -> Any:
        watch.before(command)
        try:
            reply = self.does[type(command)](self, command)
            if type(reply) is CoroutineType:
                reply = await reply
        except BaseException as error:
            watch.after(command, error)
            raise
        watch.after(command, reply)
        return reply

    def settle_now(self, command: Command) -> float | None:
        """Settle without waiting: for a stream that is collected outside of any task."""
        return self._book(command) if isinstance(command, Settle) else None

    def _acquire(self, command: Acquire) -> Any:
        instant = self._pool.state.instant
        return super()._acquire(command) if instant else self._acquire_far(command)

    async def _acquire_far(self, command: Acquire) -> Lease | Unavailable:
        state = self._pool.state
        try:
            return await state.aacquire(command.info, command.candidates, spread=command.spread)
        except Exception:
            fault("state")
            return unbooked(command, self._pool.clock.time())

    def _send(self, command: Send) -> Awaitable[Done | Opened | Failed]:
        sent: Awaitable[Done | Opened | Failed] = (
            self._send_request(command.lease)
            if self.watch is None
            else self._send_attached(command, self.watch)
        )
        return sent

    async def _send_attached(self, command: Send, watch: Watch) -> Done | Opened | Failed:
        token = watch.attach()
        try:
            reply: Done | Opened | Failed = await self._send_request(command.lease)
            return reply
        finally:
            watch.detach(token)

    def _settle(self, command: Settle) -> Any:
        instant = self._pool.state.instant
        return super()._settle(command) if instant else self._settle_far(command)

    async def _settle_far(self, command: Settle) -> float | None:
        state, lease = self._pool.state, command.lease
        until: float | None = None
        try:
            if lease.books is not None:
                until = await _shielded(state.asettle(lease, command.outcome, command.names))
        except Exception:
            fault("state")
        if command.outcome.verdict is not None:
            self._pool.witness(command)
            self.changed(command, until)
        return until

    def _owner(self, command: Owner) -> Any:
        return super()._owner(command) if self._pool.state.instant else self._owner_far(command)

    async def _owner_far(self, command: Owner) -> tuple[str, str] | None:
        try:
            return await self._pool.state.aowner(command.names)
        except Exception:
            fault("state")
            return None

    async def _refresh(self, command: Refresh) -> bool:  # type: ignore[override]  # awaited
        replaced = await asyncio.to_thread(self._pool.refresh, command.key_id)
        self.changed(command, replaced)
        return replaced

    async def _sleep(self, command: Sleep) -> None:  # type: ignore[override]  # awaited
        self.changed(command)
        await self._pool.clock.asleep(command.seconds)

    does: ClassVar[Mapping[type, Callable[[Any, Any], Any]]] = {
        **Performer.does,
        Acquire: _acquire,
        Send: _send,
        Settle: _settle,
        Owner: _owner,
        Refresh: _refresh,
        Sleep: _sleep,
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
                reply = perform(command)
                if type(reply) is CoroutineType:
                    reply = await reply
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
