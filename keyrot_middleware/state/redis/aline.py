"""One connection of an event loop's: all its tasks ask over it, and answers come in that order.

redis-py opens it and logs in; then this takes its place as the transport's protocol, since a stream
and a time limit of its own for every answer cost a task more than the server's round trip.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .calls import reader
from .place import Address

__all__ = ["LATE", "Answer", "AsyncLine"]

LATE = 1.5
"""A time limit that was noticed so much too late was missed by our loop, not by the server."""
GRACE = 0.25
"""So much of the limit an answer then has to be read."""

Answer = asyncio.Future[Any]


class AsyncLine(asyncio.Protocol):
    """A connection, where it leads, and what has been asked and not been answered yet."""

    def __init__(self, conn: Any, address: Address, limit_s: float) -> None:
        """Take an open connection over.

        Args:
            conn: Of redis-py's; its streams are used no more.
            address: Where it leads.
            limit_s: How long an answer may take.
        """
        self.address = address
        self.knows: set[str] = set()
        """Scripts that the server surely has: what it has not must not be left unread."""
        self.open = True
        self._conn, self._limit_s, self._reader = conn, limit_s, reader()
        self._loop = asyncio.get_running_loop()
        self._asked: deque[tuple[float, Answer, Callable[[Any], None] | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._retired = False
        self._gone = self._loop.create_future()
        self._transport: asyncio.Transport = conn._writer.transport
        self._transport.set_protocol(self)

    def ask(self, command: bytes, unwanted: Callable[[Any], None] | None = None) -> Answer:
        """Send a command.

        Args:
            command: In the server's protocol.
            unwanted: Takes the answer where the task that waited for it was cancelled meanwhile.

        Returns:
            What is done with the answer, a refusal being a value, or with a `RedisError`.
        """
        answer: Answer = self._loop.create_future()
        if self._transport.is_closing():  # asyncio would warn of each write, and send nothing
            answer.set_exception(RedisConnectionError("the connection was closed"))
            return answer
        due = self._loop.time() + self._limit_s
        self._asked.append((due, answer, unwanted))
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._look, due)
        self._transport.write(command)
        return answer

    def retire(self) -> None:
        """Close it as soon as all has been answered."""
        self.open, self._retired = False, True
        if not self._asked:
            self._transport.close()

    async def gone(self) -> None:
        """Wait until it is closed, and let redis-py know."""
        await asyncio.shield(self._gone)
        with suppress(RedisError, OSError):
            await self._conn.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        """Hand answers out."""
        self._reader.feed(data)
        try:
            while self._asked and (reply := self._reader.gets()) is not False:
                _, answer, unwanted = self._asked.popleft()
                if not answer.done():
                    answer.set_result(reply)
                elif unwanted is not None:
                    unwanted(reply)
        except RedisError as error:
            self._fail(error)
        if self._retired and not self._asked:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everybody who waits."""
        self._fail(RedisConnectionError(str(error or "the server closed the connection")))
        if not self._gone.done():
            self._gone.set_result(None)

    def _look(self, due: float) -> None:
        """Find out whether the oldest question has waited for too long; one timer serves all."""
        self._timer = None
        if not self._asked:
            return
        now, oldest = self._loop.time(), self._asked[0][0]
        if now < oldest:
            again = oldest
        elif now - due > (LATE - 1) * self._limit_s:  # our loop was late: it may be here already
            again = now + GRACE * self._limit_s
        else:
            self._fail(RedisTimeoutError(f"no answer in {self._limit_s:g} s"))
            return
        self._timer = self._loop.call_at(again, self._look, again)

    def _fail(self, error: RedisError) -> None:
        self.open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()
        asked, self._asked = self._asked, deque()
        for _, answer, _ in asked:
            if not answer.done():
                answer.set_exception(error)
