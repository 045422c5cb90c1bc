"""Who opens connections for tasks, and asks sentinels where to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import connection as redis_connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .aline import LATE, AsyncLine
from .calls import connection, master_of, shares
from .place import Address
from .route import Route
from .trouble import hushed

__all__ = ["AsyncDial"]

_T = TypeVar("_T")


async def _in_time(limit_s: float, work: Callable[[], Awaitable[_T]]) -> _T:
    """Do *work* within *limit_s*; once more where it was our loop that was late.

    Raises:
        TimeoutError: It took longer.
    """
    begun = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            return await work()
    except TimeoutError:
        if time.monotonic() - begun < LATE * limit_s:
            raise TimeoutError(f"no answer in {limit_s:.2g} s") from None
    async with asyncio.timeout(limit_s):
        return await work()


class AsyncDial:
    """Opens connections to where a route leads."""

    def __init__(self, route: Route) -> None:
        self._route = route

    async def dial(self) -> AsyncLine:
        """Connect to the pool's server.

        Raises:
            RedisError, OSError: It could not be reached.
            LookupError: The sentinels know no master of that name.
        """
        address = self._route.address or await self._master()
        conn = self._connection(address, **self._route.place.options)

        async def connect() -> None:
            await conn.disconnect(nowait=True)  # of a first try that our loop was too late for
            with hushed(self._route.place):
                await conn.connect()

        try:
            await _in_time(self._route.place.timeout_s, connect)
        except BaseException as error:
            if isinstance(error, (RedisError, OSError)):
                self._route.lost(address)
            await conn.disconnect(nowait=True)
            raise
        return AsyncLine(conn, address, self._route.place.timeout_s)

    async def _master(self) -> Address:
        error: Exception = LookupError("no sentinel")
        for sentinel, limit_s in shares(self._route.place, self._route.sentinels()):
            try:
                master = master_of(await self._told_by(sentinel, limit_s), self._route.place)
            except (RedisError, OSError, LookupError) as failed:
                error = failed
            else:
                self._route.found(sentinel, master)
                return master
        raise error

    async def _told_by(self, sentinel: Address, limit_s: float) -> Any:
        place = self._route.place
        conn = self._connection(sentinel, **place.sentinel_options)

        async def ask() -> Any:
            await conn.disconnect(nowait=True)
            with hushed(place):
                await conn.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", place.master)
                return await conn.read_response()

        try:
            return await _in_time(limit_s, ask)
        finally:
            await conn.disconnect(nowait=True)

    def _connection(self, address: Address, **options: Any) -> Any:
        place, never = self._route.place, Retry(NoBackoff(), 0)
        return connection(redis_connection, never, place, address, socket_timeout=None, **options)
