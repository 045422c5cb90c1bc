"""The connections of tasks, a set for each event loop."""

from __future__ import annotations

import asyncio
import threading

from ...forks import after_fork
from .alines import AsyncLines
from .route import Route

__all__ = ["Loops"]


class Loops:
    """Who has the lines of which loop; a forked child has none."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._lines: dict[asyncio.AbstractEventLoop, AsyncLines] = {}
        self._lock = threading.Lock()
        after_fork(self, Loops._renew)

    def lines(self) -> AsyncLines:
        """Give those of the running loop."""
        loop = asyncio.get_running_loop()
        return self._lines.get(loop) or self._of_new(loop)

    def close_soon(self) -> None:
        """Let each loop close its own, as soon as it runs."""
        for loop, lines in tuple(self._lines.items()):
            if loop.is_running():
                loop.call_soon_threadsafe(lines.close_soon)

    async def close(self) -> None:
        """Close those of the running loop."""
        lines = self._lines.get(asyncio.get_running_loop())
        if lines is not None:
            await lines.close()

    def _of_new(self, loop: asyncio.AbstractEventLoop) -> AsyncLines:
        with self._lock:
            for old in [known for known in self._lines if known.is_closed()]:
                del self._lines[old]
            lines = AsyncLines(self._route, lambda: self._forget(loop))
            self._lines[loop] = lines
        return lines

    def _forget(self, loop: asyncio.AbstractEventLoop) -> None:
        self._lines.pop(loop, None)

    def _renew(self) -> None:
        self._lines, self._lock = {}, threading.Lock()
