"""httpx and httpx2: the transport that a client picks for an address, over the pool.

Below the transport's callers are hooks, auth, redirects and cookies: none of them sees a key of the
pool, or takes it along. Above it nothing is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, suppress
from functools import cache
from itertools import chain
from math import inf
from typing import Any

from ..adapters.pooled_calls import PooledCalls
from ..adapters.reading import transport_failure
from ..adapters.redaction import (
    Redacting,
    kept_error,
    redact_key,
    scrub_head,
)
from ..core.commands import Done, Failed, StreamOpened
from ..core.failures import FailureFacts
from ..core.model import Lease
from ..guard import handle_internal_error
from ..runtime import runner
from ..secrets import Secret
from .bodies import (
    AsyncBody,
    Body,
    EventError,
    aread_bounded,
    auntil_enough,
    read_bounded,
    until_enough,
)
from .calls import (
    KEY_NAMES,
    NO_RETRY,
    Call,
    Incoming,
    Refused,
    Reply,
    home_key,
    read,
    with_key_header,
    without_key,
)

__all__ = ["HttpxTransports", "PooledTransport"]

_DEFAULT_TIMEOUT = {"connect": 5.0, "read": 5.0, "write": 5.0, "pool": 5.0}
"""httpx's own: the program has set none."""
_CODED = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
_ENCODING = b"accept-encoding"


class HttpxTransports:
    """Serves requests of one library, httpx or httpx2."""

    def __init__(self, calls: PooledCalls | None, library: Any) -> None:
        """Serve a pool.

        Args:
            calls: None where no key was found at all.
            library: The module.
        """
        self._calls, self._library = calls, library

    # What a request is ----------------------------------------------------------------------------

    def read(self, request: Any, content: tuple[bytes, Any] | None = None) -> Any:
        """Return what to do with a request, whose *content* may be read; see `calls.read`."""
        try:
            timeout = request.extensions.get("timeout") or {}
            limit = None if timeout == _DEFAULT_TIMEOUT else timeout.get("read")
            incoming = Incoming(
                request.method,
                str(request.url),
                _plain(request.headers),
                lambda: content or self._content(request),
                inf if limit is None else limit,
            )
            return read(self._calls, incoming)
        except Exception:
            handle_internal_error("http_clients")
            return None

    def _content(self, request: Any) -> tuple[bytes, Any]:
        with suppress(self._library.RequestNotRead):
            return request.content, None
        return read_bounded(iter(request.stream))

    async def aread(self, request: Any) -> Any:
        """Return what to do with a request of an async client, whose body may come from a task."""
        content = None
        if self._calls is not None:
            try:
                content = request.content, None
            except self._library.RequestNotRead:
                if isinstance(request.stream, self._library.AsyncByteStream):
                    content = await aread_bounded(aiter(request.stream))
        return self.read(request, content)

    def _copy(self, call: Call, request: Any, key: Secret, sought: str) -> Any:
        """Return the program's request with one key; it shares nothing that changes."""
        target, name = call.target_of(sought), call.key_header(key)
        headers = [pair for pair in request.headers.raw if pair[0].lower() not in _KEY_NAMES]
        headers = [*headers, (name[0].encode(), name[1].encode())]
        if call.stream:  # or an echo of the key, and what it used, could not be read on the way
            headers = [pair for pair in headers if pair[0].lower() != _ENCODING]
            headers.append((_ENCODING, b"identity"))
        if sought or target.body is not call.content:
            headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
            headers.append((b"Content-Length", str(len(target.body)).encode()))
        stream: Any = self._library.ByteStream(target.body)
        if call.rest is not None:
            kind = _tee_type(_Chained, self._library.SyncByteStream, self._library.AsyncByteStream)
            stream = kind(target.body, call.take_rest())
        return self._library.Request(
            target.method,
            request.url if target.url == str(request.url) else target.url,
            headers=headers,
            stream=stream,
            extensions=request.extensions,
        )

    def with_key(self, request: Any, key: Secret) -> Any:
        """Return a request with *key* in place of its placeholder."""
        headers = self._library.Headers(request.headers.raw)
        with_key_header(headers, key)
        return self._library.Request(
            request.method,
            without_key(str(request.url)),
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )

    # What a response is ---------------------------------------------------------------------------

    def _decoded(self, coding: str | None, raw: bytes) -> bytes:
        if not coding:
            return raw
        try:
            made = self._library.Response(200, headers={"content-encoding": coding}, content=raw)
            decoded: bytes = made.content
        except Exception:  # not what it says, or in a coding that needs another library
            return raw
        return decoded

    def _rebuilt(self, response: Any, content: bytes) -> Any:
        """Return an unread response like another one, with another content."""
        headers = [pair for pair in response.headers.raw if pair[0].lower() not in _CODED]
        headers.append((b"Content-Length", str(len(content)).encode()))
        return self._library.Response(
            response.status_code,
            headers=headers,
            stream=self._library.ByteStream(content),
            extensions=response.extensions,
        )

    def _failed(self, call: Call, response: Any, body: bytes, event: Any = None) -> Failed:
        charset = response.charset_encoding
        kept = kept_error(response.status_code, body, call.redact, charset)
        rebuilt = self._rebuilt(response, kept)
        if event is not None:
            after = response.headers.get("retry-after")
            return Failed(FailureFacts(None, event, after), Refused(rebuilt, event))
        text = kept.decode("utf-8", "replace")
        return call.refused(response.status_code, text, response.headers, rebuilt)

    def _whole(self, call: Call, response: Any, raw: bytes, key: Secret, *, in_full: bool) -> Done:
        """Return a response that was read, as unread as it came."""
        headers = _plain(response.headers)
        content = self._decoded(headers.get("content-encoding"), raw)
        hidden = redact_key(content, key)
        if hidden != content:
            response = self._rebuilt(response, hidden)
        else:
            response.stream = self._library.ByteStream(raw)
        try:
            text = hidden.decode("utf-8", "replace")
            return call.done(response, text, headers, in_full=in_full)
        except Exception:
            handle_internal_error("http_clients")
            return Done(response)

    def reply(self, reply: Reply) -> Any:
        """Return a response of our own."""
        stream = self._library.ByteStream(reply.body)
        return self._library.Response(reply.code, headers=reply.headers, stream=stream)

    def _last(self, error: Exception) -> Any:
        """Return the response that ends a call; raise what is none."""
        if not isinstance(error, Refused):
            raise error
        if isinstance(error.response, Reply):
            return self.reply(error.response)
        error.response.headers[NO_RETRY] = "false"  # it was sent again here already
        return error.response

    # Sync -----------------------------------------------------------------------------------------

    def serve(self, call: Call, request: Any, transport: Any) -> Any:
        """Send a request through the pool."""
        with call:
            while True:
                try:
                    return self._serve(call, request, transport)
                except Exception as failure:
                    goes_on = call.go_on(failure)
                if not goes_on:
                    return self._last(call.take_error())

    def _serve(self, call: Call, request: Any, transport: Any) -> Any:
        observer, opened = call.observe(), list[Any]()

        def send(lease: Lease, get: str = "") -> Any:
            key, in_full = call.key(lease), observer is not None or lease.has_budget
            try:
                with Redacting(call.redact):
                    response = transport.handle_request(self._copy(call, request, key, get))
                    scrub_head(response, call.redact)
                    reply = self._received(call, response, key, in_full)
            except Exception as error:
                return Failed(FailureFacts(transport=transport_failure(error)), error)
            if isinstance(reply, StreamOpened):
                opened[:] = (response, reply.stream)
            return reply

        found = runner.stream(call.calls.pool, call.call, send, call.no_key, observer)
        if opened:
            response, body = opened
            opened.clear()
            response.stream = _tee_type(_Tee, self._library.SyncByteStream)(body, found)
            return response
        return found

    def _received(self, call: Call, response: Any, key: Secret, in_full: bool) -> Any:
        if response.status_code >= 400:
            with closing(response):
                return self._failed(call, response, until_enough(response.iter_bytes()))
        if response.status_code >= 300:
            return Done(response)
        if not call.is_stream(response.headers):
            raw = b"".join(response.stream)
            response.stream.close()
            return self._whole(call, response, raw, key, in_full=in_full)
        stream, headers = response.stream, response.headers
        ledger = call.ledger(headers)
        body = Body(iter(stream), stream.close, ledger, headers, key=key, redact=call.redact)
        try:
            body.read_first()
            if not body.ledger.failed_at_once:
                return StreamOpened(body)
            rest = until_enough(body)
        except BaseException:
            body.close()  # the next attempt needs a connection too
            raise
        body.close()
        return self._failed(call, response, rest, body.ledger.error)

    # Async: the same ------------------------------------------------------------------------------

    async def aserve(self, call: Call, request: Any, transport: Any) -> Any:
        """Send a request through the pool."""
        with call:
            while True:
                try:
                    return await self._aserve(call, request, transport)
                except Exception as failure:
                    goes_on = call.go_on(failure)
                if not goes_on:
                    return self._last(call.take_error())

    async def _aserve(self, call: Call, request: Any, transport: Any) -> Any:
        observer, opened = call.observe(), list[Any]()

        async def send(lease: Lease, get: str = "") -> Any:
            key, in_full = call.key(lease), observer is not None or lease.has_budget
            try:
                with Redacting(call.redact):
                    sent = self._copy(call, request, key, get)
                    response = await transport.handle_async_request(sent)
                    scrub_head(response, call.redact)
                    reply = await self._areceived(call, response, key, in_full)
            except Exception as error:
                return Failed(FailureFacts(transport=transport_failure(error)), error)
            if isinstance(reply, StreamOpened):
                opened[:] = (response, reply.stream)
            return reply

        found = await runner.astream(call.calls.pool, call.call, send, call.no_key, observer)
        if opened:
            response, body = opened
            opened.clear()
            response.stream = _tee_type(_AsyncTee, self._library.AsyncByteStream)(body, found)
            return response
        return found

    async def _areceived(self, call: Call, response: Any, key: Secret, in_full: bool) -> Any:
        if response.status_code >= 400:
            async with aclosing(response):
                said = await auntil_enough(response.aiter_bytes())
            return self._failed(call, response, said)
        if response.status_code >= 300:
            return Done(response)
        stream, headers = response.stream, response.headers
        if not call.is_stream(headers):
            try:
                raw = b"".join([part async for part in stream])
            finally:
                await stream.aclose()
            return self._whole(call, response, raw, key, in_full=in_full)
        ledger = call.ledger(headers)
        body = AsyncBody(aiter(stream), stream.aclose, ledger, headers, key=key, redact=call.redact)
        try:
            await body.read_first()
            if not body.ledger.failed_at_once:
                return StreamOpened(body)
            rest = await auntil_enough(body)
        except BaseException:
            await body.aclose()
            raise
        await body.aclose()
        return self._failed(call, response, rest, body.ledger.error)


_KEY_NAMES = frozenset(name.encode() for name in KEY_NAMES)


def _plain(headers: Any) -> dict[str, str]:
    """Return headers as a dictionary: each look-up in those of httpx takes microseconds."""
    return {name.decode("latin-1").lower(): text.decode("latin-1") for name, text in headers.raw}


class PooledTransport:
    """A transport over the pool."""

    def __init__(self, transport: Any, library: HttpxTransports) -> None:
        self._transport, self._library = transport, library

    def handle_request(self, request: Any) -> Any:
        """Send a request through the pool, or as it is."""
        library, found = self._library, self._library.read(request)
        if isinstance(found, Call):
            return library.serve(found, request, self._transport)
        if isinstance(found, Reply):
            return library.reply(found)
        if isinstance(found, Secret):
            request = library.with_key(request, found)
        return self._transport.handle_request(request)

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request through the pool, or as it is."""
        library, found = self._library, await self._library.aread(request)
        if isinstance(found, Call) and not _in_asyncio():
            found = None if found.own else home_key(found.calls)
        if isinstance(found, Call):
            return await library.aserve(found, request, self._transport)
        if isinstance(found, Reply):
            return library.reply(found)
        if isinstance(found, Secret):
            request = library.with_key(request, found)
        return await self._transport.handle_async_request(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _in_asyncio() -> bool:
    """Return whether the task is one of asyncio; with trio a call cannot wait for a key."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# Bytes ------------------------------------------------------------------------------------------


class _Tee:
    """The stream of a response, of which the lease ends with it."""

    def __init__(self, body: Body, relay: Any) -> None:
        self._body, self._relay = body, relay

    def __iter__(self) -> Iterator[bytes]:
        with suppress(EventError):
            # `yield from` would close them with this generator, before close() is called
            for data in self._relay:  # noqa: UP028
                yield data

    def close(self) -> None:
        self._body.leave(self._relay)


class _AsyncTee:
    """The same for async streams.

    No generator: a loop closes one that is dropped, while what is above closes it too.
    """

    def __init__(self, body: AsyncBody, relay: Any) -> None:
        self._body, self._relay = body, relay

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            data: bytes = await anext(self._relay)
        except EventError:
            raise StopAsyncIteration from None
        return data

    async def aclose(self) -> None:
        await self._body.leave(self._relay)


class _Chained:
    """A body of which the beginning was read."""

    def __init__(self, begin: bytes, rest: Any) -> None:
        self._begin, self._rest = begin, rest

    def __iter__(self) -> Iterator[bytes]:
        return chain((self._begin,), self._rest)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._begin
        async for data in self._rest:
            yield data

    def close(self) -> None:
        """Do nothing: the program's body has no end of its own."""

    async def aclose(self) -> None:
        """Do nothing."""


@cache
def _tee_type(ours: type, *theirs: type) -> Any:
    """Return the class of our streams that is one of the library's too, which asks for that."""
    return type(ours.__name__, (ours, *theirs), {})
