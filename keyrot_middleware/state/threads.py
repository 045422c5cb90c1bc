"""Threads in which tasks run the blocking methods of a state that does I/O (ADR 0028)."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from ..forks import after_fork

__all__ = ["StateThreads"]

MAX_THREADS = 32
"""A script takes the server about 50 µs, so a few threads keep a near one busy; a distant one takes
its latency for each, so more are started while all are waiting."""

_T = TypeVar("_T")
_Work = tuple[Future[Any], Callable[[], Any]]


class StateThreads:
    """Threads that start when a task needs one and end with `close()`.

    They are daemons: the interpreter's exit does not wait for a server that hangs.
    """

    def __init__(self) -> None:
        """Start no thread yet."""
        self._begin()
        self._closed = False
        after_fork(self, StateThreads._begin)

    def _begin(self) -> None:
        """Start without threads, also in a forked child, which has none of its parent's."""
        self._lock = threading.Lock()
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        """Counts threads that wait for work and have none in the queue."""
        self._started = 0
        self._end = weakref.finalize(self, self._queue.put, None)

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
        """End the threads; running work finishes, later work runs in the calling thread."""
        with self._lock:
            self._closed = True
            self._end()

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Run *work* in a thread; where none can be started, in the calling one."""
        future: Future[Any] = Future()
        with self._lock:
            queued = not self._closed and self._has_thread()
            if queued:
                self._queue.put((future, work))
        if not queued:
            _perform(future, work)
        return future

    def _has_thread(self) -> bool:
        """Return whether a thread will do the next work; start one while all are busy."""
        if self._idle.acquire(blocking=False) or self._started == MAX_THREADS:
            return True
        name, args = f"keyrot-state-{self._started}", (self._queue, self._idle)
        try:
            threading.Thread(target=_serve, args=args, name=name, daemon=True).start()
        except RuntimeError:  # no thread can be started
            return self._started > 0
        self._started += 1
        return True


def _serve(queue: SimpleQueue[_Work | None], idle: threading.Semaphore) -> None:
    """Do work until the end, which is passed on to the next thread."""
    while (work := queue.get()) is not None:
        _perform(*work)
        del work
        idle.release()
    queue.put(None)


def _perform(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
        del future  # it holds the error, whose traceback holds this frame
    else:
        future.set_result(result)


def _undo(undo: Callable[[Any], object], future: Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        undo(future.result())
