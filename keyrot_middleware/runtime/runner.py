"""Run one call of an adapter, in a thread or in a task.

An adapter says how a request is sent with the key of a lease, and which exception its programs
expect where there is no key.

    run, arun          up to the response, or to the first chunk of a stream
    ahold              a session, which keeps its lease until it is closed
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from ..core.commands import Reply, StreamOpened
from ..core.flow import CallState, Exhausted, abandon, end_stream
from ..core.model import Lease
from ..telemetry import CallObserver
from .driver import AsyncDriver, SyncDriver, complete
from .pool import Pool

ErrorMaker = Callable[[Exhausted], BaseException]
"""Makes the exception of a call that no key could serve. It is raised outside of any handler, so
that nothing internal is its context."""


async def arun(
    pool: Pool,
    call: CallState,
    send: Callable[[Lease], Awaitable[Reply]],
    no_key: ErrorMaker,
    observer: CallObserver | None = None,
    *,
    in_thread: bool = False,
) -> Any:
    """Run a call up to its response, or to the first chunk of its stream.

    Args:
        pool: The pool.
        call: The call.
        send: Sends the request with the key of a lease, and returns failures; see `SyncDriver`.
        no_key: Makes the exception where no key can serve.
        observer: Is notified of every command.
        in_thread: Block the thread, and never suspend; the chunks are a `Relay`.

    Returns:
        The response; an `AsyncRelay` of the chunks where *send* returned `StreamOpened`.

    Raises:
        BaseException: What *no_key* has made, else the last exception of *send*. What breaks a
            stream later is raised where it is read.
    """
    driver = (SyncDriver if in_thread else AsyncDriver)(pool, call, send, observer)
    try:
        reply = await driver.run()
    except Exhausted as exhausted:
        error = no_key(exhausted)
    else:
        if isinstance(reply, StreamOpened):
            return AsyncRelay(driver) if isinstance(driver, AsyncDriver) else Relay(driver)
        return getattr(reply, "response", None)
    raise error


def run(*args: Any) -> Any:
    """Run a call in a thread; arguments as for `arun`."""
    return complete(arun(*args, in_thread=True))


async def ahold(*args: Any) -> tuple[Any, AsyncRelay]:
    """Open a session, such as a websocket, with the first key that can; arguments as for `run`.

    Returns:
        The session, which is the only chunk, and the relay that keeps its lease. Read on, the relay
        waits for the end of the session and settles it with what the stream reports; closed, the
        session is abandoned.
    """
    relay: AsyncRelay = await arun(*args)
    return await anext(relay), relay


class _Relay:
    """The chunks of an open stream. Its lease is settled once, however it ends.

    No generator: one that was never started is not closed, and one of a task is closed by its loop,
    later or never. This is settled soon after it has no reference.
    """

    _busy: type[Exception]
    """What reading it twice at a time raises."""

    def __init__(self, driver: SyncDriver, chunks: Any) -> None:
        self._driver, self._chunks = driver, chunks
        self._over = False
        self._reading = threading.Lock()

    async def read(self) -> Any:
        """Return the next chunk; settle the stream and return None where there is none."""
        driver = self._driver
        if not self._reading.acquire(blocking=False):
            raise self._busy("the stream is being read already")
        try:
            if self._over or driver.stream is None:  # the collector may have had the driver first
                return None
            chunk, failed = await driver.next_chunk(self._chunks)
            if chunk is None:
                end = driver.stream.end(failed)
                await driver.close(driver.stream)
                self._over = True
                await self._settle(end_stream, end)
        except GeneratorExit:
            self._over = True
            driver.abandon()
            raise
        except BaseException as error:
            await self._fail(error)
            raise
        else:
            return chunk
        finally:
            self._reading.release()

    async def end(self) -> None:
        """Close the stream; what it has used so far is booked within a second."""
        if not self._reading.acquire(blocking=False):
            raise self._busy("the stream is being read")
        try:
            if not self._over:
                self._over = True
                stream = self._driver.stream
                self._driver.abandon()
                with suppress(Exception):  # its usage is read, and nothing else is lost
                    await self._driver.close(stream)
        finally:
            self._reading.release()

    def abandon(self) -> None:
        """Book what a stream has used whose connection is released already.

        A task that is reading it settles it.
        """
        if not self._over and not self._reading.locked():
            self._over = True
            self._driver.abandon()

    async def _fail(self, error: BaseException) -> None:
        """Settle a stream whose reader was interrupted by *error*, which is raised again."""
        if self._over:
            return
        self._over = True
        driver = self._driver
        end = driver.stream.end(None)
        try:
            with suppress(Exception):
                await driver.close(driver.stream)
        except GeneratorExit:
            raise
        except BaseException:  # noqa: S110 - a second cancellation: the first is raised
            pass
        await self._settle(abandon, end, error)

    async def _settle(self, how: Any, end: Any, error: BaseException | None = None) -> None:
        driver = self._driver
        try:
            broken = await how(driver.call, driver, driver.lease, end)
        except GeneratorExit:
            raise
        except BaseException as raised:
            driver.finish(raised)
            raise
        driver.finish(broken or error)
        if broken is not None:
            raise broken


class Relay(_Relay):
    """The chunks of an open stream, for a thread."""

    _busy = ValueError

    def __init__(self, driver: SyncDriver) -> None:
        super().__init__(driver, iter(driver.stream))

    def __iter__(self) -> Relay:
        """Return this stream."""
        return self

    def __next__(self) -> Any:
        """Return the next chunk.

        Raises:
            StopIteration: The stream ended.
            ValueError: Another thread is reading it.
            BaseException: The error of the library that opened it.
        """
        chunk = complete(self.read())
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Close the stream; what it has used so far is booked within a second.

        Raises:
            ValueError: Another thread is reading it.
        """
        complete(self.end())


class AsyncRelay(_Relay):
    """The chunks of an open stream, for a task."""

    _busy = RuntimeError

    def __init__(self, driver: AsyncDriver) -> None:
        super().__init__(driver, aiter(driver.stream))

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
        chunk = await self.read()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Close the stream; what it has used so far is booked within a second.

        Raises:
            RuntimeError: Another task is reading it.
        """
        await self.end()
