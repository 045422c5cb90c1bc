"""Threads in which tasks run the blocking methods of a state that does I/O (ADR 0009)."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ..forks import after_fork

MAX_THREADS = 32
"""A script takes the server about 50 µs, so a few threads keep a near one busy; a distant one takes
its latency for each, so more are started while all are waiting."""

_T = TypeVar("_T")


class StateThreads:
    """Threads that start when a task needs one and end with `close()`."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._begin()
        after_fork(self, StateThreads._begin)

    def _begin(self) -> None:
        """Start without threads, also in a forked child, which has none of its parent's."""
        self._executor = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="keyrot-state")

    async def run(self, work: Callable[[], _T], undo: Callable[[_T], object] | None = None) -> _T:
        """Run *work* in a thread, in the context of the calling task.

        Args:
            work: Blocks for a bounded time.
            undo: Called with the result, in the same thread, if the task was cancelled meanwhile.
        """
        future = self.submit(partial(contextvars.copy_context().run, work))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo is not None and not future.cancelled():
                future.add_done_callback(partial(_undo, undo))
            raise

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Run *work* in a thread; where none can be started, in the calling one."""
        try:
            return self._executor.submit(work)
        except RuntimeError:  # closed, the interpreter ends, or no thread can be started
            future: Future[Any] = Future()
            future.set_running_or_notify_cancel()
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            return future

    def close(self) -> None:
        """End the threads; running work finishes, later work runs in the calling thread."""
        self._executor.shutdown(wait=False)


def _undo(undo: Callable[[Any], object], future: Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        undo(future.result())
