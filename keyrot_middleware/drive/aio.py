"""Drive a flow in an asyncio task."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import CoroutineType
from typing import Any, Protocol

from ..core.commands import Command, Relay, Steps, StreamEnd
from ..telemetry.base import Watch
from .aperformer import AsyncPerformer

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
    try:
        result = await _drive(flow, next(flow), perform)
    except GeneratorExit:
        perform.abandon()
        raise
    except BaseException as error:
        perform.finish(error)
        raise
    finally:
        perform.driven = False
    perform.finish(None)
    return result


async def run_stream(flow: Steps, perform: AsyncPerformer) -> AsyncRelay:
    """Carry a streamed call to its first chunk; give the chunks as they come."""
    try:
        relay = await _drive(flow, next(flow), perform, until=Relay)
    except GeneratorExit:
        perform.abandon()
        raise
    except BaseException as error:
        perform.finish(error)
        raise
    return AsyncRelay(flow, perform, perform.relay(relay))


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
    settled as soon as nobody refers to it any more.
    """

    def __init__(self, flow: Steps, perform: AsyncPerformer, stream: AsyncStream) -> None:
        self._flow = flow
        self._perform = perform
        self._stream = stream
        self._chunks = aiter(stream)
        self._over = self._reading = False

    def __aiter__(self) -> AsyncRelay:
        """Give itself."""
        return self

    async def __anext__(self) -> Any:
        """Give the next chunk.

        Raises:
            StopAsyncIteration: The stream ended.
            RuntimeError: Another task is reading it.
            BaseException: The SDK's own error.
        """
        if self._reading:
            raise RuntimeError("anext(): the stream is being read already")
        if self._over:
            raise StopAsyncIteration
        self._reading = True
        try:
            chunk, failed = await _next(self._chunks, self._perform.watch)
            if chunk is None:
                await self._end(failed)
        except GeneratorExit:
            self._over = True
            self._perform.abandon()
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
        """Close the stream; what it has used so far is booked before this returns.

        Raises:
            RuntimeError: Another task is reading it.
        """
        if self._reading:
            raise RuntimeError("aclose(): the stream is being read")
        if not self._over:
            self._over = True
            self._perform.abandon()
            await _quietly(self._stream.aclose())

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
            await _quietly(self._stream.aclose())
        except GeneratorExit:
            raise
        except BaseException:  # noqa: S110 - cancelled once more: the first reason is raised
            pass
        await self._settle(self._flow.throw, error)

    async def _settle(self, go_on: Callable[[Any], Command], value: Any) -> None:
        """Carry the flow to its end."""
        try:
            await _drive(self._flow, go_on(value), self._perform)
        except GeneratorExit:
            raise
        except BaseException as error:
            self._perform.finish(error)
            raise
        self._perform.finish(None)

    def __del__(self) -> None:
        self._perform.abandon()


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
