"""Drive a flow in an asyncio task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from types import CoroutineType
from typing import Any, ClassVar, Protocol

from ..core.commands import (
    Acquire,
    Command,
    Done,
    Failed,
    Flow,
    GetOwner,
    Refresh,
    RefreshAll,
    RelayStream,
    ReportServing,
    Send,
    Settle,
    Sleep,
    StreamEnd,
    StreamOpened,
)
from ..core.model import Lease, LeaseOutcome, Outcome, Unavailable
from ..core.waiting import Ticket
from ..guard import handle_internal_error
from ..telemetry.observer import CallObserver
from ..telemetry.otel_api import current_trace_id
from .sync import SyncDriver

__all__ = [
    "AsyncDriver",
    "AsyncRelay",
    "AsyncStream",
    "run",
    "run_stream",
]

# Run the commands of a flow in an asyncio task ------------------------------------------------


class AsyncDriver(SyncDriver):
    """Runs the commands of one call and blocks only its task: handlers may return coroutines."""

    __slots__ = ("_loop",)

    def __init__(self, *args: Any, **more: Any) -> None:
        """Serve one call of the running loop; the arguments are those of `SyncDriver`."""
        super().__init__(*args, **more)
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:  # under a loop that is not asyncio's
            self._loop = None

    def is_alive(self) -> bool:
        """Return the same; a call in a closed loop never continues."""
        return super().is_alive() and not (self._loop is not None and self._loop.is_closed())

    def __call__(self, command: Command) -> Any:
        """Run *command* and notify the observer; return its reply, or a coroutine for it."""
        if type(command) is Settle:
            command = self._settling(command)
        if self.observer is None:
            return self.handlers[type(command)](self, command)
        return self._observed(command, self.observer)

    async def _observed(self, command: Command, observer: CallObserver) -> Any:
        observer.before(command)
        try:
            reply = self.handlers[type(command)](self, command)
            if type(reply) is CoroutineType:
                reply = await reply
        except BaseException as error:
            observer.after(command, error)
            raise
        observer.after(command, reply)
        return reply

    def _acquire(self, command: Acquire) -> Any:
        if self._pool.state.is_local:
            return super()._acquire(command)
        return self._acquire_async(command)

    async def _acquire_async(self, command: Acquire) -> Lease | Unavailable:
        reply = await self._call_state_async(
            self._pool.state.aacquire,
            self._counted(command),
            command.candidates,
            spread=command.spread,
            holder=self,
        )
        return self._acquired(command, reply)

    async def _call_state_async(
        self, method: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
    ) -> Any:
        """Await a method of the state; see `_call_state`."""
        try:
            return await method(*args, **kwargs)
        except Exception:
            handle_internal_error("state")
            return None

    def _send(self, command: Send) -> Awaitable[Done | StreamOpened | Failed]:
        sent: Awaitable[Done | StreamOpened | Failed] = (
            self._send_now(command)
            if self.observer is None
            else self._send_attached(command, self.observer)
        )
        return sent

    async def _send_attached(
        self, command: Send, observer: CallObserver
    ) -> Done | StreamOpened | Failed:
        token = observer.attach()
        self._record.trace_id = current_trace_id()
        try:
            reply: Done | StreamOpened | Failed = await self._send_now(command)
            return reply
        finally:
            observer.detach(token)

    def _serving(self, command: ReportServing) -> Any:
        state, lease = self._pool.state, command.lease
        if state.is_local or lease.reservation is None:
            return super()._serving(command)
        return self._call_state_async(state.asettle, lease, Outcome(LeaseOutcome.SERVING))

    def _settle(self, command: Settle) -> Any:
        if self._pool.state.is_local or command.lease.reservation is None:
            return super()._settle(command)
        return self._settle_async(command)

    async def _settle_async(self, command: Settle) -> float | None:
        self._lease = None  # from here on it is settled to the end, also when cancelled
        until = await self._call_state_async(
            _shielded, self._pool.state.asettle, command.lease, command.outcome, command.names
        )
        return self._settled(command, until)

    def _owner(self, command: GetOwner) -> Any:
        state = self._pool.state
        if state.is_local:
            return super()._owner(command)
        return self._call_state_async(state.aget_owner, command.names)

    async def _refresh(self, command: Refresh) -> bool:  # type: ignore[override]  # awaited
        return await self._pool.threads.run(partial(super()._refresh, command))

    async def _refresh_all(self, _command: RefreshAll) -> bool:  # type: ignore[override]  # awaited
        return await self._pool.threads.run(self._pool.refresh_all)

    async def _sleep(self, command: Sleep) -> tuple[float, float]:  # type: ignore[override]  # awaited
        if command.starts_wait:
            self._begin_wait(command)
        began, ticket = self._monotonic(), command.ticket
        if ticket is None or self._by_clock(command):
            await self._pool.clock.asleep(command.seconds)
        else:
            await _until_woken(ticket, command.seconds)
        return self._slept(command, began)

    handlers: ClassVar[Mapping[type, Callable[[Any, Any], Any]]] = {
        **SyncDriver.handlers,
        Acquire: _acquire,
        Send: _send,
        ReportServing: _serving,
        Settle: _settle,
        GetOwner: _owner,
        Refresh: _refresh,
        RefreshAll: _refresh_all,
        Sleep: _sleep,
    }


async def _until_woken(ticket: Ticket, seconds: float) -> None:
    """Wait until the ticket is woken, from any thread, or *seconds* have passed."""
    loop = asyncio.get_running_loop()
    woken = loop.create_future()

    def finish() -> None:
        if not woken.done():
            woken.set_result(None)

    def wake() -> bool:
        try:
            loop.call_soon_threadsafe(finish)
        except RuntimeError:  # the loop is closed, and the call with it
            return False
        return True

    ticket.wake = wake
    if ticket.woken:  # before `wake` was set
        return
    timer = loop.call_later(seconds, finish)
    try:
        await woken
    finally:
        timer.cancel()
        ticket.wake = None


async def _shielded(method: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    """Await *method* to its end even when the task is cancelled meanwhile, then be cancelled."""
    task = asyncio.ensure_future(method(*args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class AsyncStream(Protocol):
    """An open stream, whose first chunk is here."""

    def __aiter__(self) -> AsyncIterator[Any]:
        """Return the chunks, the first included."""

    def end(self, error: Exception | None) -> StreamEnd:
        """Return its usage, the names in it and why it broke."""

    async def aclose(self) -> None:
        """Release its connection."""


async def run(flow: Flow, driver: AsyncDriver) -> Any:
    """Run a unary call to its end; return its response."""
    try:
        result = await _drive(flow, next(flow), driver)
    except GeneratorExit:
        driver.abandon()
        raise
    except BaseException as error:
        driver.finish(error)
        raise
    finally:
        driver.driven = False
    driver.finish(None)
    return result


async def run_stream(flow: Flow, driver: AsyncDriver) -> Any:
    """Run a call up to the first chunk of its stream; return an `AsyncRelay` of the chunks.

    A call whose send returned a response ends with it, and that is returned.
    """
    try:
        reached = await _drive(flow, next(flow), driver, until=RelayStream)
    except GeneratorExit:
        driver.abandon()
        raise
    except BaseException as error:
        driver.finish(error)
        raise
    if isinstance(reached, RelayStream):
        return AsyncRelay(flow, driver, driver.relay(reached))
    driver.driven = False
    driver.finish(None)
    return reached


async def _drive(
    flow: Flow, command: Command, driver: AsyncDriver, until: type | None = None
) -> Any:
    """Run commands until the flow returns or yields one of type *until*."""
    try:
        while until is None or not isinstance(command, until):
            try:
                reply = driver(command)
                if type(reply) is CoroutineType:
                    reply = await reply
            except GeneratorExit:
                raise
            except BaseException as error:
                command = flow.throw(error)
            else:
                command = flow.send(reply)
    except StopIteration as stop:
        return stop.value
    return command


class AsyncRelay:
    """The chunks of an open stream. Its lease is settled once, however it ends.

    No async generator: one that is dropped is closed by its loop, later or never, while this is
    settled as soon as it has no reference.
    """

    def __init__(self, flow: Flow, driver: AsyncDriver, stream: AsyncStream) -> None:
        self._flow = flow
        self._driver = driver
        self._stream = stream
        self._chunks = aiter(stream)
        self._over = self._reading = False

    def __aiter__(self) -> AsyncRelay:
        """Return this stream."""
        return self

    async def __anext__(self) -> Any:
        """Return the next chunk.

        Raises:
            StopAsyncIteration: The stream ended.
            RuntimeError: Another task is reading it.
            BaseException: The error of the library that opened it.
        """
        if self._reading:
            raise RuntimeError("anext(): the stream is being read already")
        if self._over:
            raise StopAsyncIteration
        self._reading = True
        try:
            chunk, failed = await _next(self._chunks, self._driver.observer)
            if chunk is None:
                await self._end(failed)
        except GeneratorExit:
            self._over = True
            self._driver.abandon()
            raise
        except BaseException as error:
            await self._fail(error)
            raise
        finally:
            self._reading = False
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Close the stream; what it has used so far is booked within a second.

        Raises:
            RuntimeError: Another task is reading it.
        """
        if self._reading:
            raise RuntimeError("aclose(): the stream is being read")
        if not self._over:
            self.abandon()
            await _suppressing_errors(self._stream.aclose())

    def abandon(self) -> None:
        """Book what a stream has used whose connection is released already.

        A task that is reading it settles it.
        """
        if not (self._over or self._reading):
            self._over = True
            self._driver.abandon()

    async def _end(self, failed: Exception | None) -> None:
        """Settle a stream that ended or broke."""
        end = self._stream.end(failed)
        await self._stream.aclose()
        self._over = True
        await self._settle(self._flow.send, end)

    async def _fail(self, error: BaseException) -> None:
        """Settle a stream that is cancelled or thrown into, and raise *error* again."""
        if self._over:
            return
        self._over = True
        try:
            await _suppressing_errors(self._stream.aclose())
        except GeneratorExit:
            raise
        except BaseException:  # noqa: S110 - a second cancellation: the first is raised
            pass
        await self._settle(self._flow.throw, error)

    async def _settle(self, go_on: Callable[[Any], Command], value: Any) -> None:
        """Run the flow to its end."""
        try:
            await _drive(self._flow, go_on(value), self._driver)
        except GeneratorExit:
            raise
        except BaseException as error:
            self._driver.finish(error)
            raise
        self._driver.finish(None)

    def __del__(self) -> None:
        self._driver.abandon()


async def _next(
    chunks: AsyncIterator[Any], observer: CallObserver | None
) -> tuple[Any, Exception | None]:
    """Wait for a chunk, with the span of the attempt current. `(None, …)` at the end."""
    token = observer.attach() if observer is not None else None
    try:
        return await anext(chunks), None
    except StopAsyncIteration:
        return None, None
    except Exception as error:
        return None, error
    finally:
        if observer is not None:
            observer.detach(token)


async def _suppressing_errors(closing: Awaitable[None]) -> None:
    """Close an abandoned stream; an error of it must not hide the reason."""
    with suppress(Exception):
        await closing
