"""The body of a response that is read in pieces: up to its first event, and by the program.

The bytes go to the program unchanged, but for an echo of the key. What they report is read on the
way, and the lease ends with them: read to the end, closed or dropped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from inspect import isawaitable
from typing import Any

from ..core.commands import Failed, StreamEnd
from ..core.failures import FailureFacts
from ..errors import handle_internal_error
from ..runtime import runner
from ..runtime.driver import complete
from ..secrets import Secret
from .errors import lost_connection
from .events import EventReader
from .redaction import Redact, Redacting, begun_key, redact_key, redacted_json

_BLANK = 32
"""No key has this byte or a lower one, and most events end with such."""


class EventError(Exception):
    """An error came inside a stream, where the program reads it. Never reaches a caller."""


class Body:
    """The pieces and what they report. Over a sync library no coroutine of it suspends."""

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
        self._headers, self._key, self.redact = headers, key, redact
        self._held = b""
        """The end of what was read, while it may be the beginning of the key."""
        self.first: list[bytes] = []
        """What was read before the first event that shows something was complete."""
        self.is_closing = False
        """The program reads no further."""
        self.tail = b""
        """An error event: the program reads it once the lease is settled with it."""
        self.notes: list[str] = []
        """About each attempt, if the stream ends with an error event."""

    def take(self, data: bytes | None) -> bytes | None:
        """Count what has arrived, or that no more will; return what the program reads of it."""
        if not data:
            if data is None and self._held:
                data, self._held = self._held, b""
            return data
        try:
            self.reader.feed(data)
        except Exception:
            self.reader.give_up()
            handle_internal_error("clients")
        if self._held:
            data, self._held = self._held + data, b""
        data = redact_key(data, self._key)
        if data[-1] > _BLANK and (begun := begun_key(data, self._key)):
            data, self._held = data[:-begun], data[-begun:]
        return data

    @property
    def error(self) -> Any:
        """The event that is an error, without keys: it may be quoted later."""
        error = self.reader.error
        return error and redacted_json(error, self.redact)

    @property
    def ends_in_error(self) -> bool:
        """Whether an error came behind events that the program has."""
        return self.reader.error is not None and not self.reader.failed_at_once

    def failed_event(self) -> Failed:
        """Return the failure that is an event of the stream."""
        facts = FailureFacts(None, self.error, self._headers.get("retry-after"))
        return Failed(facts, EventError())

    def finish(self) -> None:
        """Read what is left in the reader."""
        try:
            self.reader.finish()
        except Exception:
            handle_internal_error("clients")

    def end(self, error: Exception | None) -> StreamEnd:
        """Return the usage of the stream, the names in it and why it broke."""
        failed: Failed | None = None
        if not self.reader.is_over:
            self.finish()
        if error is not None:
            failed = Failed(lost_connection(error), error)
        elif self.reader.error is not None:
            failed = self.failed_event()
        reader = self.reader
        return StreamEnd(reader.usage, reader.names, failed, reader.reported)

    async def read_first(self, deadline: Any = None) -> None:
        """Read until the first event that shows something is here, or all of the body is.

        Any event ends *deadline*: the work has begun.
        """
        while not self.reader.has_begun:
            data = await self._next()
            if deadline is not None and self.reader.has_event:
                deadline.cancel()
            if data is None:
                self.finish()
                return
            self.first.append(data)

    async def begin(self) -> bytes:
        """Return the first bytes, which are read again."""
        while not b"".join(self.first).strip():
            data = await self._next()
            if data is None:
                break
            self.first.append(data)
        return b"".join(self.first)

    async def _next(self) -> bytes | None:
        with Redacting(self.redact):
            if self._is_async:
                data = await anext(self._pieces, None)
            else:
                data = next(self._pieces, None)
        return self.take(data)

    def __iter__(self) -> Iterator[bytes]:
        """Return this body."""
        return self

    def __next__(self) -> bytes:
        """Return the next bytes; for a thread."""
        try:
            return complete(self.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return this body."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes.

        Raises:
            StopAsyncIteration: The body ended.
        """
        data: bytes | None = None
        if not self.is_closing:
            data = self.first.pop(0) if self.first else await self._next()
        if data is None:
            raise StopAsyncIteration
        if self.ends_in_error:
            self.tail, self._held = data + self._held, b""
            raise StopAsyncIteration
        return data

    async def read_of(self, relay: runner.Relay | runner.AsyncRelay) -> bytes:
        """Return the next bytes for the program, from the relay of this body; none at the end."""
        try:
            while (data := await relay.read()) is not None:
                if data:
                    return bytes(data)
        except EventError as error:
            self.notes += getattr(error, "__notes__", ())
        tail, self.tail = self.tail, b""
        return tail

    def drop(self, relay: runner.Relay | runner.AsyncRelay) -> None:
        """End the stream where the program has released its connection."""
        self.is_closing = True
        relay.abandon()

    async def aclose(self) -> None:
        """Release the connection."""
        with suppress(Exception):
            closing = self._close()
            if isawaitable(closing):
                await closing

    def close(self) -> None:
        """Release the connection; for a thread."""
        complete(self.aclose())

    async def leave(self, relay: runner.Relay | runner.AsyncRelay) -> None:
        """End the stream where the program closes it.

        Programs stop reading behind the last event, before the end of the bytes. Closed there, the
        stream is whole; closed before, the call is abandoned.
        """
        self.is_closing = True
        try:
            if self.reader.is_over:
                with suppress(EventError):
                    while await relay.read() is not None:
                        pass
            else:
                await relay.end()
        except (ValueError, RuntimeError):
            pass  # another thread or task reads it, and ends with an error now
        await self.aclose()


class Tee:
    """The stream of a response, of which the lease ends with it."""

    def __init__(self, body: Body, relay: runner.Relay) -> None:
        self._body, self._relay = body, relay

    def __iter__(self) -> Iterator[bytes]:
        try:
            while data := complete(self._body.read_of(self._relay)):
                yield data
        except GeneratorExit:  # dropped half-read: its connection is free at once, as without us
            self._body.is_closing = True
            if not self._body.reader.is_over:  # else it may be closed yet, as a whole stream
                with suppress(ValueError):
                    self._relay.close()
            self._body.close()
            raise

    def close(self) -> None:
        """End the stream."""
        complete(self._body.leave(self._relay))


class AsyncTee:
    """The same for async streams.

    No generator: a loop closes one that is dropped, while what is above closes it too.
    """

    def __init__(self, body: Body, relay: runner.Relay | runner.AsyncRelay) -> None:
        self._body, self._relay = body, relay

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not (data := await self._body.read_of(self._relay)):
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        """End the stream."""
        await self._body.leave(self._relay)


@cache
def mixed_type(ours: type, *theirs: type) -> Any:
    """Return the class of our streams that is one of the library's too, which asks for that."""
    return type(ours.__name__, (ours, *theirs), {})
