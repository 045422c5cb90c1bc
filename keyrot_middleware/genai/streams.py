"""An open stream of the SDK, its first chunk read, with its account kept."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

from ..core.commands import Failed, Opened, StreamEnd
from ..core.stream import StreamLedger
from .facts import failed
from .redact import Redact

__all__ = ["AsyncChunks", "Chunks", "open_async", "open_sync"]


class _Account:
    """What both kinds of stream know: the ledger, and how to read a failure."""

    def __init__(self, inner: Any, first: Any, redact: Redact) -> None:
        self._inner = inner
        self._first = first
        self._redact = redact
        self._ledger = StreamLedger()

    def _count(self, chunk: Any) -> Any:
        self._ledger.feed(chunk.body)
        return chunk

    def end(self, error: Exception | None) -> StreamEnd:
        """Tell what became of the stream: its usage, what it named, why it broke."""
        handled = sys.exception()  # by who asked for the next chunk
        why: Failed | None = failed(error, self._redact, handled) if error is not None else None
        return StreamEnd(self._ledger.usage, self._ledger.names, why)


class Chunks(_Account):
    """The chunks of a sync stream."""

    def __iter__(self) -> Iterator[Any]:
        """Give the chunks, the first included."""
        if self._first is not None:
            yield self._count(self._first)
            for chunk in self._inner:
                yield self._count(chunk)

    def close(self) -> None:
        """Close the SDK's own generator."""
        with suppress(Exception):
            self._inner.close()


class AsyncChunks(_Account):
    """The chunks of an async stream."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Give the chunks, the first included."""
        if self._first is not None:
            yield self._count(self._first)
            async for chunk in self._inner:
                yield self._count(chunk)

    async def aclose(self) -> None:
        """Close the SDK's own generator."""
        with suppress(Exception):
            await self._inner.aclose()


def open_sync(inner: Any, redact: Redact) -> Opened | Failed:
    """Read the first chunk: until it is here, another key may still serve."""
    handled = sys.exception()
    try:
        return Opened(Chunks(inner, next(inner, None), redact))
    except Exception as error:
        return failed(error, redact, handled)


async def open_async(inner: Any, redact: Redact) -> Opened | Failed:
    """Read the first chunk: until it is here, another key may still serve."""
    handled = sys.exception()
    try:
        return Opened(AsyncChunks(inner, await anext(inner, None), redact))
    except Exception as error:
        return failed(error, redact, handled)
