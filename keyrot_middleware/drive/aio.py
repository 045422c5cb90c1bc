"""Drive a flow in an asyncio task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import CoroutineType
from typing import Any, Protocol

from ..core.commands import Closed, Command, Relay, Steps, StreamEnd, throw
from ..telemetry.base import Watch
from .aperformer import AsyncPerformer
from .holding import Left, collected, held, leave

__all__ = ["AsyncPerformer", "AsyncRelay", "AsyncStream", "run", "run_stream"]


class AsyncStream(Protocol):
    """A stream that the SDK opened, whose first chunk is here."""

    def __aiter__(self) -> AsyncIterator[Any]:
        """Give the chunks, the first included."""

    def end(self, error: Exception | None) -> StreamEnd:
        """Tell what became of it."""

    async def aclose(self) -> None:
        """Close the SDK's own generator."""


async def run(flow: Steps, perform: AsyncPerformer) -> Any:
    """Carry a unary call through; give the SDK's response."""
    held.add(flow)
    try:
        result = await _drive(flow, next(flow), perform)
    except Left:
        raise
    except BaseException as error:
        perform.finish(error)
        raise
    finally:
        held.discard(flow)
    perform.finish(None)
    return result


async def run_stream(flow: Steps, perform: AsyncPerformer) -> AsyncRelay:
    """Carry a streamed call to its first chunk; give the chunks as they come."""
    held.add(flow)
    try:
        relay = await _drive(flow, next(flow), perform, until=Relay)
    except Left:
        raise
    except BaseException as error:
        held.discard(flow)
        perform.finish(error)
        raise
    return AsyncRelay(flow, perform, relay)


async def _drive(
    flow: Steps, command: Command, perform: AsyncPerformer, until: type | None = None
) -> Any:
    """Perform commands until the flow returns, or asks for one of type *until*."""
    act: Callable[[Command], Any] = perform
    try:
        while until is None or not isinstance(command, until):
            try:
                reply = act(command)
                if type(reply) is CoroutineType:
                    reply = await reply
            except BaseException as error:
                if collected(error):
                    leave(flow, perform)
                    raise Left from None
                if isinstance(error, GeneratorExit):
                    act = perform.settle_now  # closed, it cannot wait for anything any more
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

    An async generator that was never started has no `finally` to run, and one whose loop is
    closed is never run again: of streams that are dropped so, the lease is settled by `__del__`.
    """

    def __init__(self, flow: Steps, perform: AsyncPerformer, relay: Relay) -> None:
        self._flow = flow
        self._perform = perform
        self._started = False
        self._loop = _loop()
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
            leave(self._flow, self._perform)
            await _quietly(self._stream.aclose())
        await self._chunks.aclose()

    def __del__(self) -> None:
        never = self._loop is not None and self._loop.is_closed()
        if not self._started or (never and self._flow in held):
            leave(self._flow, self._perform)


def _loop() -> asyncio.AbstractEventLoop | None:
    """Give the loop that runs; None under one that is not asyncio's."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


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
                await _drive(flow, throw(flow, error), perform)
            raise
        await _drive(flow, flow.send(end), perform)
    except BaseException as error:
        perform.finish(error)
        raise
    finally:
        held.discard(flow)
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
