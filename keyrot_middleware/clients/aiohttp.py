"""aiohttp: a client middleware below those of the program, over the pool.

Above it are the session's headers, cookies, redirects and the check of the status: none of them
sees a key of the pool, or takes it along. A tracer sees what is sent, with the key. aiohttp makes
the requests and the responses, and each response has the program's own request.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from functools import partial
from http.client import responses
from inspect import signature
from math import inf
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ..hosts import is_clear_here
from ..runtime.driver import complete
from ..secrets import PlainText, Secret
from .bounded import LONGEST_BODY, read_bounded
from .call import Call, Incoming
from .pooled_calls import PooledCalls
from .redaction import Redact, scrub_head
from .refusals import OwnResponse
from .routing import Served, read
from .serving import Library, Pieces
from .stream import Stream

_LEFT_OUT = ("content-encoding", "content-length", "transfer-encoding", "location")


class AiohttpRequests(Library[Any, aiohttp.ClientResponse]):
    """Serves one request of a session, and those that its redirects ask for."""

    def __init__(
        self, calls: PooledCalls | None, served: Served, session: Any, options: dict[str, Any]
    ) -> None:
        """Serve a pool; *options*: the arguments of the session's method."""
        super().__init__(calls, served)
        self._content, data = b"", options.get("data")
        """What was read of the program's body."""
        self._rest: Any = None
        """What follows that in the generator of the program."""
        if isinstance(data, AsyncIterable) and not isinstance(data, aiohttp.Payload):
            self._rest, options["data"] = aiter(data), self._whole()
        limit = options.get("timeout", session.timeout)
        limit = getattr(limit, "total", limit)
        self._timeout_s = limit if isinstance(limit, int | float) and limit > 0 else inf
        self._origin: URL | None = None
        """Where the pool has served it; nowhere, once a redirect has led away."""

    async def __call__(self, request: Any, send: Callable[[Any], Any]) -> Any:
        """Send a request through the pool, or as it is; one to another origin without a key."""
        url, headers = request.url, request.headers
        if self._origin is not None and self._origin != url.origin():
            self._origin, request.headers = URL(), headers.copy()
            for name in self._served.key_headers:
                request.headers.popall(name, None)
            return await send(request)
        self._request, self._info = request, request.request_info
        self._own = url, headers, request.response_class
        self._body: Any = None
        """What is sent in place of the program's body."""
        address = str(url)
        incoming = Incoming(
            request.method,
            address,
            headers,
            self._timeout_s,
            library="aiohttp",
            is_exposed=request.proxy is not None and is_clear_here(address),
        )
        plan = read(self._calls, self._served, incoming)
        if plan is not None:
            self._origin = url.origin()
        return await self.ahandle(incoming, plan, request, partial(self._send, send))

    async def _send(self, send: Callable[[Any], Any], request: Any) -> Any:
        try:
            if self._body is not None:
                await request.update_body(self._body)
            return await send(request)
        finally:
            request.url, request.headers, request.response_class = self._own

    # What a request is ----------------------------------------------------------------------------

    async def _whole(self) -> AsyncIterator[bytes]:
        """Yield the program's body, of which the beginning may have been read."""
        if self._content:
            yield self._content
        if self._rest is not None:
            async for data in self._rest:
                yield data

    async def body_of(self, request: Any) -> tuple[bytes, Pieces | None]:
        """Return the body, and the request's own if that is too long to be kept; or None."""
        body = request.body
        if self._rest is not None:
            self._content, self._rest = await read_bounded(self._rest)
            return self._content, self._rest and body
        is_file = not isinstance(body, bytes | aiohttp.BytesPayload)
        if body and is_file and (body.size or 0) > LONGEST_BODY:
            return b"", body
        self._content = bytes(body and await body.as_bytes())
        return self._content, None

    def with_body(self, request: Any, content: bytes, rest: Pieces | None) -> Any:
        """Return the request, with another body where its own cannot be sent, or not twice."""
        body = request.body
        is_same = content is self._content and isinstance(body, bytes | aiohttp.BytesPayload)
        if rest is None and not is_same:
            self._body = aiohttp.BytesIOPayload(io.BytesIO(content), headers=body.headers)
        return request

    def copy(self, call: Call, request: Any, key: Secret) -> Any:
        """Write one key into the request, until it is sent."""
        target, headers = call.target, request.headers.copy()
        self.with_body(request, target.body, call.take_rest())
        url = call.write_key(key, headers, target.url)
        if call.stream:  # see clients/httpx.py
            headers["Accept-Encoding"] = "identity"
        return self._written(request, url, headers)

    def with_key(self, request: Any, key: Secret) -> Any:
        """Write *key* in place of the placeholder, until the request is sent."""
        headers = request.headers.copy()
        url = self._served.write_home_key(headers, str(request.url), key)
        return self._written(request, url, headers)

    def _written(self, request: Any, url: str, headers: CIMultiDict[str]) -> Any:
        """Write an address and headers into the request; its response gets the program's own."""
        for name in self._served.key_headers:  # error reporters print dictionaries
            if name in headers:
                headers[name] = PlainText(headers[name])
        kind, info = self._own[2], self._info

        def respond(*args: Any, **options: Any) -> Any:
            return kind(*args, **{**options, "request_info": info})

        request.url, request.headers = URL(url, encoded=True), headers
        request.response_class = respond
        return request

    # What a response is ---------------------------------------------------------------------------

    status = staticmethod(attrgetter("status"))

    def head(
        self, response: aiohttp.ClientResponse, request: Any, redact: Redact
    ) -> Mapping[str, str]:
        """Take keys out of the head of a response; return its headers."""
        scrub_head(response, redact)
        return response.headers

    def error_pieces(self, response: aiohttp.ClientResponse) -> Pieces:
        """Return the decoded bytes of an error."""
        return aiter(response.content.iter_any())

    def pieces(self, response: aiohttp.ClientResponse) -> tuple[Pieces, Callable[[], object]]:
        """Return the bytes of a stream, decoded."""
        content = response.content

        def release() -> None:
            ours, response.content = response.content, content  # which has its own rest to be read
            response.release()
            response.content = ours

        return aiter(content.iter_any()), release

    async def content(
        self, response: aiohttp.ClientResponse, headers: Mapping[str, str]
    ) -> tuple[bytes, Pieces | None]:
        """Read a response, and put the bytes back."""
        try:
            content, rest = await read_bounded(self.pieces(response)[0])
        except BaseException:
            response.close()
            raise
        if rest is None:
            response.content = whole(content)
        return content, rest

    async def aclose(self, response: aiohttp.ClientResponse) -> None:
        """Release the connection of a response."""
        response.release()

    def streamed(self, response: aiohttp.ClientResponse, stream: Stream) -> Any:
        """Return the response whose content reads the stream, which holds the lease."""
        response.content = Content(stream, response.content)
        return response

    def rebuilt(self, response: aiohttp.ClientResponse, content: bytes) -> Any:
        """Return a response with another content."""
        headers = [(k, v) for k, v in response.headers.items() if k.lower() not in _LEFT_OUT]
        return self._made(response.status, response.reason, headers, content)

    def reply(self, reply: OwnResponse, request: Any) -> Any:
        """Return a response of our own."""
        return self._made(reply.code, responses.get(reply.code, ""), reply.headers, reply.body)

    def _made(self, code: int, reason: str | None, headers: Any, content: bytes) -> Any:
        """Return a response as if it had come over a connection that has ended."""
        fields = CIMultiDictProxy(CIMultiDict(headers))
        ended = _Ended(
            code=code,
            reason=reason,
            version=aiohttp.HttpVersion11,
            headers=fields,
            raw_headers=tuple((k.encode(), v.encode()) for k, v in fields.items()),
        )
        options: dict[str, Any] = {
            **{"writer": None, "stream_writer": ended, "continue100": None, "timer": None},
            **{"request_info": self._info, "traces": [], "session": self._request.session},
            "loop": asyncio.get_running_loop(),
        }
        known = signature(aiohttp.ClientResponse.__init__).parameters  # which differ by version
        given = {name: value for name, value in options.items() if name in known}
        response = self._own[2](self._info.method, self._info.real_url, **given)
        complete(response.start(ended))
        response.content = whole(content)
        return response


class _Ended:
    """A connection over which a response has come."""

    upgraded, output_size = False, 0

    def __init__(self, **message: Any) -> None:
        self.protocol, self._message = self, SimpleNamespace(**message)

    async def read(self) -> tuple[Any, Any]:
        return self._message, aiohttp.EMPTY_PAYLOAD

    def release(self) -> None:
        """Do nothing."""


class _Still:
    """What a reader pauses and resumes: nothing arrives before it is asked for."""

    connected = _reading_paused = False  # aiohttp 3.12 reads the latter

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self, **_: object) -> None:
        """Do nothing."""


_STILL: Any = _Still()


def whole(content: bytes) -> aiohttp.StreamReader:
    """Return what the program reads of a body that is here."""
    reader = aiohttp.StreamReader(_STILL, sys.maxsize)
    reader.begin_http_chunk_receiving()
    reader.feed_data(content)
    reader.end_http_chunk_receiving()
    reader.feed_eof()
    return reader


class Content(aiohttp.StreamReader):
    """What the program reads of a stream: aiohttp's own reader, fed where it waits for bytes.

    So no more is read than the program asks for, and the lease ends with what it reads. Each piece
    counts as an HTTP chunk.
    """

    def __init__(self, stream: Stream, inner: aiohttp.StreamReader) -> None:
        """Read nothing yet; *inner* is what the stream reads."""
        super().__init__(_STILL, sys.maxsize)
        self.begin_http_chunk_receiving()
        self._stream, self._inner = stream, inner

    async def _wait(self, _: str) -> None:  # no public name; `clients` checks that it is there
        """Feed the next bytes, or the end."""
        try:
            data = await self._stream.read()
        except RuntimeError:  # another task is reading it
            raise
        except Exception as error:  # reading on must not look like the end of a whole stream
            super().set_exception(error)
            raise
        except BaseException:
            super().set_exception(aiohttp.ClientConnectionError("Connection closed"))
            raise
        if data:
            self.feed_data(data)
            self.end_http_chunk_receiving()
        else:
            self.feed_eof()

    async def wait_eof(self) -> None:
        """Read until the end is here."""
        while not self.is_eof():
            await self._wait("wait_eof")

    def set_exception(self, exc: BaseException, *cause: Any) -> None:
        """End the stream: its response is released, or closed."""
        super().set_exception(exc, *cause)
        self._stream.drop()
        self._inner.set_exception(exc)  # wakes the task that is reading it
