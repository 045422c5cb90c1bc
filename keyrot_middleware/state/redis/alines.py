"""The connection of an event loop to the pool's server: what lines.py is for threads.

One is enough, since the server does one thing at a time, and nobody holds it: what tasks ask goes
out at once, and the answers come in the same order. A task can be cancelled while its answer is on
the way: that is still read, and handed to `orphan`, so that what it granted can be given back.

When the loop ends its async generators are closed; `_keeper` is one, and closes the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from .adial import AsyncDial
from .aline import Answer, AsyncLine
from .calls import MOST_TRIES, Call, packed
from .route import Advice, Route
from .trouble import RedisTrouble

__all__ = ["AsyncLines", "Orphan"]

_FAILURES = (RedisError, OSError, LookupError)  # TimeoutError is an OSError

Orphan = Callable[[Any], Awaitable[None]]


class AsyncLines:
    """What the tasks of one event loop ask the pool's server by."""

    def __init__(self, route: Route, on_end: Callable[[], None]) -> None:
        self._route, self._dial = route, AsyncDial(route)
        self._on_end = on_end
        self._line: AsyncLine | None = None
        self._opening: asyncio.Task[None] | None = None
        self._failed: Exception | None = None
        """What became of a question that nobody waited for."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: AsyncGenerator[None, None] | None = None
        self._closed = False

    async def call(self, call: Call, orphan: Orphan | None = None) -> Any:
        """Run a script and give its answer.

        Args:
            call: The script.
            orphan: Takes the answer when the caller was cancelled meanwhile.

        Raises:
            RedisTrouble: No server, no answer in time, or a refusal.
        """
        unwanted = None if orphan is None else partial(self._give_back, orphan)
        line = self._ready() or await self._connected()
        answer = line.ask(call.brief, unwanted)
        try:
            reply = await answer
            if isinstance(reply, ResponseError):
                line, reply = await self._again(call, line, reply)
        except asyncio.CancelledError:
            if unwanted is not None and _answered(answer):
                unwanted(answer.result())
            raise
        except _FAILURES as error:
            raise self._trouble(error, line) from error
        line.knows.add(call.digest)
        self._used(line)
        return reply

    async def post(self, call: Call) -> None:
        """Run a script whose answer is heard later, once the server is known to have it.

        Raises:
            RedisTrouble: It could not be sent, or an answer before it was a failure.
        """
        line = self._ready()
        if line is None or call.digest not in line.knows:
            await self.call(call)
            return
        line.ask(call.brief).add_done_callback(partial(self._heard, call, line))
        self._used(line)

    async def ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send plain commands together and give their answers.

        Raises:
            RedisTrouble: As `call`.
        """
        line = self._ready() or await self._connected()
        try:
            for tries in range(1, MOST_TRIES + 1):
                replies = await asyncio.gather(*(line.ask(packed(c)) for c in commands))
                failed = [reply for reply in replies if isinstance(reply, ResponseError)]
                if not failed:
                    break
                advice = self._route.advise(failed[0], line.address)
                if advice is not Advice.MOVE or tries == MOST_TRIES:
                    raise failed[0]
                line = await self._connected()
        except _FAILURES as error:
            raise self._trouble(error, line) from error
        self._used(line)
        return replies

    async def close(self) -> None:
        """Close it, once what it owes was heard; a later question's is closed after use."""
        self._closed = True
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            await keeper.aclose()
        else:
            await self._finish()

    def close_soon(self) -> None:
        """Close from within the loop, without waiting."""
        self._spawn(self.close())

    async def _finish(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            self._retire(line)
        while mine := self._tasks - {asyncio.current_task()}:
            await asyncio.gather(*mine, return_exceptions=True)

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._closed = True
            self._on_end()
            await self._finish()

    def _ready(self) -> AsyncLine | None:
        """Give the line, if there is one that leads to the right server."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise self._trouble(failed) from failed
        line = self._line
        return (
            line if line is not None and line.open and line.address == self._route.address else None
        )

    async def _connected(self) -> AsyncLine:
        """Open a line; tasks that want one meanwhile share it."""
        if self._keeper is None and not self._closed:
            self._keeper = self._keep()
            await anext(self._keeper)
        for _ in range(MOST_TRIES):
            line = self._ready()
            if line is not None:
                return line
            # One that is done has said all it had to say: to await it again would not even yield.
            if self._opening is None or self._opening.done():
                self._opening = asyncio.get_running_loop().create_task(self._open())
            try:
                await asyncio.shield(self._opening)
            except _FAILURES as error:
                raise self._trouble(error) from error
        raise self._trouble(RedisConnectionError("the server closes every new connection"))

    async def _open(self) -> None:
        before, self._line = self._line, None
        if before is not None:
            self._retire(before)
        self._line = await self._dial.dial()

    def _used(self, line: AsyncLine) -> None:
        if self._closed:
            self._line = None
            self._retire(line)

    def _retire(self, line: AsyncLine) -> None:
        line.retire()
        self._spawn(line.gone())

    async def _again(
        self, call: Call, line: AsyncLine, reply: ResponseError
    ) -> tuple[AsyncLine, Any]:
        """Ask again where the server says that the script did not run."""
        refusal: Any = reply
        for _ in range(1, MOST_TRIES):
            advice = self._route.advise(refusal, line.address)
            if advice is Advice.FAIL:
                break
            if advice is Advice.MOVE or not line.open:  # closed meanwhile by another late one
                line = await self._connected()
            refusal = await line.ask(call.full if advice is Advice.TELL else call.brief)
            if not isinstance(refusal, ResponseError):
                return line, refusal
        raise refusal

    def _heard(self, call: Call, line: AsyncLine, answer: Answer) -> None:
        """Take the answer to a question that nobody waited for."""
        if answer.cancelled():
            return
        error = answer.exception() or answer.result()
        if isinstance(error, ResponseError):
            self._spawn(self._post_again(call, line, error))
        elif isinstance(error, Exception) and line.open:  # else the next question finds out itself
            self._failed = error

    async def _post_again(self, call: Call, line: AsyncLine, reply: ResponseError) -> None:
        try:
            await self._again(call, line, reply)
        except (*_FAILURES, RedisTrouble) as error:
            self._failed = error

    def _give_back(self, orphan: Orphan, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            return

        async def work() -> None:
            with suppress(RedisTrouble):
                await orphan(reply)

        self._spawn(work())

    def _trouble(self, error: Exception, line: AsyncLine | None = None) -> RedisTrouble:
        """Say what failed; a server that does not answer is not relied on."""
        if isinstance(error, RedisTrouble):
            return error
        if line is not None and not isinstance(error, ResponseError):
            self._route.lost(line.address)
        return RedisTrouble(str(self._route.place), error)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _answered(answer: Answer) -> bool:
    return answer.done() and not answer.cancelled() and answer.exception() is None
