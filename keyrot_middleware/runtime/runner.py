"""Run one call of an adapter: its flow, the driver, and the exception where no key could serve.

An adapter says how a request is sent with the key of a lease, and which exception its programs
expect where there is no key. All else about a call is here, sync and async.

    run, arun          a call that ends with its response
    stream, astream    a call whose response may be a stream: up to the first chunk
    lazy_stream        the same as a generator, which sends nothing before it is read
    hold, ahold        a session, which keeps its lease until it is closed
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any

from ..core.commands import Done, Failed, StreamEnd, StreamOpened
from ..core.flow import CallState, Exhausted, call_flow
from ..telemetry.observer import CallObserver
from . import aio, sync
from .pool import Pool

__all__ = [
    "NoKey",
    "Reply",
    "ahold",
    "arun",
    "astream",
    "hold",
    "lazy_stream",
    "run",
    "stream",
]

Reply = Done | StreamOpened | Failed | StreamEnd
"""What a send returns."""

NoKey = Callable[[Exhausted], BaseException]
"""Makes the exception of a call that no key could serve. It is raised outside of any handler, so
that nothing internal is its context."""


def run(
    pool: Pool,
    call: CallState,
    send: Callable[..., Reply],
    no_key: NoKey,
    observer: CallObserver | None = None,
) -> Any:
    """Run a call to its end; return its response.

    Args:
        pool: The pool.
        call: The call.
        send: Sends the request with the key of a lease, and returns failures; see `SyncDriver`.
        no_key: Makes the exception where no key can serve.
        observer: Is notified of every command.

    Raises:
        BaseException: What *no_key* has made, else the last exception of *send*.
    """
    driver = sync.SyncDriver(pool, call.info, send, observer)
    try:
        return sync.run(call_flow(call), driver)
    except Exhausted as exhausted:
        error = no_key(exhausted)
    raise error


async def arun(
    pool: Pool,
    call: CallState,
    send: Callable[..., Awaitable[Reply]],
    no_key: NoKey,
    observer: CallObserver | None = None,
) -> Any:
    """Async version of `run`."""
    driver = aio.AsyncDriver(pool, call.info, send, observer)
    try:
        return await aio.run(call_flow(call), driver)
    except Exhausted as exhausted:
        error = no_key(exhausted)
    raise error


def stream(
    pool: Pool,
    call: CallState,
    send: Callable[..., Reply],
    no_key: NoKey,
    observer: CallObserver | None = None,
) -> Any:
    """Run a call up to the first chunk of its stream; arguments as for `run`.

    Returns:
        A `sync.Relay` of the chunks; the response itself where *send* returned `Done`.

    Raises:
        BaseException: As `run`. What breaks the stream later is raised where it is read.
    """
    driver = sync.SyncDriver(pool, call.info, send, observer)
    try:
        return sync.open_stream(call_flow(call), driver)
    except Exhausted as exhausted:
        error = no_key(exhausted)
    raise error


def lazy_stream(
    pool: Pool,
    call: CallState,
    send: Callable[..., Reply],
    no_key: NoKey,
    observer: CallObserver | None = None,
) -> Generator[Any, None, None]:
    """Yield the chunks of a stream that is opened with the first of them; see `stream`."""
    driver = sync.SyncDriver(pool, call.info, send, observer)
    try:
        yield from sync.run_stream(call_flow(call), driver)
    except Exhausted as exhausted:
        error = no_key(exhausted)
    else:
        return
    raise error


async def astream(
    pool: Pool,
    call: CallState,
    send: Callable[..., Awaitable[Reply]],
    no_key: NoKey,
    observer: CallObserver | None = None,
) -> Any:
    """Async version of `stream`; the chunks are an `aio.AsyncRelay`."""
    driver = aio.AsyncDriver(pool, call.info, send, observer)
    try:
        return await aio.run_stream(call_flow(call), driver)
    except Exhausted as exhausted:
        error = no_key(exhausted)
    raise error


def hold(
    pool: Pool,
    call: CallState,
    connect: Callable[..., Reply],
    no_key: NoKey,
    observer: CallObserver | None = None,
) -> tuple[Any, sync.Relay]:
    """Open a session, such as a websocket, with the first key that can; arguments as for `run`.

    Args:
        pool: The pool.
        call: The call.
        connect: Opens it; returns a `StreamOpened` whose only chunk is the session.
        no_key: As for `run`.
        observer: As for `run`.

    Returns:
        The session, and the relay that keeps its lease. Read on, the relay waits for the end of
        the session and settles it with what the stream reports; closed, the session is abandoned.
    """
    relay: sync.Relay = stream(pool, call, connect, no_key, observer)
    return next(relay), relay


async def ahold(
    pool: Pool,
    call: CallState,
    connect: Callable[..., Awaitable[Reply]],
    no_key: NoKey,
    observer: CallObserver | None = None,
) -> tuple[Any, aio.AsyncRelay]:
    """Async version of `hold`."""
    relay: aio.AsyncRelay = await astream(pool, call, connect, no_key, observer)
    return await anext(relay), relay
