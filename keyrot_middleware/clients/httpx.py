"""httpx and httpx2: the transport that a client picks for an address, over the pool.

Below the transport's callers are hooks, auth, redirects and cookies: none of them sees a key of the
pool, or takes it along. Above it nothing is repeated.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from ..hosts import is_clear_here
from ..libraries import HTTPX, SDK
from ..runtime import sdk_call
from ..runtime.first_token import Deadline
from ..secrets import Secret
from .bounded import LONGEST_BODY, read_bounded
from .call import Call, Incoming
from .patching import Args, Kwargs, Wrapped, Wrapper
from .pooled_calls import PooledCalls
from .redaction import Redact, scrub_head
from .refusals import Explanation, OwnResponse
from .routing import Served, read
from .serving import Library, Pieces
from .stream import Stream, mixed_type

if TYPE_CHECKING:
    import httpx

_DEFAULT_TIMEOUT = {"connect": 5.0, "read": 5.0, "write": 5.0, "pool": 5.0}
"""httpx's own: the program has set none."""
_LEFT_OUT = frozenset({b"content-encoding", b"content-length", b"transfer-encoding", b"location"})
_ENCODING = "accept-encoding"
_STEP = 16_384
"""Bytes that are decoded at once."""
_MOST_SENDERS = 16
"""Transports that wrap one another, and what they hold."""


class HttpxTransports(Library["httpx.Request", "httpx.Response"]):
    """Serves requests of one library, httpx or httpx2."""

    def __init__(self, calls: PooledCalls | None, served: Served, library: str) -> None:
        """Serve a pool; *library*: the module's name."""
        super().__init__(calls, served)
        self._library = sys.modules[library]
        self._of_requests = frozenset(name.encode() for name in served.request_headers)
        self._of_replies = frozenset(name.encode() for name in served.reply_headers)

    # What a request is ----------------------------------------------------------------------------

    def send(self, request: httpx.Request, transport: Any, *, in_thread: bool) -> Any:
        """Send a request by a transport: through the pool, or as it is."""
        timeout = request.extensions.get("timeout") or {}
        is_default = timeout == _DEFAULT_TIMEOUT and sdk_call.get() is None
        limit = None if is_default else timeout.get("read")
        incoming = Incoming(
            request.method,
            str(request.url),
            _some(request.headers.raw, self._of_requests),
            inf if limit is None else limit,
            library=self._library.__name__,
            routed=request.extensions.get("keyrot_route"),
        )
        if is_clear_here(incoming.url) and _has_proxy(transport, self._library):
            incoming = incoming._replace(is_exposed=True)
        plan = read(self._calls, self._served, incoming)
        if in_thread:
            return self.handle(incoming, plan, request, transport.handle_request)
        if isinstance(plan, Call) and not _in_asyncio():
            own = plan.own
            plan = None if own else plan.calls.home_key(plan.provider, incoming.url)
        return self.ahandle(incoming, plan, request, transport.handle_async_request)

    async def body_of(self, request: httpx.Request) -> tuple[bytes, Pieces | None]:
        """Return the body, and the rest of one that is too long to be kept; or None."""
        try:
            return request.content, None
        except self._library.RequestNotRead:
            pieces = self._iterator(request.stream)
            if int(request.headers.get("content-length", 0)) > LONGEST_BODY:
                return b"", pieces  # known to be too long: nothing of it is kept
            return await read_bounded(pieces)

    def _iterator(self, stream: Any) -> Any:
        """Return an iterator of a stream, an async one where it can only be read so."""
        is_sync = isinstance(stream, self._library.SyncByteStream)
        return iter(stream) if is_sync else aiter(stream)

    def with_body(self, request: httpx.Request, content: bytes, rest: Pieces | None) -> Any:
        """Return a request whose body was read."""
        return self._library.Request(
            request.method,
            request.url,
            headers=self._library.Headers(request.headers.raw),
            stream=self._body(content, rest),
            extensions=request.extensions,
        )

    def _body(self, content: bytes, rest: Pieces | None) -> Any:
        if rest is None:
            return self._library.ByteStream(content)
        kind = mixed_type(_Chained, self._library.SyncByteStream, self._library.AsyncByteStream)
        return kind(content, rest)

    def copy(self, call: Call, request: httpx.Request, key: Secret) -> Any:
        """Return the program's request with one key; it shares nothing that changes."""
        target, deadline = call.target, call.state.deadline
        rest = None if call.rest is None else call.take_rest()
        extensions = request.extensions
        if isinstance(deadline, Deadline):
            extensions = {**extensions, "timeout": deadline.over(extensions.get("timeout"))}
        sent = self._library.Request(
            target.method,
            request.url,
            headers=request.headers,  # from such they are not parsed
            stream=self._body(target.body, rest),
            extensions=extensions,
        )
        url = call.write_key(key, sent.headers, target.url)
        if url != call.url:
            sent.url = self._library.URL(url)
        if call.stream:  # or an echo of the key, and what it used, could not be read on the way
            sent.headers[_ENCODING] = "identity"
        if target.body is not call.content:
            sent.headers["Content-Length"] = str(len(target.body))
        if rest is None:
            sent.read()  # transports of others look at `content`
        return sent

    def with_key(self, request: httpx.Request, key: Secret) -> Any:
        """Return a request with *key* in place of its placeholder."""
        headers = self._library.Headers(request.headers.raw)
        url = self._served.write_home_key(headers, str(request.url), key)
        return self._library.Request(
            request.method,
            url,
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )

    # What a response is ---------------------------------------------------------------------------

    def head(
        self, response: httpx.Response, request: httpx.Request, redact: Redact
    ) -> Mapping[str, str]:
        """Take keys out of the head of a response; return the headers that are read."""
        return _some(scrub_head(response, redact), self._of_replies)

    def _is_sync(self, response: httpx.Response) -> bool:
        return isinstance(response.stream, self._library.SyncByteStream)

    def error_pieces(self, response: httpx.Response) -> Pieces:
        """Return the decoded bytes of an error."""
        is_sync = self._is_sync(response)
        return iter(response.iter_bytes()) if is_sync else aiter(response.aiter_bytes())

    def pieces(self, response: httpx.Response) -> tuple[Pieces, Callable[[], object]]:
        """Return the bytes of a stream."""
        stream: Any = response.stream
        if self._is_sync(response):
            return iter(stream), stream.close
        return _closing(stream), stream.aclose

    def is_shared(self, response: httpx.Response) -> bool:
        """Return whether the connection of a response has other calls too."""
        return bool(response.http_version == "HTTP/2")

    async def content(
        self, response: httpx.Response, headers: Mapping[str, str]
    ) -> tuple[bytes, Pieces | None]:
        """Read a response, and put the bytes back."""
        stream: Any = response.stream
        is_sync, rest = isinstance(stream, self._library.SyncByteStream), None
        try:
            read, rest = await read_bounded(self.pieces(response)[0])
        finally:
            if rest is None and is_sync:
                stream.close()
            elif rest is None:
                await stream.aclose()
        if rest is not None:
            return read, rest
        response.stream = self._library.ByteStream(read)
        coding = headers.get("content-encoding")
        return await self._decoded(read, coding) if coding else read, None

    async def aclose(self, response: httpx.Response) -> None:
        """Release the connection of a response."""
        if self._is_sync(response):
            response.close()
        else:
            await response.aclose()

    async def _decoded(self, raw: bytes, coding: str) -> bytes:
        steps = (raw[at : at + _STEP] for at in range(0, len(raw), _STEP))
        try:
            made = self._library.Response(200, headers={"content-encoding": coding}, content=steps)
            decoded, rest = await read_bounded(made.iter_bytes())
        except Exception:  # not what it says, or in a coding that needs another library
            return raw
        return raw if rest is not None else decoded  # a few kilobytes of zeros may be gigabytes

    def rebuilt(self, response: httpx.Response, content: bytes) -> Any:
        """Return an unread response with another content."""
        headers = [pair for pair in response.headers.raw if pair[0].lower() not in _LEFT_OUT]
        headers.append((b"Content-Length", str(len(content)).encode()))
        return self._library.Response(
            response.status_code,
            headers=headers,
            stream=self._library.ByteStream(content),
            extensions=response.extensions,
        )

    def stream_type(self, *, in_thread: bool) -> type[Stream]:
        """Return a class of the library's for threads, or for tasks."""
        library: Any = self._library
        kind = library.SyncByteStream if in_thread else library.AsyncByteStream
        return mixed_type(Stream, kind)  # type: ignore[no-any-return]

    def streamed(self, response: httpx.Response, stream: Stream) -> httpx.Response:
        """Return the response with the stream that holds the lease."""
        response.stream = stream  # type: ignore[assignment]  # it is one of theirs, see above
        return response

    def reply(self, reply: OwnResponse, request: httpx.Request) -> Any:
        """Return a response of our own."""
        stream = self._library.ByteStream(reply.body)
        return self._library.Response(reply.code, headers=reply.headers, stream=stream)

    def with_explanation(
        self, response: httpx.Response, outcome: Explanation, request: httpx.Request
    ) -> httpx.Response:
        """Return a response that carries an outcome."""
        if outcome.last is not None and not isinstance(outcome.last[2], OwnResponse):
            outcome.last[2].request = request
            outcome.last[2].read()
        response.extensions = {**response.extensions, "keyrot": outcome}
        return response


def _some(raw: list[tuple[bytes, bytes]], names: frozenset[bytes]) -> dict[str, str]:
    """Return some headers as a dictionary: each look-up in those of httpx takes microseconds."""
    if not raw:
        return {}
    given, texts = zip(*raw, strict=True)
    fields = dict(zip(map(bytes.lower, given), texts, strict=True))
    return {name.decode(): fields[name].decode("latin-1") for name in names & fields.keys()}


class PooledTransport:
    """A transport over the pool."""

    def __init__(self, transport: Any, library: HttpxTransports) -> None:
        self._transport, self._library = transport, library

    def handle_request(self, request: httpx.Request) -> Any:
        """Send a request of httpx.Client."""
        return self._library.send(request, self._transport, in_thread=True)

    async def handle_async_request(self, request: httpx.Request) -> Any:
        """Send a request of httpx.AsyncClient."""
        return await self._library.send(request, self._transport, in_thread=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _has_proxy(transport: Any, library: Any) -> bool:
    """Return whether a transport sends by a proxy, or one that it wraps.

    httpx has no public name for that. Its transports hold a pool of connections, of which the
    classes are public in httpcore. A transport of httpx without one is of a version that is not
    known here, and may send by a proxy.
    """
    core: Any = sys.modules.get(library.__name__.replace("httpx", "httpcore"))
    pools = () if core is None else (core.ConnectionPool, core.AsyncConnectionPool)
    connections, senders = list[Any](), [transport]
    for sender in senders:  # which grows meanwhile
        if isinstance(sender, pools):
            connections.append(sender)
        elif len(senders) < _MOST_SENDERS:
            parts = getattr(sender, "__dict__", {}).values()
            senders += [
                part
                for part in parts
                if hasattr(part, "handle_request") or hasattr(part, "handle_async_request")
            ]
    if not connections:
        return isinstance(transport, library.HTTPTransport | library.AsyncHTTPTransport)
    proxies = core.HTTPProxy, core.SOCKSProxy, core.AsyncHTTPProxy, core.AsyncSOCKSProxy
    return any(isinstance(pool, proxies) for pool in connections)


def _in_asyncio() -> bool:
    """Return whether the task is one of asyncio; with trio a call cannot wait for a key."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# Bytes ------------------------------------------------------------------------------------------


async def _closing(stream: Any) -> AsyncIterator[bytes]:
    """Read a stream, and close it where this is dropped.

    A loop closes all generators of a dropped stream at once, the oldest first. Without this one
    they would be those of httpcore, and one of two that close the connection raises.
    """
    try:
        async for data in stream:
            yield data
    except GeneratorExit:
        await stream.aclose()
        raise


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


# Patches ----------------------------------------------------------------------------------------


def wrappers(calls: PooledCalls | None, served: Served) -> dict[tuple[str, str], Wrapper]:
    """Return the wrappers of what picks a transport for an address; it has no public name."""
    table: dict[tuple[str, str], Wrapper] = {}
    for library in HTTPX:
        if {library, SDK} & set(served.libraries):
            pick = _picked(calls, served, library)
            table[library, "Client._transport_for_url"] = pick
            table[library, "AsyncClient._transport_for_url"] = pick
    return table


def _picked(calls: PooledCalls | None, served: Served, library: str) -> Wrapper:
    hosts = served.hosts
    over: list[HttpxTransports] = []

    def wrapper(wrapped: Wrapped, _client: object, args: Args, kwargs: Kwargs) -> Any:
        """Wrap `_transport_for_url` of both clients."""
        transport = wrapped(*args, **kwargs)
        url = (*args, *kwargs.values())[-1]  # behind the client, where it is called unbound
        if url.host not in hosts or isinstance(transport, _Explicit):
            return transport
        if not over:
            over.append(HttpxTransports(calls, served, library))
        return PooledTransport(transport, over[0])

    return wrapper


installed: list[tuple[PooledCalls | None, Served, dict[str, HttpxTransports]]] = []
"""What `install()` put in place, and what is made of it for each library; empty for none."""


class _Explicit:
    """A transport of the program's that goes over the pool of `install()`, while there is one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> Any:
        """Send a request of httpx.Client."""
        return self._over(request).handle_request(request)

    async def handle_async_request(self, request: httpx.Request) -> Any:
        """Send a request of httpx.AsyncClient."""
        return await self._over(request).handle_async_request(request)

    def _over(self, request: httpx.Request) -> Any:
        library = type(request).__module__.partition(".")[0]
        for calls, served, over in installed:
            if request.url.host in served.hosts:
                if library not in over:
                    mine = served._replace(libraries=(library, SDK))
                    over[library] = HttpxTransports(calls, mine, library)
                return PooledTransport(self._inner, over[library])
        return self._inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # clients open and close it by name


_Transport = TypeVar("_Transport")


def transport(inner: _Transport) -> _Transport:
    """Put one client of httpx or httpx2 over the pool, by its transport.

    `httpx.Client(transport=transport(httpx.HTTPTransport()))` is served like any client after
    `install()`, also with `install(clients=("google-genai",))`, and in a version of httpx that
    `install()` does not know. Without a pool it only sends. Where both are in place a request goes
    through the pool once.

    Args:
        inner: What sends: an `HTTPTransport`, or an `AsyncHTTPTransport` for an `AsyncClient`.
    """
    return _Explicit(inner)  # type: ignore[return-value]  # it has the same methods
