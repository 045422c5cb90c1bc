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
from typing import Any, TypeVar

from redis.asyncio import connection as redis_connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from .calls import MOST_TRIES, Call, Line, connection, master_of
from .place import Address
from .route import Advice, Route
from .trouble import RedisTrouble

__all__ = ["AsyncLines", "Orphan"]

MOST_LINES = 16
LATE = 1.5
"""A time limit that was noticed so much too late was missed by our loop, not by the server."""

_T = TypeVar("_T")
_FAILURES = (RedisError, OSError)  # TimeoutError is an OSError

Orphan = Callable[[Any], Awaitable[None]]


class AsyncLines:
    """The connections of one event loop to the pool's server."""

    def __init__(self, route: Route, on_end: Callable[[], None]) -> None:
        self._route = route
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
        await self._close_idle()

    def close_soon(self) -> None:
        """Close from within the loop, without waiting."""
        self._spawn(self.close())

    async def _close_idle(self) -> None:
        while self._idle:
            line = self._idle.pop()
            with suppress(RedisTrouble):
                await self._drop(await self._paid(line))

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._closed = True
            self._on_end()
            await self._close_idle()

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
            await self._drop(await self._paid(line))
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
                await self._move(line)
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
            await self._move(line)
        return replies

    async def _read(self, line: Line) -> Any:
        """Read one answer; a refusal is a value."""
        try:
            return await self._in_time(lambda: line.conn.read_response(disconnect_on_error=False))
        except ResponseError as error:
            return error

    async def _read_for(self, line: Line, orphan: Orphan | None) -> None:
        """Read the answer that a cancelled task has left behind."""
        try:
            reply = await self._read(line)
        except _FAILURES as error:
            await self._broken(line, error)
            return
        await self._give(line)
        if orphan is not None and not isinstance(reply, ResponseError):
            with suppress(RedisTrouble):
                await orphan(reply)

    async def _open(self) -> Line:
        try:
            address = self._route.address or await self._find_master()
            line = Line(self._connection(address, **self._route.place.options), address)
        except BaseException:
            self._pass_on(None)
            raise
        try:
            await self._in_time(line.conn.connect)
        except asyncio.CancelledError:
            await self._drop(line)
            raise
        except _FAILURES as error:
            raise await self._broken(line, error) from error
        return line

    async def _move(self, line: Line) -> None:
        """Lead a line to where the route now points."""
        await line.conn.disconnect(nowait=True)
        address = self._route.address or line.address
        line.lead(self._connection(address, **self._route.place.options), address)
        await self._in_time(line.conn.connect)

    async def _find_master(self) -> Address:
        error: Exception = LookupError("no sentinel")
        for sentinel in self._route.sentinels():
            try:
                master = master_of(await self._master(sentinel), self._route.place)
            except (*_FAILURES, LookupError) as failed:
                error = failed
            else:
                self._route.found(sentinel, master)
                return master
        raise RedisTrouble(str(self._route.place), error) from error

    async def _master(self, sentinel: Address) -> Any:
        place = self._route.place
        conn = self._connection(sentinel, **place.sentinel_options)

        async def ask() -> Any:
            await conn.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", place.master)
            return await conn.read_response()

        try:
            return await self._in_time(ask)
        finally:
            await conn.disconnect(nowait=True)

    def _connection(self, address: Address, **options: Any) -> Any:
        place, never = self._route.place, Retry(NoBackoff(), 0)
        return connection(redis_connection, never, place, address, socket_timeout=None, **options)

    async def _in_time(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do *work* within the time limit; once more where it was our loop that was late."""
        begun = time.monotonic()
        limit_s = self._route.place.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await work()
        except TimeoutError:
            if time.monotonic() - begun < LATE * limit_s:
                raise TimeoutError(f"no answer in {limit_s} s") from None
        async with asyncio.timeout(limit_s):
            return await work()

    async def _drop(self, line: Line) -> None:
        self._pass_on(None)
        with suppress(*_FAILURES):
            await line.conn.disconnect(nowait=True)

    async def _broken(self, line: Line, error: Exception) -> RedisTrouble:
        """Close a line after a failure, and tell all who wait that the server has failed."""
        where = str(self._route.place)
        if not isinstance(error, ResponseError):
            self._route.lost(line.address)
            waiting, self._waiting = self._waiting, deque()
            for turn in waiting:
                if not turn.done():
                    turn.set_exception(RedisTrouble(where, error))
        await self._drop(line)
        return RedisTrouble(where, error)

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
