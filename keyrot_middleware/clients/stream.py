"""The stream of a response: one object that the program reads, from its first event to its end.

The bytes go to the program as they came, but for an echo of the key. On the way an `EventReader`
reads what they report. A stream is read in two parts:

- Before it is open, by the call itself (serving.py), up to the first event that shows something.
  Until then the request may be sent again with another key, so what was read is kept. A refusal, or
  a page in place of an answer, never becomes a stream of the program's.
- Open, by the program. Nothing is sent again from here on. The lease of the call is held until the
  stream is over (runtime/held.py says who settles it): at its end, when it breaks, and when it is
  closed or dropped. An event that is an error ends it too: the lease is settled first, and then the
  program gets the bytes of the event.

There is one way to read, the coroutine `read`. Over a library without async it never suspends, and
`complete` runs it in one step. Only one thread or task reads at a time; for the others the stream
is busy. A program may close a stream that another thread is reading: its connection goes, and the
reader settles the lease when it notices.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from inspect import isawaitable
from typing import Any

from ..core.commands import Failed, StreamEnd
from ..core.failures import FailureFacts
from ..errors import handle_internal_error
from ..runtime.driver import complete
from ..runtime.held import Held
from ..secrets import Secret
from .errors import lost_connection
from .events import EventReader
from .redaction import Redact, Redacting, begun_key, redact_key, redacted_json

_BLANK = 32
"""No key has this byte or a lower one, and most events end with such."""


class EventError(Exception):
    """An error came inside a stream, where the program reads it. Never reaches a caller."""


class Stream(Held):
    """The bytes of one response."""

    def __init__(
        self,
        pieces: Any,
        close: Callable[[], object],
        reader: EventReader,
        headers: Mapping[str, str],
        *,
        key: Secret,
        redact: Redact,
    ) -> None:
        """Read nothing yet.

        Args:
            pieces: The bytes, an iterator or an async one.
            close: Releases the connection; may return an awaitable.
            reader: Reads the bytes.
            headers: Those of the response.
            key: The one that the request went with.
            redact: Takes keys out of exceptions.
        """
        self._pieces, self._close, self.reader = pieces, close, reader
        self._is_async = hasattr(pieces, "__anext__")
        self._headers, self._key, self._redact = headers, key, redact
        self._redacting = Redacting(redact)
        self._reading = threading.Lock()
        self._first: list[bytes] = []
        """What was read before it was open."""
        self._held_back = b""
        """The end of what was read, while it may be the beginning of the key."""
        self._is_closing = False
        """The program reads no further."""
        self.notes: list[str] = []
        """About each attempt, if the stream ends with an error event."""

    # A piece --------------------------------------------------------------------------------------

    async def _next(self) -> bytes | None:
        """Return the next bytes for the program; None at the end."""
        with self._redacting:
            if self._is_async:
                data = await anext(self._pieces, None)
            else:
                data = next(self._pieces, None)
        return self._take(data)

    def _take(self, data: bytes | None) -> bytes | None:
        """Read what has arrived, or that no more will; return what the program gets of it."""
        if not data:
            if data is None and self._held_back:
                data, self._held_back = self._held_back, b""
            return data
        try:
            self.reader.feed(data)
        except Exception:
            self.reader.give_up()
            handle_internal_error("clients")
        if self._held_back:
            data, self._held_back = self._held_back + data, b""
        data = redact_key(data, self._key)
        if data[-1] > _BLANK and (begun := begun_key(data, self._key)):
            data, self._held_back = data[:-begun], data[-begun:]
        return data

    # Before it is open ----------------------------------------------------------------------------

    def put_back(self, data: bytes) -> None:
        """Begin with bytes that were read of the response already."""
        self._first.append(self._take(data) or b"")

    async def read_first(self, deadline: Any = None) -> None:
        """Read until the first event that shows something is here, or all of the body is.

        Any event ends *deadline*: the work has begun.
        """
        while not self.reader.has_begun and await self._keep():
            if deadline is not None and self.reader.has_event:
                deadline.cancel()

    async def begin(self) -> str:
        """Return its beginning as text, which has more than blanks in it unless it is empty."""
        while not b"".join(self._first).strip() and await self._keep():
            pass
        return b"".join(self._first).decode("utf-8", "replace")

    async def read_up_to(self, most: int) -> tuple[bytes, bool]:
        """Return its first bytes, at least *most* of them, and whether that is all of it."""
        size, has_more = sum(map(len, self._first)), True
        while size <= most and (has_more := await self._keep()):
            size += len(self._first[-1])
        return b"".join(self._first), not has_more

    async def _keep(self) -> bool:
        """Read bytes that the program gets when it is open; return whether there were any left."""
        data = await self._next()
        if data is None:
            self._finish()
            return False
        self._first.append(data)
        return True

    # What it reports ------------------------------------------------------------------------------

    @property
    def error(self) -> Any:
        """The event that is an error, without keys: it may be quoted later."""
        error = self.reader.error
        return error and redacted_json(error, self._redact)

    def end(self, error: Exception | None) -> StreamEnd:
        """Return the usage of the stream, the names in it and why it broke."""
        failed: Failed | None = None
        reader = self.reader
        if not reader.is_over:
            self._finish()
        if error is not None:
            failed = Failed(lost_connection(error), error)
        elif reader.error is not None:
            facts = FailureFacts(None, self.error, self._headers.get("retry-after"))
            failed = Failed(facts, EventError())
        return StreamEnd(reader.usage, reader.names, failed, reader.reported)

    def _finish(self) -> None:
        try:
            self.reader.finish()
        except Exception:
            handle_internal_error("clients")

    # Open: the program reads it -------------------------------------------------------------------

    async def read(self) -> bytes:
        """Return the next bytes, at least one; none at the end, where the lease is settled.

        Raises:
            ValueError: Another thread is reading it.
            RuntimeError: Another task is reading it.
            BaseException: The error of the library that opened it.
        """
        if not self._reading.acquire(blocking=False):
            in_thread = self.driver is not None and self.driver.in_thread
            raise (ValueError if in_thread else RuntimeError)(_IS_READ)
        try:
            while not self.is_over:
                data, error = None, None
                try:
                    if self._first:
                        data = self._first.pop(0)
                    elif not self._is_closing:
                        data = await self.driver.in_span(self._next)  # type: ignore[union-attr]  # open
                except Exception as raised:
                    error = raised
                if data is None or self.reader.error is not None:
                    return await self._last(data or b"", error)
                if data:
                    return data
        except BaseException as raised:
            await self.interrupted(raised)
            raise
        else:
            return b""
        finally:
            self._reading.release()

    async def _last(self, data: bytes, error: Exception | None) -> bytes:
        """Settle the lease; return what is left for the program, such as an error event."""
        if self._is_closing and not self.reader.is_over:  # another thread has closed it
            self.abandon()
            if error is not None:
                raise error
            return b""
        broken = await self.ended(error)
        if isinstance(broken, EventError):
            self.notes += getattr(broken, "__notes__", ())
        elif broken is not None:
            raise broken
        return b"".join((data, *self._first, self._held_back))

    # Open: the program leaves it ------------------------------------------------------------------

    async def leave(self) -> None:
        """End the stream where the program closes it.

        Programs stop reading behind the last event, before the end of the bytes. Closed there, the
        stream is whole; closed before, the call is abandoned.
        """
        if self.reader.is_over and not self.is_over and self._reading.acquire(blocking=False):
            try:
                self._is_closing = True
                await self._last(b"", None)
            except BaseException as raised:
                await self.interrupted(raised)
                raise
            finally:
                self._reading.release()
        else:
            self.drop()
        await self.release()

    def drop(self) -> None:
        """End the stream where the program has released its connection, or will not read on.

        A thread or task that is reading it settles it, since it gets an error or the end now.
        """
        self._is_closing = True
        if self._reading.acquire(blocking=False):
            try:
                self.abandon()
            finally:
                self._reading.release()

    async def release(self) -> None:
        """Release the connection."""
        with suppress(Exception):
            closing = self._close()
            if isawaitable(closing):
                await closing

    # As the libraries read and close it -----------------------------------------------------------

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes; for a thread."""
        try:
            while data := complete(self.read()):
                yield data
        except GeneratorExit:  # dropped half-read: its connection is free at once, as without us
            if not self.reader.is_over:  # else it may be closed yet, as a whole stream
                self.drop()
            self._is_closing = True
            complete(self.release())
            raise

    def close(self) -> None:
        """End the stream; for a thread."""
        complete(self.leave())

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return this stream: a loop closes a generator that is dropped, while others close it."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes; for a task.

        Raises:
            StopAsyncIteration: The stream is over.
        """
        if not (data := await self.read()):
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        """End the stream; for a task."""
        await self.leave()


_IS_READ = "the stream is being read already"


@cache
def mixed_type(ours: type, *theirs: type) -> Any:
    """Return the class of our streams that is one of the library's too, which asks for that."""
    return type(ours.__name__, (ours, *theirs), {})
