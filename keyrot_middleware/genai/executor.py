"""Run what an async send needs of a thread in the pool's threads.

asyncio resolves names in the loop's default executor, and aiohttp reads .netrc there for each
request. Sync calls that wait for a key in that executor (`asyncio.to_thread`) can take all of its
threads. A task that has the key they wait for could then not connect: each would wait for the
other until its time is over, and so would calls that need another key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from ..adapters.patching import Wrapper
from ..state.threads import StateThreads
from .key_injection import current_injection

__all__ = ["DefaultExecutor"]


class DefaultExecutor:
    """The wrapper of the loops' `run_in_executor`."""

    def __init__(self, threads: StateThreads) -> None:
        """Use *threads* in place of a loop's default executor."""
        self._threads = threads

    @property
    def table(self) -> dict[tuple[str, str], Wrapper]:
        """The wrapper of each module's method."""
        return {
            ("asyncio.base_events", "BaseEventLoop.run_in_executor"): self.run_in_executor,
            ("uvloop", "Loop.run_in_executor"): self.run_in_executor,
        }

    def run_in_executor(
        self, wrapped: Callable[..., Any], loop: asyncio.AbstractEventLoop, args: Any, kwargs: Any
    ) -> Any:
        """Wrap `run_in_executor`; what is not part of a send of the pool passes through."""
        if current_injection.get() is None:
            return wrapped(*args, **kwargs)
        return self._run(wrapped, loop, *args, **kwargs)

    def _run(
        self,
        wrapped: Callable[..., Any],
        loop: asyncio.AbstractEventLoop,
        executor: Executor | None,
        func: Callable[..., Any],
        *args: Any,
    ) -> Any:
        if executor is not None:
            return wrapped(executor, func, *args)
        return asyncio.wrap_future(self._threads.submit(partial(func, *args)), loop=loop)
