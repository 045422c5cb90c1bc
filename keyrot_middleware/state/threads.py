"""Threads in which tasks run the blocking methods of a state that does I/O (ADR 0028)."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from ..forks import after_fork

__all__ = ["StateThreads"]

MAX_THREADS = 8
"""A script takes the server about 50 µs, so a few threads keep it busy."""

_T = TypeVar("_T")


class StateThreads:
    """Threads that start when a task needs one and end with `close()`."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False
        after_fork(self, StateThreads._after_fork)

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

    @property
    def is_closed(self) -> bool:
        """Return whether work would run in the calling thread."""
        return self._closed

    def close(self) -> None:
        """Shut the threads down; running work finishes, later work runs in the calling thread."""
        self._closed = True
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Run *work* in a thread; where none can be started, in the calling one."""
        if self._executor is None and not self._closed:
            self._executor = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="keyrot-state")
        executor, once = self._executor, _Once(work)
        with suppress(RuntimeError):  # shut down meanwhile, or no thread can be started
            if executor is not None:
                return executor.submit(once)
        done: Future[Any] = Future()
        try:
            done.set_result(once())
        except BaseException as error:
            done.set_exception(error)
        return done

    def _after_fork(self) -> None:
        self._executor = None


class _Once:
    """Work that runs once: an executor keeps work for which it could not start a thread."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work: Callable[[], Any] | None = work
        self._lock = threading.Lock()

    def __call__(self) -> Any:
        with self._lock:
            work, self._work = self._work, None
        return work() if work is not None else None


def _undo(undo: Callable[[Any], object], future: Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        undo(future.result())
