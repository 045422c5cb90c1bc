"""An open stream of the SDK: its first chunk is read, and its usage is counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..adapters.reading import with_served_tier
from ..adapters.redaction import Forgetting, Redact, redact_key
from ..core.commands import Failed, StreamEnd, StreamOpened
from ..core.usage import StreamLedger
from ..secrets import Secret
from .call_info import failed_from_error
from .key_injection import ApiInjection

__all__ = ["AsyncChunks", "Chunks", "hide_key", "open_async", "open_sync"]


class _ChunkReader:
    """What sync and async streams share: the ledger, and the reading of failures."""

    def __init__(
        self,
        inner: Any,
        first: Any,
        send: ApiInjection,
        redact: Redact,
        on_body: Callable[[object], None] | None,
    ) -> None:
        self._inner = inner
        self._first = first
        self._response = send.response
        self._key = send.key_sent
        self._redact = redact
        self._on_body = on_body
        self._ledger = StreamLedger()

    def _count(self, chunk: Any) -> Any:
        hide_key(chunk, self._key)
        self._ledger.feed(chunk.body)
        if self._on_body is not None:
            self._on_body(chunk.body)
        return chunk

    def end(self, error: Exception | None) -> StreamEnd:
        """Return the usage of the stream, the names in it and why it broke."""
        handled = sys.exception()  # by the reader of the stream
        why: Failed | None = (
            failed_from_error(error, self._redact, handled) if error is not None else None
        )
        headers = getattr(self._response, "headers", None)
        usage = with_served_tier(self._ledger.usage, headers)
        return StreamEnd(usage, self._ledger.names, why)


class Chunks(_ChunkReader):
    """The chunks of a sync stream."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the chunks, the first included."""
        if self._first is not None:
            yield self._count(self._first)
            while True:
                with Forgetting():
                    chunk = next(self._inner, None)
                if chunk is None:
                    return
                yield self._count(chunk)

    def close(self) -> None:
        """Close the generator of the SDK, and release its connection."""
        _close(self._inner, self._response)


class AsyncChunks(_ChunkReader):
    """The chunks of an async stream."""

    def __aiter__(self) -> AsyncChunks:
        """Return this stream."""
        return self

    async def __anext__(self) -> Any:
        """Return the next chunk; the first has been read already.

        Raises:
            StopAsyncIteration: The stream ended.
        """
        chunk, self._first = self._first, None
        if chunk is None:
            with Forgetting():
                chunk = await anext(self._inner)
        return self._count(chunk)

    async def aclose(self) -> None:
        """Close the generator of the SDK, and release its connection."""
        await _aclose(self._inner, self._response)


def open_sync(
    inner: Any,
    send: ApiInjection,
    redact: Redact,
    on_body: Callable[[object], None] | None = None,
) -> StreamOpened | Failed:
    """Read the first chunk: before it arrives, another key may still serve the call.

    Args:
        inner: The stream.
        send: Its key.
        redact: Redacts keys in errors.
        on_body: Called with the text of each chunk.
    """
    handled = sys.exception()
    try:
        with Forgetting():
            first = next(inner, None)
    except Exception as error:
        _close(inner, send.response)  # the next attempt needs a connection too
        return send.failed(error, redact, handled)
    return StreamOpened(Chunks(inner, first, send, redact, on_body))


async def open_async(
    inner: Any,
    send: ApiInjection,
    redact: Redact,
    on_body: Callable[[object], None] | None = None,
) -> StreamOpened | Failed:
    """Async version of `open_sync`."""
    handled = sys.exception()
    try:
        with Forgetting():
            first = await anext(inner, None)
    except Exception as error:
        await _aclose(inner, send.response)  # the next attempt needs a connection too
        return send.failed(error, redact, handled)
    return StreamOpened(AsyncChunks(inner, first, send, redact, on_body))


def hide_key(response: Any, key: Secret) -> None:
    """Redact the key that a request was sent with in what the SDK has read of its response."""
    body = response.body
    if body and (hidden := redact_key(body, key)) != body:
        response.body = hidden


def _close(inner: Any, response: Any) -> None:
    """Close the SDK's generator and its response, which keeps a connection until it is closed."""
    with suppress(Exception):
        inner.close()
    with suppress(Exception):
        if response is not None:
            response.response_stream.close()


async def _aclose(inner: Any, response: Any) -> None:
    """Close an async stream of httpx or of aiohttp."""
    with suppress(Exception):
        await inner.aclose()
    with suppress(Exception):
        if response is not None:
            stream = response.response_stream
            await stream.aclose() if hasattr(stream, "aclose") else stream.release()
