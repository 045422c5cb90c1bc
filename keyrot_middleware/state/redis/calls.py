"""What threads and tasks share of their connections: the calls, the lines, how to make one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from .place import Address, Place
from .scripts import Script

__all__ = ["MOST_TRIES", "Call", "Line", "connection", "master_of"]

MOST_TRIES = 3
"""A script is sent by digest, in full where that is unknown, and where a cluster points to."""
FRESH_S = 1.0
"""A line that was used within this time is not looked at again before it is used."""


class Call:
    """A script with its arguments: by digest, or in full for a server that forgot it."""

    __slots__ = ("_key", "_script", "_words")

    def __init__(self, script: Script, key: str, words: Iterable[Any]) -> None:
        self._script, self._key, self._words = script, key, words

    @property
    def digest(self) -> str:
        """Tell the script's digest."""
        return self._script.digest

    @property
    def brief(self) -> tuple[Any, ...]:
        """Name the script by its digest."""
        return ("EVALSHA", self._script.digest, 1, self._key, *self._words)

    @property
    def full(self) -> tuple[Any, ...]:
        """Send the script itself, which the server keeps from then on."""
        return ("EVAL", self._script.text, 1, self._key, *self._words)


class Line:
    """One connection, where it leads, and the call whose answer has not been read yet."""

    __slots__ = ("address", "conn", "knows", "owed", "used_at")

    def __init__(self, conn: Any, address: Address) -> None:
        self.lead(conn, address)
        self.owed: Call | None = None
        self.used_at = time.monotonic()

    def lead(self, conn: Any, address: Address) -> None:
        """Become the connection *conn* to *address*."""
        self.conn, self.address = conn, address
        self.knows: set[str] = set()
        """Scripts that the server surely has: what it has not must not be left unread."""

    @property
    def stale(self) -> bool:
        """It has rested for so long that the server may have closed it."""
        return time.monotonic() - self.used_at > FRESH_S


def connection(module: Any, retry: Any, place: Place, address: Address, **more: Any) -> Any:
    """Make a connection of redis-py's, unopened.

    Args:
        module: `redis.connection`, or `redis.asyncio.connection`.
        retry: That module's way to say "never again by yourself".
        place: Certificates and time limits.
        address: Where to.
        more: Credentials, database, time limits of one kind of connection.
    """
    common = {"retry": retry, "protocol": 2, "socket_connect_timeout": place.timeout_s, **more}
    if place.kind == "unix":
        return module.UnixDomainSocketConnection(path=address[0], **common)
    made = module.SSLConnection if place.tls else module.Connection
    return made(host=address[0], port=address[1], **common)


def master_of(reply: Any, place: Place) -> Address:
    """Read what a sentinel says of the master.

    Raises:
        LookupError: It knows none of that name.
    """
    if not reply:
        raise LookupError(f"the sentinel knows no master {place.master!r}")
    host, port = reply
    return host.decode(), int(port)
