"""What holds the lease of a call beyond its response: who closes it, and who settles it.

Most calls settle their lease themselves, when the response is here. Three things hold it longer:
the stream of a response (clients/stream.py), a Live session (clients/live.py), and the use of a key
that a program chooses by hand (key_manager.py). Each of them is one object, a `Held`. It has
the driver of its call, and the driver has nothing of it: there is no cycle, so what the program
drops is gone at once, and not when the garbage collector runs.

A lease is settled exactly once, by the first of these:

- It ends, or breaks with an error. Whoever reads it sees that, and `ended` settles it in that
  thread or task, before the program sees the end. So what the error means is known by then.
- The program leaves it: closes it early, or drops it. `abandon` puts the driver into
  `Pool.abandoned` with what was used so far, and the pool's own thread settles it within a second.
  It does no more than that, because the collector may call it between any two lines of a thread:
  also of one that has a lock of the state, of logging or of a tracer, for which it would wait.
- Its reader is interrupted, by a cancellation or by Ctrl-C. `interrupted` settles it as abandoned
  and lets the exception go on; a second cancellation does not stop that. A coroutine that is closed
  (GeneratorExit) may not wait for anything, so it is abandoned.

Several of these may come together: a reader is cancelled while another thread closes the stream,
which is then dropped. Nothing is settled twice even so. The driver forgets its lease in the moment
in which it begins to settle it, and puts itself into the queue once. And nothing is lost: what was
neither settled nor queued when the last reference goes is queued by `__del__`.

Whoever ends it also releases the connection, before the lease is settled: the call that settling
wakes up may need that connection. `abandon` alone releases nothing: its caller has done so, or the
connection goes with the object.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Self

from ..core.commands import StreamEnd
from ..core.flow import abandon, end_stream
from .driver import SyncDriver


class Held:
    """What holds a lease until it is ended, abandoned or interrupted."""

    driver: SyncDriver | None = None
    """That of the call; None until it is open."""
    is_over = False
    """The lease is settled, is being settled, or waits for it."""

    def hold(self, driver: SyncDriver) -> Self:
        """Hold the lease of a call from now on."""
        self.driver, driver.is_held = driver, True
        return self

    def end(self, error: Exception | None) -> StreamEnd:
        """Return what was used so far, and what *error* means that broke it; None: nothing did."""
        raise NotImplementedError

    async def release(self) -> None:
        """Release the connection, if there is one; never raises an `Exception`."""

    def abandon(self) -> None:
        """Leave it to be settled with what was used so far, if it is not settled yet."""
        self.is_over = True
        if self.driver is not None:
            self.driver.abandon(self.end)

    def __del__(self) -> None:
        self.abandon()

    async def ended(self, error: Exception | None = None) -> BaseException | None:
        """Settle it at its end.

        Returns:
            What broke it, with a note for each failed attempt of the call; None: it is whole.
        """
        end = self.end(error)
        await self.release()
        return await self._settle(end_stream, end)

    async def interrupted(self, error: BaseException) -> None:
        """Settle it, if it is open, where its reader was interrupted; *error* is raised again."""
        if isinstance(error, GeneratorExit):
            self.abandon()
        if self.is_over:
            return
        self.is_over = True
        end = self.end(None)
        try:
            await self.release()
        except GeneratorExit:
            raise
        except BaseException:  # noqa: S110 - a second cancellation: the first is raised
            pass
        await self._settle(abandon, end, error)

    async def _settle(
        self,
        how: Callable[..., Awaitable[Any]],
        end: StreamEnd,
        error: BaseException | None = None,
    ) -> BaseException | None:
        self.is_over, driver = True, self.driver
        assert driver is not None  # noqa: S101 - narrows the type: it is open
        try:
            broken: BaseException | None = await how(driver.call, driver, driver.lease, end)
        except GeneratorExit:
            raise
        except BaseException as raised:
            driver.finish(raised)
            raise
        driver.finish(broken or error)
        return broken
