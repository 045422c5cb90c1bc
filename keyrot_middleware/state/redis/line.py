"""One connection of a thread's: redis-py opens it and logs in, the rest is two lines on its socket.

redis-py's own way to send and to read costs as much as the server's round trip, in a process whose
caches are full of other things.
"""

from __future__ import annotations

import time
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .calls import Call, reader
from .place import Address

__all__ = ["Line"]

FRESH_S = 1.0
"""A line that was used within this time is not looked at again before it is used."""
CHUNK = 16_384


class Line:
    """A connection, where it leads, and the call whose answer has not been read yet."""

    __slots__ = ("_buffer", "_conn", "_reader", "_sock", "address", "knows", "owed", "used_at")

    def __init__(self) -> None:
        self._conn: Any = None
        self._sock: Any = None
        self._reader: Any = None
        self._buffer = bytearray(CHUNK)
        self.address: Address = ("", 0)
        self.owed: Call | None = None
        self.used_at = time.monotonic()
        self.knows: set[str] = set()
        """Scripts that the server surely has: what it has not must not be left unread."""

    def connect(self, conn: Any, address: Address) -> None:
        """Become the connection *conn* to *address*, and open it.

        Raises:
            RedisError: It could not be opened.
        """
        self._conn, self.address, self.knows = conn, address, set()
        conn.connect()
        self._sock, self._reader = conn._sock, reader()

    def send(self, command: bytes) -> None:
        """Send a command, or several.

        Raises:
            RedisError: It could not be sent.
        """
        try:
            self._sock.sendall(command)
        except OSError as error:
            raise self._failure(error) from error

    def read(self) -> Any:
        """Wait for one answer; a refusal is a value.

        Raises:
            RedisError: None came in time.
        """
        while (reply := self._reader.gets()) is False:
            try:
                size = self._sock.recv_into(self._buffer)
            except OSError as error:
                raise self._failure(error) from error
            if not size:
                raise RedisConnectionError("the server closed the connection")
            self._reader.feed(self._buffer, 0, size)
        return reply

    @property
    def stale(self) -> bool:
        """It has rested for so long that the server may have closed it."""
        return time.monotonic() - self.used_at > FRESH_S

    @property
    def closed(self) -> bool:
        """Tell whether the server closed it: where nothing is owed, what can be read is that."""
        limit_s = self._sock.gettimeout()
        try:
            self._sock.settimeout(0)
            self._sock.recv(1)
        except OSError as error:  # nothing to read yet; over TLS it has another name
            return type(error).__name__ not in {"BlockingIOError", "SSLWantReadError"}
        finally:
            self._sock.settimeout(limit_s)
        return True

    def hang_up(self) -> None:
        """Close it."""
        if self._conn is not None:
            self._conn.disconnect()

    def _failure(self, error: OSError) -> Exception:
        if isinstance(error, TimeoutError):
            return RedisTimeoutError(f"no answer in {self._sock.gettimeout():g} s")
        return RedisConnectionError(str(error))
