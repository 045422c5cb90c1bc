"""requests: the adapter that a session picks for an address, over the pool.

As with httpx, hooks, auth and redirects are above it. What urllib3 would send again with the same
key is not: a `Retry` for 429 does not apply to a request that goes through the pool.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from http import HTTPStatus
from math import inf
from typing import Any

import wrapt

from ..adapters.pooled_calls import PooledCalls
from ..adapters.reading import transport_failure
from ..adapters.redaction import Redacting, kept_error, redact_key, scrub
from ..core.commands import Done, Failed, StreamOpened
from ..core.failures import FailureFacts
from ..core.model import Lease
from ..guard import handle_internal_error
from ..runtime import runner
from ..secrets import Secret
from .bodies import Body, EventError, read_bounded, until_enough
from .calls import (
    KEY_NAMES,
    NO_RETRY,
    Call,
    Incoming,
    Refused,
    Reply,
    read,
    with_key_header,
    without_key,
)

__all__ = ["PooledAdapter", "RequestsAdapters"]

_KEY_FAILURES = frozenset({401, 402, 403, 429})
_PIECE = 4_096
_CODED = ("content-encoding", "content-length", "transfer-encoding")


class RequestsAdapters:
    """Serves requests of sessions."""

    def __init__(self, calls: PooledCalls | None) -> None:
        """Serve a pool; None where no key was found at all."""
        self._calls = calls

    def read(self, request: Any, timeout: Any, *, retries_5xx: bool) -> Any:
        """Return what to do with a prepared request; see `calls.read`."""
        try:
            limit = timeout[1] if isinstance(timeout, tuple) else timeout
            incoming = Incoming(
                request.method,
                request.url,
                request.headers,
                lambda: _content(request.body),
                limit if isinstance(limit, int | float) else inf,
                retries_5xx,
            )
            return read(self._calls, incoming)
        except Exception:
            handle_internal_error("http_clients")
            return None

    def serve(self, call: Call, request: Any, send_once: Any) -> Any:
        """Send a request through the pool."""
        with call:
            while True:
                try:
                    return self._serve(call, request, send_once)
                except Exception as failure:
                    goes_on = call.go_on(failure)
                if not goes_on:
                    return _last(call.take_error(), request)

    def _serve(self, call: Call, request: Any, send_once: Any) -> Any:
        observer, opened = call.observe(), list[Any]()

        def send(lease: Lease, get: str = "") -> Any:
            key, in_full = call.key(lease), observer is not None or lease.has_budget
            try:
                with Redacting(call.redact):
                    response = send_once(_copy(call, request, key, get))
                    response.request, response.url = request, request.url
                    said = "\n".join((*response.headers.values(), response.reason or ""))
                    if call.redact(said) != said:
                        scrub(response, call.redact)
                    reply = _received(call, response, key, in_full)
            except Exception as error:
                return Failed(FailureFacts(transport=transport_failure(error)), error)
            if isinstance(reply, StreamOpened):
                opened[:] = (response, reply.stream)
            return reply

        found = runner.stream(call.calls.pool, call.call, send, call.no_key, observer)
        if opened:
            response, body = opened
            opened.clear()
            response.raw = _Raw(response.raw, body, found)
            return response
        return found


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
        if isinstance(found, Call):
            once = _without_key_retries(adapter, codes)
            return library.serve(found, request, lambda one: once.send(one, *args, **kwargs))
        if isinstance(found, Reply):
            return _reply(found, request)
        if isinstance(found, Secret):
            sent = request.copy()
            sent.url = without_key(request.url)
            with_key_header(sent.headers, found)
            response = adapter.send(sent, *args, **kwargs)
            response.request = request
            return response
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


def _copy(call: Call, request: Any, key: Secret, sought: str) -> Any:
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
        sent.body = _chained(target.body, call.take_rest())
    elif request.body is not None or sought:
        sent.body = target.body or None
        sent.headers.pop("Transfer-Encoding", None)
        sent.prepare_content_length(sent.body)
    return sent


def _chained(begin: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield begin
    yield from rest


def _content(body: Any) -> tuple[bytes, Any]:
    """Return the body of a prepared request, and the rest of one that is too long to be kept."""
    if body is None:
        return b"", None
    if isinstance(body, str):
        return body.encode(), None
    if isinstance(body, bytes | bytearray):
        return bytes(body), None
    if hasattr(body, "read"):
        return read_bounded(iter(lambda: body.read(1 << 20), b""))
    return read_bounded(iter(body))


# Responses --------------------------------------------------------------------------------------


def _received(call: Call, response: Any, key: Secret, in_full: bool) -> Any:
    if response.status_code >= 400:
        with closing(response):
            said = until_enough(response.iter_content(_PIECE))
        return _failed(call, response, said)
    if response.status_code >= 300:
        return Done(response)
    if not call.is_stream(response.headers):
        return _whole(call, response, key, in_full=in_full)
    headers, raw = response.headers, response.raw
    body = Body(_pieces(raw), raw.close, call.ledger(headers), headers, key=key, redact=call.redact)
    try:
        body.read_first()
        if not body.ledger.failed_at_once:
            return StreamOpened(body)
        rest = until_enough(body)
    finally:
        if body.ledger.failed_at_once or not body.ledger.has_begun:
            body.close()
    return _failed(call, response, rest, body.ledger.error)


def _pieces(raw: Any) -> Iterator[bytes]:
    """Return the bytes of a response as they come, decoded."""
    if not hasattr(raw, "stream"):  # a file, as adapters of mocks have
        return iter(lambda: raw.read(_PIECE), b"")
    if getattr(raw, "chunked", False) or not hasattr(raw, "read1"):
        return iter(raw.stream(_PIECE, decode_content=True))
    # Without a length of its own, `stream` waits for a whole piece.
    return iter(lambda: raw.read1(_PIECE, decode_content=True), b"")


def _whole(call: Call, response: Any, key: Secret, *, in_full: bool) -> Done:
    content = response.content
    hidden = redact_key(content, key)
    if hidden != content:
        response = _rebuilt(response, hidden)
    try:
        text = hidden.decode("utf-8", "replace")
        return call.done(response, text, response.headers, in_full=in_full)
    except Exception:
        handle_internal_error("http_clients")
        return Done(response)


def _failed(call: Call, response: Any, body: bytes, event: Any = None) -> Failed:
    kept = kept_error(response.status_code, body, call.redact, response.encoding)
    rebuilt = _rebuilt(response, kept)
    if event is not None:
        after = response.headers.get("retry-after")
        return Failed(FailureFacts(None, event, after), Refused(rebuilt, event))
    text = kept.decode("utf-8", "replace")
    return call.refused(response.status_code, text, response.headers, rebuilt)


def _rebuilt(response: Any, content: bytes) -> Any:
    """Return an unread response like another one, with another content."""
    headers = {name: text for name, text in response.headers.items() if name.lower() not in _CODED}
    made = _made(response.status_code, headers, content, response.request)
    made.reason, made.cookies, made.encoding = response.reason, response.cookies, response.encoding
    made.connection = response.connection
    return made


def _made(code: int, headers: dict[str, str], content: bytes, request: Any) -> Any:
    response = sys.modules["requests"].Response()
    response.status_code, response.request, response.url = code, request, request.url
    response.headers.update(headers)
    response.headers["content-length"] = str(len(content))
    response.raw = io.BytesIO(content)
    response.encoding, response.reason = "utf-8", HTTPStatus(code).phrase
    return response


def _reply(reply: Reply, request: Any) -> Any:
    return _made(reply.code, reply.headers, reply.body, request)


def _last(error: Exception, request: Any) -> Any:
    """Return the response that ends a call; raise what is none."""
    if not isinstance(error, Refused):
        raise error
    if isinstance(error.response, Reply):
        return _reply(error.response, request)
    error.response.headers[NO_RETRY] = "false"  # it was sent again here already
    return error.response


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
        if rest:
            return rest
        with suppress(EventError):
            return next(self._self_relay, b"")
        return b""

    def close(self) -> None:
        """End the stream, and release the connection."""
        self._self_body.leave(self._self_relay)

    def release_conn(self) -> None:
        """Do as `close`: what is not read by now never is."""
        self.close()
