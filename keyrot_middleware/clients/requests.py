"""requests: the adapter that a session picks for an address, over the pool.

As with httpx, hooks, auth and redirects are above it. What urllib3 would send again with the same
key is not: a `Retry` for 429 does not apply to a request that goes through the pool.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.client import HTTPResponse, responses
from itertools import chain, repeat, takewhile
from math import inf
from typing import TYPE_CHECKING, Any

import wrapt

from ..hosts import hostname, is_clear_here
from ..runtime.driver import complete
from ..secrets import Secret
from .bounded import LONGEST_BODY, read_bounded
from .call import Call, Incoming
from .patching import Args, Kwargs, Wrapped, Wrapper
from .pooled_calls import PooledCalls
from .redaction import Redact, scrub
from .refusals import OwnResponse
from .routing import Served, read
from .serving import Library, Pieces
from .stream import Stream

if TYPE_CHECKING:
    import requests

_ARGUMENTS = ("stream", "timeout", "verify", "cert", "proxies")
"""Of an adapter's `send`, behind the request."""
_KEY_FAILURES = frozenset({401, 402, 403, 429})
_PIECE = 4_096
_BLOCK = 1 << 20
_CODED = ("content-encoding", "content-length", "transfer-encoding")


class RequestsAdapters(Library[Any, "requests.Response"]):
    """Serves a request of a session."""

    def __init__(self, calls: PooledCalls | None, served: Served, *, stream: bool) -> None:
        """Serve a pool, a program that reads responses itself (*stream*) or not."""
        super().__init__(calls, served)
        self._stream = stream
        self._start: Any = None
        """Where the program's file begins that each attempt sends, and of which nothing is kept."""

    def send(self, adapter: Any, request: Any, args: Args, kwargs: Kwargs) -> Any:
        """Send a request by an adapter: through the pool, or as it is."""
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        timeout = given.get("timeout")
        limit = timeout[1] if isinstance(timeout, tuple) else timeout
        codes = getattr(getattr(adapter, "max_retries", None), "status_forcelist", None) or ()
        incoming = Incoming(
            request.method,
            request.url,
            request.headers,
            limit if isinstance(limit, int | float) else inf,
            any(code >= 500 for code in codes),
            "requests",
            has_head_timeout=False,
            is_exposed=is_clear_here(request.url) and _has_proxy(request.url, given),
        )
        plan = read(self._calls, self._served, incoming)
        once = _without_key_retries(adapter, codes) if isinstance(plan, Call) else adapter

        def send_once(one: Any) -> Any:
            try:
                return once.send(one, *args, **kwargs)
            except Exception as error:
                if hasattr(error, "request"):
                    error.request = request.copy()  # else it is the one with the key
                raise

        return self.handle(incoming, plan, request, send_once)

    async def body_of(self, request: Any) -> tuple[bytes, Pieces | None]:
        """Return the body, and the rest of one that is too long to be kept; or None.

        What the program's file or generator raises is raised here.
        """
        body = request.body
        if isinstance(body, str | bytes | bytearray | None):
            return _encoded(body or b""), None
        read = getattr(body, "read", None)
        if read is not None and _is_long(request) and getattr(body, "seekable", bool)():
            self._start = body.tell()
            return b"", None
        pieces = takewhile(len, map(read, repeat(_BLOCK))) if read is not None else iter(body)
        return await read_bounded(map(_encoded, pieces))

    def with_body(self, request: Any, content: bytes, rest: Any) -> Any:
        """Return a request whose body was read."""
        sent = request.copy()
        if self._start is not None:
            return sent
        sent.body = content if rest is None else chain((content,), rest)
        return sent

    def copy(self, call: Call, request: Any, key: Secret) -> Any:
        """Return the program's request with one key."""
        target, sent = call.target, request.copy()
        sent.method, sent.url = target.method, call.write_key(key, sent.headers, target.url)
        if call.stream:  # see clients/httpx.py
            sent.headers["Accept-Encoding"] = "identity"
        if self._start is not None:
            sent.body.seek(self._start)
        elif call.rest is not None:
            sent.body = chain((target.body,), call.take_rest())
        elif target.body is not (request.body or b""):  # else it is a copy already
            sent.body = target.body or None
            sent.headers.pop("Transfer-Encoding", None)
            sent.prepare_content_length(sent.body)
        return sent

    def with_key(self, request: Any, key: Secret) -> Any:
        """Return a request with *key* in place of its placeholder."""
        sent = request.copy()
        sent.url = self._served.write_home_key(sent.headers, request.url, key)
        return sent

    def head(self, response: requests.Response, request: Any, redact: Redact) -> Mapping[str, str]:
        """Take keys out of the head of a response, and give it the program's request."""
        headers = response.headers  # its own method is three times as fast
        pairs = getattr(headers, "lower_items", headers.items)()
        said = "\n".join((*headers, *(text for _, text in pairs), response.reason or ""))
        is_echo = redact(said) != said
        if is_echo:
            scrub(response, redact)
        response.request, response.url = request, request.url
        if "key=" in request.url:
            response.raw.url = request.path_url
        if is_echo:
            response.raw = _raw(response, *self.pieces(response), redact)
        return response.headers

    def error_pieces(self, response: requests.Response) -> Iterator[bytes]:
        """Return the decoded bytes of an error."""
        return iter(response.iter_content(_PIECE))

    def pieces(self, response: requests.Response) -> tuple[Iterator[bytes], Callable[[], object]]:
        """Return the bytes of a response as they come."""
        raw = response.raw
        if not hasattr(raw, "stream"):  # a file, or none, as adapters of mocks have
            return iter(response.iter_content(_PIECE)), response.close
        if getattr(raw, "chunked", False) or not hasattr(raw, "read1"):
            return iter(raw.stream(_PIECE, decode_content=False)), raw.close
        # Without a length of its own, `stream` waits for a whole piece.
        return iter(lambda: raw.read1(_PIECE, decode_content=False), b""), raw.close

    async def content(
        self, response: requests.Response, headers: Mapping[str, str]
    ) -> tuple[bytes, Pieces | None]:
        """Read a response; requests keeps what was read, but not for `raw`."""
        if not self._stream or not hasattr(response.raw, "stream"):
            return response.content, None
        pieces, close = self.pieces(response)
        content, rest = await read_bounded(pieces)
        if rest is not None:
            return content, rest
        response.raw = _raw(response, iter((content,)), close)
        coded = sys.modules["urllib3"].HTTPResponse(
            io.BytesIO(content), response.raw.headers, preload_content=False
        )
        with suppress(Exception):  # not what it says: the program sees it as it reads
            content = coded.read()
        return content, None

    async def aclose(self, response: requests.Response) -> None:
        """Release the connection of a response."""
        response.close()

    async def _received(self, *args: Any) -> Any:
        errors, theirs = sys.modules["requests"].exceptions, sys.modules["urllib3"].exceptions
        try:
            return await super()._received(*args)
        except theirs.ProtocolError as error:  # as requests raises them
            raise errors.ChunkedEncodingError(error) from error
        except theirs.HTTPError as error:
            raise errors.ConnectionError(error) from error

    def rebuilt(self, response: requests.Response, content: bytes) -> Any:
        """Return an unread response with another content."""
        headers = {k: v for k, v in response.headers.items() if k.lower() not in _CODED}
        made = self.reply(OwnResponse(response.status_code, headers, content), response.request)
        made.reason, made.encoding = response.reason, response.encoding
        made.cookies, connection = response.cookies, getattr(response, "connection", None)
        made.connection = connection
        return made

    def streamed(self, response: requests.Response, stream: Stream) -> Any:
        """Return the response with a raw one that reads the stream, which holds the lease."""
        pieces = iter(lambda: complete(stream.read()), b"")
        response.raw = _raw(response, pieces, stream.close)
        return response

    def reply(self, reply: OwnResponse, request: Any) -> Any:
        """Return a response of our own."""
        response = sys.modules["requests"].Response()
        response.status_code, response.request, response.url = reply.code, request, request.url
        response.headers.update(reply.headers)
        response.headers["content-length"] = str(len(reply.body))
        response.raw, response.encoding = _raw(response, iter((reply.body,)), bool), "utf-8"
        response.reason = responses.get(reply.code, "")
        return response


class PooledAdapter(wrapt.ObjectProxy):  # type: ignore[type-arg]  # of wrapt 2 alone
    """An adapter of the program's, over the pool."""

    def __init__(self, adapter: Any, *of: Any) -> None:
        super().__init__(adapter)
        self._self_of = of
        """The pool, and what is served."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Send a request through the pool, or as it is."""
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        library = RequestsAdapters(*self._self_of, stream=bool(given.get("stream")))
        return library.send(self.__wrapped__, request, args, kwargs)


def _has_proxy(url: str, given: Kwargs) -> bool:
    """Return whether an adapter that is *given* this sends to an address by a proxy."""
    return bool(sys.modules["requests"].utils.select_proxy(url, given.get("proxies")))


def _without_key_retries(adapter: Any, codes: Any) -> Any:
    """Return the adapter without urllib3's retries of a key's failure."""
    if not getattr(getattr(adapter, "max_retries", None), "total", None):
        return adapter
    # A Retry honors Retry-After for 429 whether or not it is in the list.
    retries = adapter.max_retries.new(
        status_forcelist=frozenset(codes) - _KEY_FAILURES, respect_retry_after_header=False
    )
    return _Retrying(adapter, retries)


class _Retrying(wrapt.ObjectProxy):  # type: ignore[type-arg]  # of wrapt 2 alone
    """An adapter with other retries for one send; what it counts and keeps is its own."""

    def __init__(self, adapter: Any, retries: Any) -> None:
        super().__init__(adapter)
        self._self_retries = retries

    @property
    def max_retries(self) -> Any:
        """The retries of this send."""
        return self._self_retries

    def send(self, *args: object, **kwargs: object) -> Any:
        """Send as the adapter's own class does."""
        return type(self.__wrapped__).send(self, *args, **kwargs)


def _is_long(request: Any) -> bool:
    return int(request.headers.get("Content-Length") or 0) > LONGEST_BODY


def _encoded(text: str | bytes | bytearray) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


# Responses --------------------------------------------------------------------------------------


def _raw(
    response: Any, pieces: Iterator[bytes], close: Callable[[], Any], redact: Redact = str
) -> Any:
    """Return the `raw` of a response as urllib3 has it, whose bytes come in *pieces*.

    http.client reads them as from a connection, so every way of reading works as without a pool.
    """
    old = response.raw
    headers = getattr(old, "headers", response.headers)
    pairs = [[redact(one).replace("…", "...") for one in pair] for pair in headers.items()]
    cookies = (f"{name}: {text}\r\n" for name, text in pairs if name.lower() == "set-cookie")
    head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{''.join(cookies)}\r\n"
    connection: Any = _Connection(head.encode("latin-1"), pieces, close)
    body = HTTPResponse(connection, method="GET")
    body.begin()
    return sys.modules["urllib3"].HTTPResponse(
        body,
        pairs,
        response.status_code,
        getattr(old, "version", 11),
        reason=response.reason,
        preload_content=False,
        decode_content=False,
        original_response=body,
        retries=getattr(old, "retries", None),
        enforce_content_length=False,
        request_url=getattr(old, "url", None),
    )


class _File(io.BufferedReader):
    def flush(self) -> None:
        """Do nothing: http.client flushes what the garbage collector has closed before it."""


class _Connection(io.RawIOBase):
    """A response on its way: a head, and pieces of the body as chunks."""

    def __init__(self, head: bytes, pieces: Iterator[bytes], close: Callable[[], Any]) -> None:
        self._head, self._pieces, self._close = head, pieces, close

    def makefile(self, _: str) -> io.BufferedReader:
        """Return the file from which http.client reads."""
        return _File(self)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there; wait only where nothing is."""
        if not self._head:
            piece = next(self._pieces, b"")
            self._head = b"%x\r\n%b\r\n" % (len(piece), piece)
        size = min(len(buffer), len(self._head))
        buffer[:size], self._head = self._head[:size], self._head[size:]
        return size

    def close(self) -> None:
        """End the stream, and release the connection."""
        if not self.closed:
            super().close()
            self._close()


def wrappers(calls: PooledCalls | None, served: Served) -> dict[tuple[str, str], Wrapper]:
    """Return the wrapper of what picks a sender for an address."""
    if "requests" not in served.libraries:
        return {}

    def adapter(wrapped: Wrapped, _session: object, args: Args, kwargs: Kwargs) -> Any:
        """Wrap `Session.get_adapter`."""
        theirs = wrapped(*args, **kwargs)
        url = (*args, *kwargs.values())[-1]  # behind the session, where it is called unbound
        if not any(host in url for host in served.hosts) or hostname(url) not in served.hosts:
            return theirs
        return PooledAdapter(theirs, calls, served)

    return {("requests", "Session.get_adapter"): adapter}
