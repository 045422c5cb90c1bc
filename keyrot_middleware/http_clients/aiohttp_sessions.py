"""aiohttp: what a session sends, over the pool.

`ClientSession.request` and its short forms are wrapped, so cookies, traces and connections are the
session's. aiohttp follows redirects below that, with each header: so they are followed here.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
)
from functools import partial
from http.client import responses
from math import inf
from typing import Any
from urllib.parse import urljoin

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ..adapters import origin_from_url
from ..adapters.bodies import Body, read_bounded
from ..adapters.redaction import Redact, current_redact, scrub, scrub_head, without_key
from ..errors import handle_internal_error
from ..secrets import PlainText, Secret
from .calls import Call, Incoming, Reply, read
from .serving import Library

_LEFT_OUT = ("content-encoding", "content-length", "transfer-encoding", "location")
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
"""aiohttp's own."""


class AiohttpSessions(Library):
    """Serves requests of sessions. A request is the arguments of `ClientSession.request`."""

    def send(self, wrapped: Callable[..., Any], session: Any, request: dict[str, Any]) -> Any:
        """Send a request to an allowed host through the pool, or as it is."""
        if current_redact.get() is not None:  # the transport of a client that is served above
            return wrapped(**{**request, "allow_redirects": False})
        try:
            request, found = self._read(session, request)
        except Exception:
            handle_internal_error("http_clients")
            found = None
        if found is None:
            return wrapped(**request)
        return Sending(self._send(wrapped, session, request, found))

    def _read(self, session: Any, request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Return a request with its headers, its address and its body in one place each."""
        headers: CIMultiDict[str] = CIMultiDict(session.headers)
        headers.update(request.get("headers") or ())
        url = URL(request["url"])
        if request.get("params"):
            url = url.extend_query(request["params"])
        sent = {**request, "url": str(url), "headers": headers}
        sent.pop("params", None)
        if (value := sent.pop("json", None)) is not None:
            text = session.json_serialize(value)
            sent["data"] = text.encode() if isinstance(text, str) else text
            headers.setdefault("Content-Type", "application/json")
        limit = request.get("timeout")
        limit = getattr(limit, "total", limit)
        timeout_s = limit if isinstance(limit, int | float) and limit > 0 else inf
        incoming = Incoming(
            sent["method"].upper(), sent["url"], headers, timeout_s, library="aiohttp"
        )
        found = read(self._calls, self._served, incoming)
        return (sent if found is not None else request), found

    async def _send(
        self, wrapped: Callable[..., Any], session: Any, request: dict[str, Any], found: Any
    ) -> Any:
        check = request.pop("raise_for_status", None)
        check = session.raise_for_status if check is None else check
        follows = request.pop("allow_redirects", True)
        response = await self.ahandle(found, request, partial(_send_once, wrapped))
        where = response.headers.get("Location")
        if follows and where and response.status in _REDIRECTS:
            return await self._follow(session, request, response, where)
        if callable(check):
            await check(response)
        elif check:
            response.raise_for_status()
        return response

    async def _follow(
        self, session: Any, request: dict[str, Any], response: Any, where: str
    ) -> Any:
        """Send what a redirect asks for, as browsers do; to another origin without a key."""
        left = request.pop("max_redirects", _MOST_REDIRECTS)
        if left <= 1:
            raise aiohttp.TooManyRedirects(response.request_info, (response,))
        response.release()
        target = urljoin(request["url"], where)
        sent = {**request, "url": target, "max_redirects": left - 1}
        method = request["method"].upper()
        if (response.status == 303 and method != "HEAD") or (
            response.status in (301, 302) and method == "POST"
        ):
            sent |= {"method": "GET", "data": None}
        if origin_from_url(target) != origin_from_url(request["url"]):
            sent["headers"] = CIMultiDict(request["headers"])
            for name in self._served.key_headers:
                sent["headers"].popall(name, None)
        return await session.request(**sent)

    # What a request is ----------------------------------------------------------------------------

    async def body_of(self, request: Any) -> tuple[bytes, Any]:
        """Return the body, and the rest of one that is too long to be kept, or that is a form.

        From here on the request has what was read: a redirect may send it again.
        """
        data, rest = request.get("data"), None
        if data is None or isinstance(data, str | bytes | bytearray):
            content = data.encode() if isinstance(data, str) else bytes(data or b"")
        elif isinstance(data, io.IOBase):
            content, rest = await read_bounded(iter(lambda: data.read(1 << 20), b""))
        elif isinstance(data, AsyncIterable):
            content, rest = await read_bounded(aiter(data))
        else:
            content, rest = b"", data
        request["data"] = _joined(content, rest)
        return content, rest

    def with_body(self, request: Any, content: bytes, rest: Any) -> Any:
        """Return the request."""
        return request

    def copy(self, call: Call, request: Any, key: Secret) -> Any:
        """Return the program's request with one key."""
        target = call.target
        headers = CIMultiDict(request["headers"])
        url = call.write_key(key, headers, target.url)
        self._mask(headers)
        if call.stream:  # see httpx_clients.py
            headers["Accept-Encoding"] = "identity"
        data = _joined(target.body, call.take_rest())
        sent = {"method": target.method, "url": url, "headers": headers, "data": data}
        return {**request, **sent}

    def with_key(self, request: Any, key: Secret) -> Any:
        """Return a request with *key* in place of its placeholder."""
        headers = CIMultiDict(request["headers"])
        self._served.write_home_key(headers, request["url"], key)
        self._mask(headers)
        return {**request, "url": without_key(request["url"]), "headers": headers}

    def _mask(self, headers: CIMultiDict[str]) -> None:
        """Let no key show in a dictionary of ours: error reporters print those that are in use."""
        for name in self._served.key_headers:
            if name in headers:
                headers[name] = PlainText(headers[name])

    # What a response is ---------------------------------------------------------------------------

    def status(self, response: Any) -> int:
        """Return the status of a response."""
        code: int = response.status
        return code

    def head(self, response: Any, request: Any, redact: Redact) -> Any:
        """Take keys out of the head of a response; return its headers."""
        scrub_head(response, redact)
        return response.headers

    def error_pieces(self, response: Any) -> Any:
        """Return the decoded bytes of an error."""
        return aiter(response.content.iter_any())

    def pieces(self, response: Any) -> tuple[Any, Callable[[], Any]]:
        """Return the bytes of a stream, decoded."""
        content = response.content

        def release() -> None:
            ours, response.content = response.content, content  # which has its own rest to be read
            response.release()
            response.content = ours

        return aiter(content.iter_any()), release

    async def content(self, response: Any, headers: Any) -> bytes:
        """Read a response; aiohttp keeps what was read."""
        content: bytes = await response.read()
        return content

    async def aclose(self, response: Any) -> None:
        """Release the connection of a response."""
        response.release()

    def rebuilt(self, response: Any, content: bytes) -> Any:
        """Return a response with another content."""
        headers = [(k, v) for k, v in response.headers.items() if k.lower() not in _LEFT_OUT]
        status = (response.status, response.reason or "")
        return Made(response.method, response.url, status, headers, content)

    def streamed(self, response: Any, body: Any, relay: Any) -> Any:
        """Return the response whose content ends the lease."""
        scrub(response, body.redact)  # which knows what was sent
        response.content = Content(body, relay)
        return response

    def reply(self, reply: Reply, request: Any) -> Any:
        """Return a response of our own."""
        url, status = URL(request["url"]), (reply.code, responses.get(reply.code, ""))
        return Made(request["method"], url, status, reply.headers.items(), reply.body)


async def _send_once(wrapped: Callable[..., Any], request: dict[str, Any]) -> Any:
    return await wrapped(**request, allow_redirects=False, raise_for_status=False)


class Sending(Coroutine[Any, Any, Any]):
    """What `ClientSession.request` returns: a coroutine, and a context manager of its response."""

    __slots__ = ("_coroutine", "_response")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def send(self, value: Any) -> Any:
        """Go on, as a coroutine does."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an exception in it, as in a coroutine."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """End it, as a coroutine."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> Any:
        self._response = await self._coroutine
        return await self._response.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._response.__aexit__(*error)


def _joined(begin: bytes, rest: Any) -> Any:
    if rest is None:
        return begin or None
    return _Chained(begin, rest) if begin else rest


class _Chained:
    """A body of which the beginning was read."""

    def __init__(self, begin: bytes, rest: Any) -> None:
        self._begin, self._rest = begin, rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._begin
        if isinstance(self._rest, AsyncIterable):
            async for data in self._rest:
                yield data
        else:
            for data in self._rest:
                yield data


# Responses --------------------------------------------------------------------------------------


class Content:
    """What the program reads of a response, by the methods of aiohttp's StreamReader."""

    def __init__(self, body: Body | None, relay: Any, rest: bytes = b"") -> None:
        """Read a stream, of which the lease ends with it; or *rest* alone."""
        self._body, self._relay, self._rest = body, relay, rest
        self._over = body is None
        self._error: BaseException | None = None

    async def readany(self) -> bytes:
        """Return the bytes that are here, or the next ones; none at the end."""
        if self._error is not None:
            raise self._error
        data, self._rest = self._rest, b""
        if not data and self._body is not None and not self._over:
            data = await self._body.read_of(self._relay)
            self._over = not data
        return data

    async def read(self, n: int = -1) -> bytes:
        """Return at most so many bytes, or all."""
        if n >= 0:
            data = await self.readany() if n else b""
            self._rest = data[n:]
            return data[:n]
        found = bytearray()
        while data := await self.readany():
            found += data
        return bytes(found)

    async def readline(self) -> bytes:
        """Return the next line."""
        return await self.readuntil()

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Return the bytes up to the next separator, which is among them."""
        found = b""
        while separator not in found and (data := await self.readany()):
            found += data
        line, end, self._rest = found.partition(separator)
        return line + end

    async def readexactly(self, n: int) -> bytes:
        """Return so many bytes.

        Raises:
            IncompleteReadError: There are less.
        """
        found = b""
        while len(found) < n:
            if not (data := await self.read(n - len(found))):
                raise asyncio.IncompleteReadError(found, n)
            found += data
        return found

    async def readchunk(self) -> tuple[bytes, bool]:
        """Return the next bytes, and that they end a chunk."""
        return await self.readany(), True

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they come."""
        while data := await self.readany():
            yield data

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """Yield at most so many bytes at once."""
        while data := await self.read(n):
            yield data

    async def iter_chunks(self) -> AsyncIterator[tuple[bytes, bool]]:
        """Yield the bytes as they come; each piece ends a chunk."""
        while (found := await self.readchunk())[0]:
            yield found

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while line := await self.readline():
            yield line

    def at_eof(self) -> bool:
        """Return whether all was read."""
        return self._over and not self._rest

    is_eof = at_eof

    def exception(self) -> BaseException | None:
        """Return what reading raises."""
        return self._error

    def set_exception(self, error: BaseException, *_: object) -> None:
        """End the stream: its response is released, or closed."""
        if self._body is not None and not self._over:
            self._error = error
            self._body.drop(self._relay)


class Made(aiohttp.ClientResponse):
    """A response whose content is here."""

    def __init__(
        self,
        method: str,
        url: URL,
        status: tuple[int, str],
        headers: Iterable[tuple[str, str]],
        content: bytes,
    ) -> None:
        # That of the base class asks for a connection.
        self.method, (self.status, self.reason) = method, status
        self.version = aiohttp.HttpVersion11
        self.content = Content(None, None, content)  # type: ignore[assignment]  # same methods
        self._body, self._url, self._real_url, self._cache = content, url, url, {}
        self._headers = CIMultiDictProxy(CIMultiDict(headers))
        self._raw_headers = tuple((k.encode(), v.encode()) for k, v in self._headers.items())
        self._loop = asyncio.get_running_loop()
        self._request_info = aiohttp.RequestInfo(url, method, CIMultiDictProxy(CIMultiDict()), url)
