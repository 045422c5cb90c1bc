"""Who opens connections for threads, and asks sentinels where to."""

from __future__ import annotations

from typing import Any

from redis import connection as redis_connection
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from .calls import connection, master_of, packed, reader, shares
from .line import Line
from .place import Address, Place
from .route import Route
from .trouble import hushed

__all__ = ["Dial", "check_library"]


class Dial:
    """Opens connections to where a route leads."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def lead(self, line: Line) -> None:
        """Connect *line* to the pool's server, wherever it led before.

        Raises:
            RedisError: It could not be reached.
            LookupError: The sentinels know no master of that name.
        """
        line.hang_up()
        address = self._route.address or self._master()
        with hushed(self._route.place):
            line.connect(self._connection(address, **self._route.place.options), address)

    def _master(self) -> Address:
        error: Exception = LookupError("no sentinel")
        for sentinel, limit_s in shares(self._route.place, self._route.sentinels()):
            try:
                master = master_of(self._told_by(sentinel, limit_s), self._route.place)
            except (RedisError, LookupError) as failed:
                error = failed
            else:
                self._route.found(sentinel, master)
                return master
        raise error

    def _told_by(self, sentinel: Address, limit_s: float) -> Any:
        place = self._route.place
        limits = {"socket_timeout": limit_s, "socket_connect_timeout": limit_s}
        conn = self._connection(sentinel, **limits, **place.sentinel_options)
        try:
            with hushed(place):
                conn.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", place.master)
                return conn.read_response()
        finally:
            conn.disconnect()

    def _connection(self, address: Address, **options: Any) -> Any:
        place, never = self._route.place, Retry(NoBackoff(), 0)
        options = {"socket_timeout": place.timeout_s, **options}
        return connection(redis_connection, never, place, address, **options)


def check_library() -> None:
    """Do what needs a library that is new enough; nothing is connected.

    Raises:
        TypeError: It knows no such argument.
        AttributeError: It has no such name.
    """
    host = ("localhost", 0)
    Dial(Route(Place("one", (host,))))._connection(host, db=0)
    packed(("PING",))
    reader()
