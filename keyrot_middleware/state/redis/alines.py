"""Connections for tasks, one set for each event loop: what lines.py is for threads.

Two things are different. Tasks are many, so there is an upper bound, and who finds no line free
waits for one; when the server fails one of them, it has failed all who wait. And a task can be
cancelled while its answer is on the way: the answer is still read, by a task of ours, and handed to
`orphan`, so that what it granted can be given back.

When the loop ends its async generators are closed; `_keeper` is one, and closes the lines.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError, ResponseError

from .adial import AsyncDial, in_time
from .calls import MOST_TRIES, Call, Line
from .route import Advice, Route
from .trouble import RedisTrouble

__all__ = ["AsyncLines", "Orphan"]

MOST_LINES = 16
_FAILURES = (RedisError, OSError)  # TimeoutError is an OSError

Orphan = Callable[[Any], Awaitable[None]]


class AsyncLines:
    """The connections of one event loop to the pool's server."""

    def __init__(self, route: Route, on_end: Callable[[], None]) -> None:
        self._route, self._dial = route, AsyncDial(route)
        self._on_end = on_end
        self._idle: list[Line] = []
        self._open_lines = 0
        self._waiting: deque[asyncio.Future[Line | None]] = deque()
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
        line = await self._take()
        try:
            await _send(line, call.brief)
            reply = await self._answer(line, call)
        except asyncio.CancelledError:
            self._spawn(self._read_for(line, orphan))
            raise
        except _FAILURES as error:
            raise await self._broken(line, error) from error
        except BaseException:
            await self._drop(line)
            raise
        await self._give(line)
        return reply

    async def post(self, call: Call) -> None:
        """Run a script whose answer is read later, once the server is known to have it.

        Raises:
            RedisTrouble: It could not be sent, or the answer before it was a failure.
        """
        line = await self._take()
        line.owed = call
        try:
            await _send(line, call.brief)
        except _FAILURES as error:
            raise await self._broken(line, error) from error
        except BaseException:
            await self._drop(line)
            raise
        await self._give(line if call.digest in line.knows else await self._paid(line))

    async def ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send plain commands together and give their answers.

        Raises:
            RedisTrouble: As `call`.
        """
        line = await self._take()
        try:
            replies = await self._answers(line, commands)
        except _FAILURES as error:
            raise await self._broken(line, error) from error
        except BaseException:
            await self._drop(line)
            raise
        await self._give(line)
        return replies

    async def close(self) -> None:
        """Close every line, once what it owes was read; later ones are closed after use."""
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
        mine = self._tasks - {asyncio.current_task()}
        await asyncio.gather(*mine, return_exceptions=True)
        while self._idle:
            line = self._idle.pop()
            with suppress(RedisTrouble):
                await self._drop(await self._paid(line), gently=True)

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._closed = True
            self._on_end()
            await self._finish()

    async def _take(self) -> Line:
        """Give a line to the right server, with nothing left to read."""
        if self._keeper is None and not self._closed:
            self._keeper = self._keep()
            await anext(self._keeper)
        while True:
            line = self._idle.pop() if self._idle else await self._another()
            if line is None:
                return await self._open()
            await self._paid(line)
            if line.address == self._route.address and await _alive(line):
                return line
            await self._drop(line)

    async def _another(self) -> Line | None:
        """Wait for a line that somebody gives back; None where one more may be opened."""
        if self._open_lines < MOST_LINES:
            self._open_lines += 1
            return None
        turn: asyncio.Future[Line | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._pass_on(turn.result())
            raise

    async def _give(self, line: Line) -> None:
        line.used_at = time.monotonic()
        if self._closed and not self._waiting:
            await self._drop(await self._paid(line), gently=True)
        else:
            self._pass_on(line)

    def _pass_on(self, line: Line | None) -> None:
        """Give a line, or (None) the right to open one, to who has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(line)
                return
        if line is None:
            self._open_lines -= 1
        else:
            self._idle.append(line)

    async def _paid(self, line: Line) -> Line:
        call, line.owed = line.owed, None
        if call is not None:
            try:
                await self._answer(line, call)
            except asyncio.CancelledError:
                self._spawn(self._read_for(line, None))
                raise
            except _FAILURES as error:
                raise await self._broken(line, error) from error
        return line

    async def _answer(self, line: Line, call: Call) -> Any:
        """Read the answer to *call*; send it again only where the server says it did not run."""
        tries = 1
        while isinstance(reply := await self._read(line), ResponseError):
            advice = self._route.advise(reply, line.address)
            if advice is Advice.FAIL or tries == MOST_TRIES:
                raise reply
            if advice is Advice.MOVE:
                await self._dial.lead(line)
            await _send(line, call.full if advice is Advice.TELL else call.brief)
            tries += 1
        line.knows.add(call.digest)
        return reply

    async def _answers(self, line: Line, commands: Sequence[Sequence[Any]]) -> list[Any]:
        for tries in range(1, MOST_TRIES + 1):
            packed = line.conn.pack_commands(commands)
            await line.conn.send_packed_command(packed, check_health=False)
            replies = [await self._read(line) for _ in commands]
            failed = [reply for reply in replies if isinstance(reply, ResponseError)]
            if not failed:
                break
            advice = self._route.advise(failed[0], line.address)
            if advice is not Advice.MOVE or tries == MOST_TRIES:
                raise failed[0]
            await self._dial.lead(line)
        return replies

    async def _read(self, line: Line) -> Any:
        """Read one answer; a refusal is a value."""
        try:
            return await in_time(
                self._route.place.timeout_s,
                lambda: line.conn.read_response(disconnect_on_error=False),
            )
        except ResponseError as error:
            return error

    async def _read_for(self, line: Line, orphan: Orphan | None) -> None:
        """Read the answer that a cancelled task has left behind."""
        try:
            reply = await self._read(line)
        except _FAILURES as error:
            await self._broken(line, error)
            return
        except BaseException:
            await self._drop(line)
            raise
        await self._give(line)
        if orphan is not None and not isinstance(reply, ResponseError):
            with suppress(RedisTrouble):
                await orphan(reply)

    async def _open(self) -> Line:
        line = Line()
        try:
            await self._dial.lead(line)
        except (*_FAILURES, LookupError) as error:
            raise await self._broken(line, error) from error
        except BaseException:
            await self._drop(line)
            raise
        return line

    async def _drop(self, line: Line, *, gently: bool = False) -> None:
        self._pass_on(None)
        with suppress(*_FAILURES):
            await line.ahang_up(gently=gently)

    async def _broken(self, line: Line, error: Exception) -> RedisTrouble:
        """Close a line after a failure, and tell all who wait that the server has failed."""
        if not isinstance(error, ResponseError):
            self._route.lost(line.address)
            waiting, self._waiting = self._waiting, deque()
            for turn in waiting:
                if not turn.done():
                    turn.set_exception(self._trouble(error))
        await self._drop(line)
        return self._trouble(error)

    def _trouble(self, error: Exception) -> RedisTrouble:
        return RedisTrouble(str(self._route.place), error)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _send(line: Line, words: Sequence[Any]) -> None:
    await line.conn.send_packed_command(line.conn.pack_command(*words), check_health=False)


async def _alive(line: Line) -> bool:
    """Tell whether a line can be used: something to read now is the end of it."""
    if not line.stale:
        return True
    look = getattr(line.conn, "can_read", None) or line.conn.can_read_destructive
    try:
        return not await look()
    except _FAILURES:
        return False
