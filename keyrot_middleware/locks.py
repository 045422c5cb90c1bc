"""The lock of this package: no interrupt leaves it locked, and nobody waits for it for ever.

An interrupt is what a signal handler raises (Ctrl-C, the time limit of a task queue, a stopped cell
of a notebook), or one thread in another. Python 3.14 also raises it between `acquire()` of
`threading.Lock` and the body of its `with`, which leaves it locked: the program freezes at the next
`with`. Here it is raised inside of `__enter__`, which gives the lock back. Its end must be a method
in C: an interrupt would come before the first line of one in Python.

What is lost: a second interrupt within microseconds of the first can still leave it locked. Then
its own thread goes on, others wait for `wait_s` each, and the call goes on after an internal error.
Not covered are locks inside of libraries and of Python's own events, executors and logging; and a
lock that is only tried, as that of a stream, is a plain one: nobody waits for it.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from operator import attrgetter
from typing import Any

from .errors import KeyrotError
from .forks import after_fork

WAIT_S = 10.0
"""Longer than anything here holds a lock."""
PARTS = 10
"""A process that stood still (a paused container, a starved machine) wakes when its time is up. So
that ends a part of a wait, and the thread that has the lock goes on in the next one."""


class LockError(KeyrotError):
    """A lock was held for too long."""


class Lock:
    """A lock for `with`, which its thread may take again; a forked child begins with it free."""

    def __init__(self, wait_s: float = WAIT_S) -> None:
        """Start free; *wait_s* is how long a thread waits for it at the most."""
        self._wait_s = wait_s
        self._renew()
        after_fork(self, Lock._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        """Wait for the lock.

        Raises:
            LockError: It did not become free in time.
        """
        try:
            for _ in range(PARTS):
                if is_mine := self._lock.acquire(timeout=self._wait_s / PARTS):
                    break
        except BaseException:  # which came while it waited, or when it had it already
            with suppress(RuntimeError):
                self._lock.release()
            raise
        if not is_mine:
            raise LockError(
                f"internal error: a lock was not free for {self._wait_s:g} s; a thread of this "
                "process is stuck, or has far too little CPU"
            )

    __exit__: Any = property(attrgetter("_lock.__exit__"))


class TriedLock:
    """A lock for `with`, of one who does not wait for it."""

    def __init__(self, lock: Lock) -> None:
        """Take *lock*, where it is free."""
        self._of = lock

    def __enter__(self) -> None:
        """Take the lock.

        Raises:
            LockError: Another thread has it.
        """
        try:
            is_mine = self._of._lock.acquire(blocking=False)
        except BaseException:  # as in `Lock.__enter__`
            with suppress(RuntimeError):
                self._of._lock.release()
            raise
        if not is_mine:
            raise LockError("another thread has the lock")

    __exit__: Any = property(attrgetter("_of._lock.__exit__"))
