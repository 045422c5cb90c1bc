"""How tasks use a state that does I/O: its blocking methods run in a few threads (ADR 0028)."""

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
"""A script takes the server some 50 µs, so a few threads keep it as busy as many."""

_T = TypeVar("_T")


class StateThreads:
    """Threads that are started when a task needs one, and end with `close()`."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False
        after_fork(self, StateThreads._after_fork)

    async def run(self, work: Callable[[], _T], undo: Callable[[_T], object] | None = None) -> _T:
        """Run *work* in a thread, in the context of the task that waits for it.

        Args:
            work: Blocks, for a bounded time.
            undo: Takes the result where the task was cancelled meanwhile, in the same thread.
        """
        future = self._submit(partial(contextvars.copy_context().run, work))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo is not None and not future.cancelled():
                future.add_done_callback(partial(_undo, undo))
            raise

    def close(self) -> None:
        """Let the threads end; what runs is finished, and later work is done without them."""
        self._closed = True
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)

    def _submit(self, work: Callable[[], Any]) -> Future[Any]:
        if self._executor is None and not self._closed:
            self._executor = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="keyrot-state")
        executor, once = self._executor, _Once(work)
        with suppress(RuntimeError):  # shut down meanwhile, or no more threads can be started
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
    """Work that is done once: an executor keeps what it could start no thread for."""

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
