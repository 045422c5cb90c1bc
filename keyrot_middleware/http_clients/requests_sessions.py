"""requests: the adapter that a session picks for an address, over the pool.

As with httpx, hooks, auth and redirects are above it. What urllib3 would send again with the same
key is not: a `Retry` for 429 does not apply to a request that goes through the pool.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from itertools import chain, repeat, takewhile
from math import inf
from typing import Any

import wrapt

from ..adapters.bodies import Body, read_bounded
from ..adapters.redaction import Redact, scrub
from ..secrets import Secret
from .calls import KEY_NAMES, Call, Head, Incoming, Reply, read, with_key_header, without_key
from .serving import Library

__all__ = ["PooledAdapter", "RequestsAdapters"]

_KEY_FAILURES = frozenset({401, 402, 403, 429})
_PIECE = 4_096
_BLOCK = 1 << 20
_CODED = ("content-encoding", "content-length", "transfer-encoding")


class RequestsAdapters(Library):
    """Serves requests of sessions."""

    def read(self, request: Any, timeout: Any, *, retries_5xx: bool) -> Any:
        """Return what to do with a prepared request; see `calls.read`."""
        limit = timeout[1] if isinstance(timeout, tuple) else timeout
        limit_s = limit if isinstance(limit, int | float) else inf
        return read(
            self._calls,
            Incoming(request.method, request.url, request.headers, limit_s, retries_5xx),
        )

    def copy(self, call: Call, request: Any, key: Secret, sought: str) -> Any:
        """Return the program's request with one key."""
        target = call.target_of(sought)
        sent = request.copy()
        sent.method, sent.url = target.method, target.url
        for name in KEY_NAMES:
            sent.headers.pop(name, None)
        name, text = call.key_header(key)
        sent.headers[name] = text
        if call.stream:  # see httpx_clients.py
            sent.headers["Accept-Encoding"] = "identity"
        if call.rest is not None:
            sent.body = chain((target.body,), call.take_rest())
        elif target.body is not (request.body or b""):  # else it is a copy already
            sent.body = target.body or None
            sent.headers.pop("Transfer-Encoding", None)
            sent.prepare_content_length(sent.body)
        return sent

    def with_key(self, request: Any, key: Secret) -> Any:
        """Return a request with *key* in place of its placeholder."""
        sent = request.copy()
        sent.url = without_key(request.url)
        with_key_header(sent.headers, key)
        return sent

    def scrub(self, response: Any, request: Any, redact: Redact) -> None:
        """Take keys out of the head of a response, and give it the program's request."""
        response.request, response.url = request, request.url
        headers = response.headers  # its own method is three times as fast
        pairs = getattr(headers, "lower_items", headers.items)()
        said = "\n".join((*(text for _, text in pairs), response.reason or ""))
        if redact(said) != said:
            scrub(response, redact)

    def error_pieces(self, response: Any) -> Iterator[bytes]:
        """Return the decoded bytes of an error."""
        return iter(response.iter_content(_PIECE))

    def pieces(self, response: Any) -> tuple[Iterator[bytes], Callable[[], Any]]:
        """Return the bytes of a stream, decoded."""
        return _pieces(response.raw), response.raw.close

    def content(self, response: Any) -> bytes:
        """Read a response; requests keeps what was read."""
        content: bytes = response.content
        return content

    def headers(self, response: Any) -> Any:
        """Return the headers of a response."""
        return response.headers

    def charset(self, response: Any) -> str | None:
        """Return the encoding of a response."""
        found: str | None = response.encoding
        return found

    def rebuilt(self, response: Any, content: bytes) -> Any:
        """Return an unread response with another content."""
        headers = {k: v for k, v in response.headers.items() if k.lower() not in _CODED}
        made = self.reply(Reply(response.status_code, headers, content), response.request)
        made.reason, made.encoding = response.reason, response.encoding
        made.cookies, made.connection = response.cookies, response.connection
        return made

    def streamed(self, response: Any, body: Any, relay: Any) -> Any:
        """Return the response with the raw one that ends the lease."""
        response.raw = _Raw(response.raw, body, relay)
        return response

    def reply(self, reply: Reply, request: Any) -> Any:
        """Return a response of our own."""
        response = sys.modules["requests"].Response()
        response.status_code, response.request, response.url = reply.code, request, request.url
        response.headers.update(reply.headers)
        response.headers["content-length"] = str(len(reply.body))
        response.raw, response.encoding = io.BytesIO(reply.body), "utf-8"
        response.reason = HTTPStatus(reply.code).phrase
        return response


class PooledAdapter(wrapt.ObjectProxy):  # type: ignore[type-arg]  # of wrapt 2 alone
    """An adapter of the program's, over the pool."""

    def __init__(self, adapter: Any, library: RequestsAdapters) -> None:
        super().__init__(adapter)
        self._self_library = library

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Send a request through the pool, or as it is."""
        adapter, library = self.__wrapped__, self._self_library
        given = dict(zip(("stream", "timeout"), args, strict=False)) | kwargs
        codes = getattr(getattr(adapter, "max_retries", None), "status_forcelist", None) or ()
        retries = any(code >= 500 for code in codes)
        found = library.read(request, given.get("timeout"), retries_5xx=retries)
        if isinstance(found, Head):
            content, rest = _content(request.body)
            found = found.call(content, rest)
            if not isinstance(found, Call):
                request = request.copy()
                request.body = content if rest is None else chain((content,), rest)
        if isinstance(found, Reply):
            return library.reply(found, request)
        once = _without_key_retries(adapter, codes) if isinstance(found, Call) else adapter

        def send_once(one: Any) -> Any:
            try:
                return once.send(one, *args, **kwargs)
            except Exception as error:
                if hasattr(error, "request"):
                    error.request = request  # else it is the one with the key
                raise

        if isinstance(found, Call):
            return library.serve(found, request, send_once)
        if isinstance(found, Secret):
            return library.send_home(request, found, send_once)
        return adapter.send(request, *args, **kwargs)


def _without_key_retries(adapter: Any, codes: Any) -> Any:
    """Return the adapter without urllib3's retries of a key's failure; same connection pool."""
    if not getattr(getattr(adapter, "max_retries", None), "total", None):
        return adapter
    twin = object.__new__(type(adapter))  # copy.copy would make another connection pool
    vars(twin).update(vars(adapter))
    left = frozenset(codes) - _KEY_FAILURES
    # A Retry honors Retry-After for 429 whether or not it is in the list.
    twin.max_retries = adapter.max_retries.new(
        status_forcelist=left, respect_retry_after_header=False
    )
    return twin


def _content(body: Any) -> tuple[bytes, Any]:
    """Return the body of a prepared request, and the rest of one that is too long to be kept.

    What the program's file or generator raises is raised here.
    """
    if isinstance(body, str | bytes | bytearray | None):
        return _encoded(body or b""), None
    read = getattr(body, "read", None)
    pieces = takewhile(len, map(read, repeat(_BLOCK))) if read is not None else iter(body)
    return read_bounded(map(_encoded, pieces))


def _encoded(text: str | bytes | bytearray) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


# Responses --------------------------------------------------------------------------------------


def _pieces(raw: Any) -> Iterator[bytes]:
    """Return the bytes of a response as they come, decoded."""
    if not hasattr(raw, "stream"):  # a file, as adapters of mocks have
        return iter(lambda: raw.read(_PIECE), b"")
    if getattr(raw, "chunked", False) or not hasattr(raw, "read1"):
        return iter(raw.stream(_PIECE, decode_content=True))
    # Without a length of its own, `stream` waits for a whole piece.
    return iter(lambda: raw.read1(_PIECE, decode_content=True), b"")


class _Raw(wrapt.ObjectProxy):  # type: ignore[type-arg]  # of wrapt 2 alone
    """The raw response of a stream, of which the lease ends with it; its bytes are decoded."""

    def __init__(self, raw: Any, body: Body, relay: Any) -> None:
        super().__init__(raw)
        self._self_body, self._self_relay, self._self_rest = body, relay, b""

    def stream(self, amt: int = 65_536, decode_content: bool | None = None) -> Iterator[bytes]:
        """Yield the bytes as they come."""
        del amt, decode_content
        while data := self._next():
            yield data

    def read(self, amt: int | None = None, *_: object, **__: object) -> bytes:
        """Read so many bytes, or all."""
        found = bytearray()
        while (amt is None or len(found) < amt) and (data := self._next()):
            found += data
        self._self_rest = bytes(found[amt:]) if amt is not None else b""
        return bytes(found[:amt])

    def read1(self, amt: int | None = None, **_: object) -> bytes:
        """Read what is there, at most so many bytes."""
        data = self._next()
        self._self_rest = data[amt:] if amt is not None else b""
        return data[:amt]

    def _next(self) -> bytes:
        rest, self._self_rest = self._self_rest, b""
        return rest or self._self_body.read_of(self._self_relay)

    def close(self) -> None:
        """End the stream, and release the connection."""
        self._self_body.leave(self._self_relay)

    def release_conn(self) -> None:
        """Do as `close`: what is not read by now never is."""
        self.close()
