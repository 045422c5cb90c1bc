"""The body of a response that is read in pieces: up to its first event, and by the program.

The bytes go to the program unchanged, but for an echo of the key. What they report is read on the
way, and the lease ends with them: read to the end, closed or dropped.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from ..adapters.reading import transport_failure, with_served_tier
from ..adapters.redaction import ENOUGH, Redact, Redacting, redact_key
from ..core.commands import Failed, StreamEnd
from ..core.failures import FailureFacts
from ..core.interactions import ResponseLedger
from ..guard import handle_internal_error
from ..secrets import Secret

__all__ = [
    "LONGEST_BODY",
    "AsyncBody",
    "Body",
    "EventError",
    "aread_bounded",
    "auntil_enough",
    "read_bounded",
    "until_enough",
]

LONGEST_BODY = 32 * 1024 * 1024
"""Bytes of a body from a generator that are kept, so that it can be sent again. Google takes 20 MB
in one request (https://ai.google.dev/gemini-api/docs/files)."""


class EventError(Exception):
    """An error came inside a stream, where the program reads it. Never reaches a caller."""


class _Body:
    """What sync and async bodies share: the ledger, and the pieces up to the first event."""

    def __init__(
        self,
        pieces: Any,
        close: Callable[[], Any],
        ledger: ResponseLedger,
        headers: Any,
        *,
        key: Secret,
        redact: Redact,
    ) -> None:
        """Read nothing yet.

        Args:
            pieces: The bytes, an iterator or an async one.
            close: Releases the connection; returns an awaitable for an async body.
            ledger: Reads the bytes.
            headers: Those of the response.
            key: The one that the request went with.
            redact: Takes keys out of exceptions.
        """
        self._pieces, self._close, self.ledger = pieces, close, ledger
        self._headers, self._key, self._redact = headers, key, redact
        self.first: list[bytes] = []
        """What was read before the first event was complete."""
        self.is_closing = False
        """The program reads no further."""

    def _count(self, data: bytes) -> bytes:
        try:
            self.ledger.feed(data)
        except Exception:
            self.ledger = ResponseLedger("")
            handle_internal_error("http_clients")
        return redact_key(data, self._key)

    def finish(self) -> None:
        """Read what is left in the ledger."""
        try:
            self.ledger.finish()
        except Exception:
            handle_internal_error("http_clients")

    def end(self, error: Exception | None) -> StreamEnd:
        """Return the usage of the stream, the names in it and why it broke."""
        failed: Failed | None = None
        if not self.ledger.is_over:
            self.finish()
        if error is not None:
            failed = Failed(FailureFacts(transport=transport_failure(error)), error)
        elif self.ledger.error is not None:
            after = self._headers.get("retry-after")
            failed = Failed(FailureFacts(None, self.ledger.error, after), EventError())
        usage = with_served_tier(self.ledger.usage, self._headers)
        return StreamEnd(usage, self.ledger.names, failed)


class Body(_Body):
    """A sync one."""

    def read_first(self) -> None:
        """Read until the first event is here, or all of the body is."""
        while not self.ledger.has_begun:
            data = self._next()
            if data is None:
                self.finish()
                return
            self.first.append(data)

    def _next(self) -> bytes | None:
        with Redacting(self._redact):
            data = next(self._pieces, None)
        return self._count(data) if data is not None else None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes, the first included."""
        first, self.first = self.first, []
        yield from first
        while not self.is_closing and (data := self._next()) is not None:
            yield data

    def close(self) -> None:
        """Release the connection."""
        with suppress(Exception):
            self._close()

    def leave(self, relay: Any) -> None:
        """End the stream where the program closes it.

        Programs stop reading behind the last event, before the end of the bytes. Closed there, the
        stream is whole; closed before, the call is abandoned.
        """
        self.is_closing = True
        try:
            if self.ledger.is_over:
                with suppress(EventError):
                    for _ in relay:
                        pass
            else:
                relay.close()
        except ValueError:
            pass  # another thread reads it, and ends with an error now
        self.close()


class AsyncBody(_Body):
    """An async one."""

    async def read_first(self) -> None:
        """Read until the first event is here, or all of the body is."""
        while not self.ledger.has_begun:
            data = await self._next()
            if data is None:
                self.finish()
                return
            self.first.append(data)

    async def _next(self) -> bytes | None:
        with Redacting(self._redact):
            data = await anext(self._pieces, None)
        return self._count(data) if data is not None else None

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return this body."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes.

        Raises:
            StopAsyncIteration: The body ended.
        """
        if self.first:
            return self.first.pop(0)
        data = await self._next() if not self.is_closing else None
        if data is None:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        """Release the connection."""
        with suppress(Exception):
            await self._close()

    async def leave(self, relay: Any) -> None:
        """End the stream where the program closes it; see `Body.leave`."""
        self.is_closing = True
        try:
            if self.ledger.is_over:
                with suppress(EventError):
                    async for _ in relay:
                        pass
            else:
                await relay.aclose()
        except RuntimeError:
            pass  # another task reads it, and ends with an error now
        await self.aclose()


# Bodies up to a bound ----------------------------------------------------------------------------


def read_bounded(pieces: Iterator[bytes]) -> tuple[bytes, Any]:
    """Return the beginning of a body, and what is left of it; None for nothing."""
    read = bytearray()
    for piece in pieces:
        read += piece
        if len(read) > LONGEST_BODY:
            return bytes(read), pieces
    return bytes(read), None


async def aread_bounded(pieces: AsyncIterator[bytes]) -> tuple[bytes, Any]:
    """Async version of `read_bounded`."""
    read = bytearray()
    async for piece in pieces:
        read += piece
        if len(read) > LONGEST_BODY:
            return bytes(read), pieces
    return bytes(read), None


def until_enough(pieces: Iterable[bytes]) -> bytes:
    """Read as much of an error as is kept."""
    read = bytearray()
    for piece in pieces:
        read += piece[: ENOUGH - len(read)]
        if len(read) == ENOUGH:
            break
    return bytes(read)


async def auntil_enough(pieces: AsyncIterable[bytes]) -> bytes:
    """Async version of `until_enough`."""
    read = bytearray()
    async for piece in pieces:
        read += piece[: ENOUGH - len(read)]
        if len(read) == ENOUGH:
            break
    return bytes(read)
