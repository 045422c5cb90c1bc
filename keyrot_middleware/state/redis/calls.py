"""What threads and tasks share: calls, and how a connection is opened, written and read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from inspect import signature
from typing import Any

import hiredis
from redis.exceptions import InvalidResponse, ResponseError

from .place import Address, Place
from .scripts import Script

__all__ = ["MOST_TRIES", "Call", "bulk", "connection", "master_of", "packed", "reader", "shares"]

MOST_TRIES = 3
"""A script is sent by digest, in full where that is unknown, and where a cluster points to."""
LOOK = 2.0
"""How many times the time limit of one answer a look may take, however many sentinels there are."""
LEAST = 0.1
"""What each of them has of the time limit at the least, if our own process was late."""


class Call:
    """A script with its arguments: by digest, or in full for a server that forgot it."""

    __slots__ = ("_key", "_more", "_script", "_words")

    def __init__(
        self, script: Script, key: str, words: Iterable[Any], more: tuple[int, bytes] = (0, b"")
    ) -> None:
        """Write nothing yet.

        Args:
            script: The script.
            key: Of the slot in a cluster.
            words: Its arguments.
            more: Further ones that are written already: how many, and as `bulk` gives them.
        """
        self._script, self._key, self._words, self._more = script, key, words, more

    @property
    def digest(self) -> str:
        """Tell the script's digest."""
        return self._script.digest

    @property
    def brief(self) -> bytes:
        """Name the script by its digest, in the server's protocol."""
        return self._written("EVALSHA", self._script.digest)

    @property
    def full(self) -> bytes:
        """Send the script itself, which the server keeps from then on."""
        return self._written("EVAL", self._script.text)

    def _written(self, command: str, which: str) -> bytes:
        words = (command, which, 1, self._key, *self._words)
        number, more = self._more
        if not number:
            return packed(words)
        _, _, first = packed(words).partition(b"\r\n")
        return b"*%d\r\n%b%b" % (len(words) + number, first, more)


def packed(words: Iterable[Any]) -> bytes:
    """Write one command in the server's protocol."""
    command: bytes = hiredis.pack_command(tuple(words))
    return command


def bulk(word: bytes) -> bytes:
    """Write one word of a command in the server's protocol."""
    return b"$%d\r\n%b\r\n" % (len(word), word)


def reader() -> Any:
    """Make what reads answers; a refusal is a value."""
    return hiredis.Reader(protocolError=InvalidResponse, replyError=ResponseError)


def connection(module: Any, retry: Any, place: Place, address: Address, **more: Any) -> Any:
    """Make a connection of redis-py's, unopened.

    Args:
        module: `redis.connection`, or `redis.asyncio.connection`.
        retry: That module's way to say "never again by yourself".
        place: Certificates and time limits.
        address: Where to.
        more: Credentials, database, time limits of one kind of connection.
    """
    common = {
        "retry": retry,
        "protocol": 2,
        "socket_connect_timeout": place.timeout_s,
        **_quiet(module.AbstractConnection),
        **more,
    }
    if place.kind == "unix":
        return module.UnixDomainSocketConnection(path=address[0], **common)
    made = module.SSLConnection if place.tls else module.Connection
    return made(host=address[0], port=address[1], **common)


@cache
def _quiet(made: Any) -> dict[str, None]:
    """Leave out the introduction of the library, two round trips for each connection."""
    names = signature(made.__init__).parameters
    return (
        {"driver_info": None} if "driver_info" in names else {"lib_name": None, "lib_version": None}
    )


def shares(place: Place, sentinels: Sequence[Address]) -> Iterator[tuple[Address, float]]:
    """Give each sentinel, when its turn comes, its part of the time that is left for the look."""
    limit_s = place.timeout_s
    end = time.monotonic() + LOOK * limit_s
    for number, sentinel in enumerate(sentinels):
        left_s = (end - time.monotonic()) / (len(sentinels) - number)
        yield sentinel, min(limit_s, max(left_s, LEAST * limit_s))


def master_of(reply: Sequence[bytes] | None, place: Place) -> Address:
    """Read what a sentinel says of the master.

    Raises:
        LookupError: It knows none of that name.
    """
    if not reply:
        raise LookupError(f"the sentinel knows no master {place.master!r}")
    host, port = reply
    return host.decode(), int(port)
