"""The body of a response that is read in pieces: up to its first event, and by the program.

The bytes go to the program unchanged, but for an echo of the key. What they report is read on the
way, and the lease ends with them: read to the end, closed or dropped.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import cache
from inspect import isawaitable
from typing import Any

from ..core.commands import Failed, StreamEnd
from ..core.failures import FailureFacts
from ..errors import handle_internal_error
from ..runtime.driver import complete
from ..secrets import Secret
from . import transport_failure
from .redaction import ENOUGH, Redact, Redacting, redact_key

LONGEST_BODY = 32 * 1024 * 1024
"""Bytes of a body from a generator that are kept, so that it can be sent again. Google takes 20 MB
in one request (https://ai.google.dev/gemini-api/docs/files)."""


class EventError(Exception):
    """An error came inside a stream, where the program reads it. Never reaches a caller."""


class Body:
    """The pieces and what they report. Over a sync library no coroutine of it suspends."""

    def __init__(
        self,
        pieces: Any,
        close: Callable[[], Any],
        reader: Any,
        headers: Any,
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
        self.first: list[bytes] = []
        """What was read before the first event was complete."""
        self.is_closing = False
        """The program reads no further."""
        self.tail = b""
        """An error event: the program reads it once the lease is settled with it."""
        self.notes: list[str] = []
        """About each attempt, if the stream ends with an error event."""

    def _take(self, data: bytes | None) -> bytes | None:
        """Count what has arrived, or that no more will; return what the program reads of it."""
        if not data:
            return data
        try:
            self.reader.feed(data)
        except Exception:
            self.reader.give_up()
            handle_internal_error("adapters")
        return redact_key(data, self._key)

    @property
    def error(self) -> Any:
        """The event that is an error, without keys: it may be quoted later."""
        error = self.reader.error
        return error and json.loads(self.redact(json.dumps(error)))

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
            handle_internal_error("adapters")

    def end(self, error: Exception | None) -> StreamEnd:
        """Return the usage of the stream, the names in it and why it broke."""
        failed: Failed | None = None
        if not self.reader.is_over:
            self.finish()
        if error is not None:
            failed = Failed(FailureFacts(transport=transport_failure(error)), error)
        elif self.reader.error is not None:
            failed = self.failed_event()
        reader = self.reader
        return StreamEnd(reader.usage, reader.names, failed, reader.reported)

    async def read_first(self) -> None:
        """Read until the first event is here, or all of the body is."""
        while not self.reader.has_begun:
            data = await self._next()
            if data is None:
                self.finish()
                return
            self.first.append(data)

    async def _next(self) -> bytes | None:
        with Redacting(self.redact):
            if self._is_async:
                data = await anext(self._pieces, None)
            else:
                data = next(self._pieces, None)
        return self._take(data)

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
            self.tail = data
            raise StopAsyncIteration
        return data

    async def read_of(self, relay: Any) -> bytes:
        """Return the next bytes for the program, from the relay of this body; none at the end."""
        try:
            while (data := await relay.read()) is not None:
                if data:
                    return bytes(data)
        except EventError as error:
            self.notes += getattr(error, "__notes__", ())
        tail, self.tail = self.tail, b""
        return tail

    def drop(self, relay: Any) -> None:
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

    async def leave(self, relay: Any) -> None:
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

    def __init__(self, body: Body, relay: Any) -> None:
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

    def __init__(self, body: Body, relay: Any) -> None:
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


# Bodies up to a bound ----------------------------------------------------------------------------


async def read_bounded(pieces: Any, most: int = LONGEST_BODY) -> tuple[bytes, Any]:
    """Return the beginning of a body, and what is left of it; None for nothing."""
    read, is_async = bytearray(), hasattr(pieces, "__anext__")
    while (piece := await anext(pieces, None) if is_async else next(pieces, None)) is not None:
        read += piece
        if len(read) > most:
            return bytes(read), pieces
    return bytes(read), None


async def until_enough(pieces: Any) -> bytes:
    """Read as much of an error as is kept."""
    return (await read_bounded(pieces, ENOUGH))[0][:ENOUGH]
