"""Run one call of an adapter, in a thread or in a task.

An adapter says how a request is sent with the key of a lease, and which exception its programs
expect where there is no key.

A call runs up to its response, or to what holds its lease from then on: see held.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ..core.commands import SendResult, StreamOpened
from ..core.flow import CallState, Exhausted
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
    send: Callable[[Lease], Awaitable[SendResult]],
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
        in_thread: Block the thread, and never suspend.

    Returns:
        The response; the `Held` that *send* returned as `StreamOpened`, which has the lease now.

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
            return reply.stream.hold(driver)
        return getattr(reply, "response", None)
    raise error


def run(*args: Any) -> Any:
    """Run a call in a thread; arguments as for `arun`."""
    return complete(arun(*args, in_thread=True))
