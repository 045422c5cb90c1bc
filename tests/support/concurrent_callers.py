"""Callers of a state, in threads or tasks, that run until they are stopped."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from keyrot_middleware.core.model import Candidate, Lease
from keyrot_middleware.state import State
from support.pool import INFO
from support.sync_async import OK

__all__ = ["HUNG_S", "Callers", "Tasks", "Threads", "check_callers"]

HUNG_S = 20.0
"""A call that takes longer hangs, however busy the machine is; seconds."""


class Callers(AbstractContextManager["Callers"]):
    """Several callers; each requests a key, keeps it for a while, settles, and repeats."""

    def __init__(
        self, state: State, *keys: Candidate, number: int = 64, pause_s: float = 0.05
    ) -> None:
        self.state, self.number, self.pause_s = state, number, pause_s
        self.keys = tuple((0, key) for key in keys)
        self.leases: Counter[str] = Counter()
        self.alone: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self.longest_s = 0.0
        self._over = False
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Callers:
        """Start the callers."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, and wait for all."""
        self._over = True
        for thread in self._threads:
            thread.join(20)

    def until(self, true: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something is true."""
        began = time.monotonic()
        while not true():
            assert time.monotonic() - began < seconds, "it did not come true in time"
            time.sleep(0.02)

    def note(self, reply: object, seconds: float) -> None:
        """Record one call."""
        with self._lock:
            self.longest_s = max(self.longest_s, seconds)
            if isinstance(reply, Lease):
                self.leases[reply.key_id] += 1
                self.alone[reply.key_id] += reply.degraded


def check_callers(callers: Callers) -> None:
    """Check that nothing was raised, and that no call hung; `make chaos` measures the delays."""
    assert callers.errors == []
    assert callers.longest_s < HUNG_S


class Threads(Callers):
    """In threads."""

    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self._threads = [threading.Thread(target=self._call) for _ in range(self.number)]

    def _call(self) -> None:
        try:
            while not self._over:
                began = time.perf_counter()
                reply = self.state.acquire(INFO, self.keys, spread=True)
                acquire_s = time.perf_counter() - began
                time.sleep(self.pause_s)
                began = time.perf_counter()
                if isinstance(reply, Lease):
                    self.state.settle(reply, OK)
                self.note(reply, acquire_s + time.perf_counter() - began)
        except BaseException as error:
            self.errors.append(error)


class Tasks(Callers):
    """In tasks of one loop."""

    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self._threads = [threading.Thread(target=lambda: asyncio.run(self._everyone()))]

    async def _everyone(self) -> None:
        await asyncio.gather(*(self._call() for _ in range(self.number)))

    async def _call(self) -> None:
        try:
            while not self._over:
                began = time.perf_counter()
                reply = await self.state.do("acquire", INFO, self.keys, spread=True)
                acquire_s = time.perf_counter() - began
                await asyncio.sleep(self.pause_s)
                began = time.perf_counter()
                if isinstance(reply, Lease):
                    await self.state.do("settle", reply, OK)
                self.note(reply, acquire_s + time.perf_counter() - began)
        except BaseException as error:
            self.errors.append(error)
