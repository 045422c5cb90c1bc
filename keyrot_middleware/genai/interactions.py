"""Interactions and what belongs to it (agents, environments, webhooks…), through the pool.

The SDK has a client of its own for them, made by a generator: one since google-genai 2, another one
in 1.x. Each has one method through which every request goes, and which repeats a 429 up to four
times with the same key. That method is wrapped: it is called once for each key, without repeats of
what is a key's own failure. It returns the response of the HTTP library (in 1.x what is made of
it), and a stream is read from there. So the bytes of a stream pass through here, unchanged: ids
in them, tokens and errors are read on the way, and the lease ends with them.

An error that Google sends as the first event of a stream, under HTTP 200, is a failed send. Behind
any other event it is booked on the key and the program sees it: a stream is never restarted.
"""

from __future__ import annotations

import copy
import json
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from math import inf
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..adapters.key_headers import KEY_HEADER
from ..adapters.patching import Patcher, Wrapper
from ..adapters.pooled_calls import PooledCalls
from ..adapters.reading import with_served_tier
from ..adapters.redaction import MOST, Forgetting, Redact, redact_exception, redact_key
from ..adapters.urls import host_from_url
from ..core.commands import Done, Failed, StreamEnd, StreamOpened
from ..core.failures import FailureFacts
from ..core.flow import CallState, Exhausted
from ..core.interactions import (
    BodyLedger,
    EventLedger,
    ResponseLedger,
    call_info,
    collection_of,
)
from ..core.model import EXPRESS_POOL_KEY, GEMINI_API, Lease
from ..guard import handle_internal_error
from ..runtime import runner
from ..runtime.current import workload
from ..secrets import Secret
from .call_info import ApiRequest, failed_from_error
from .error_responses import aread_error, read_error
from .foreign_errors import facts_from_error
from .key_injection import KEY_FAILURES, KeyInjection
from .pool_exhausted import also_api_error, exhausted_call

__all__ = ["Interactions"]

_GAOS = "google.genai._gaos"
_ERRORS = f"{_GAOS}.lib.compat_errors"
_STAINLESS = "google.genai._interactions._base_client"

_DO_REQUEST = ("hook_ctx", "request", "is_error_status_code", "stream", "retry_config")
_REQUEST = ("cast_to", "options")
_NOTES = "keyrot_notes"
"""Where a response keeps the notes for the exception that the SDK makes of it."""
_VERTEX = "aiplatform.googleapis.com"
_VERTEX_VERSION = "/v1beta1/"
"""Of Vertex AI alone; it shows a client of Vertex AI that has another host."""


class _Call(NamedTuple):
    """A request that goes through the pool."""

    state: CallState
    key: Secret
    """The client's own, or the placeholder."""
    request: ApiRequest
    url: str
    collection: str
    """What an `id` in the response belongs to."""
    stream: bool
    """The body is read by the program, later."""
    send: Callable[[KeyInjection], Any]
    """Sends it once, with the key of a send; returns what the SDK's method does."""
    response_of: Callable[[Any], Any]
    """Finds the response of the HTTP library in that; None if it is not there any more."""
    library: Any
    """The HTTP library of the client."""
    make_error: Callable[[int, Any, str, Any], BaseException]
    """Makes the SDK's own exception of code, body, message and response."""


class Interactions:
    """The wrappers of the methods through which these requests go."""

    def __init__(self, calls: PooledCalls, keep_patches: Patcher) -> None:
        """Serve a pool.

        Args:
            calls: The pool.
            keep_patches: Keeps the patches of a send in place until it has ended.
        """
        self._pool = calls.pool
        self._calls = calls
        self._patcher = keep_patches

    @property
    def table(self) -> dict[tuple[str, str], Wrapper]:
        """The wrapper of each method, by its module and name."""
        return {
            (f"{_GAOS}.basesdk", "BaseSDK.do_request"): self.do_request,
            (f"{_GAOS}.basesdk", "AsyncBaseSDK.do_request_async"): self.do_request_async,
            (_ERRORS, "wrap_sdk_error"): self.wrap_sdk_error,
            (_STAINLESS, "SyncAPIClient.request"): self.request,
            (_STAINLESS, "AsyncAPIClient.request"): self.request_async,
        }

    def do_request(self, wrapped: Callable[..., Any], _sdk: Any, args: Any, kwargs: Any) -> Any:
        """Wrap the method of that name."""
        call = self._read(self._gaos_call, wrapped, None, args, kwargs)
        return wrapped(*args, **kwargs) if call is None else self._run(call)

    async def do_request_async(
        self, wrapped: Callable[..., Awaitable[Any]], _sdk: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap the method of that name."""
        call = self._read(self._gaos_call, wrapped, None, args, kwargs)
        return await (wrapped(*args, **kwargs) if call is None else self._run_async(call))

    def request(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap the method of that name."""
        call = self._read(self._stainless_call, wrapped, client, args, kwargs)
        return wrapped(*args, **kwargs) if call is None else self._run(call)

    async def request_async(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap the method of that name, `request`."""
        call = self._read(self._stainless_call, wrapped, client, args, kwargs)
        return await (wrapped(*args, **kwargs) if call is None else self._run_async(call))

    def wrap_sdk_error(
        self, wrapped: Callable[..., Any], _module: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap what turns an error of the generated code into the one that the program sees."""
        error = wrapped(*args, **kwargs)
        try:
            inner = args[0] if args else kwargs["error"]
            notes = list(getattr(inner, "__notes__", ())) if error is not inner else []
            response = getattr(error, "response", None)
            notes += getattr(response, "extensions", {}).pop(_NOTES, ())
            for note in notes:
                error.add_note(note)
        except Exception:
            handle_internal_error("genai")
        return error

    # Read a request -------------------------------------------------------------------------------

    def _read(self, read: Callable[..., _Call | None], *args: Any) -> _Call | None:
        """Return a call for the pool, or None if it passes through."""
        try:
            return read(*args)
        except Exception:
            handle_internal_error("genai")
            return None

    def _gaos_call(
        self, wrapped: Callable[..., Any], _client: None, args: Any, kwargs: Any
    ) -> _Call | None:
        given = dict(zip(_DO_REQUEST, args, strict=False)) | kwargs
        request, source = given["request"], given["hook_ctx"].security_source
        key, defaults = getattr(source, "api_key", None), getattr(source, "default_headers", None)
        url = str(request.url)
        if not isinstance(key, str) or _is_vertex(url) or key == EXPRESS_POOL_KEY:
            return None
        if not self._calls.serves(key, url, request.headers, defaults):
            return None
        own = Secret(key)
        stream, retry = bool(given.get("stream")), given.get("retry_config")
        given["retry_config"] = retry = _without_key_failures(retry)

        def send(injection: KeyInjection) -> Any:
            if KEY_HEADER in request.headers:  # hidden, if it was sent before
                request.headers[KEY_HEADER] = own.reveal()
            injection.write_mark(request.headers)
            if stream and _UNREADABLE & set(request.headers.get("accept-encoding", "").split(", ")):
                request.headers["accept-encoding"] = _READABLE
            return wrapped(**given)

        def make_error(code: int, body: Any, message: str, response: Any) -> BaseException:
            made: BaseException = sys.modules[_ERRORS].APIError.generate(
                code, body, message, response
            )
            return made

        asked = ApiRequest(request.method, url, _body_of(request))
        state = self._state(asked, key, url, stream, _timeout_s(request), retries=retry is not None)
        return _Call(
            state,
            own,
            asked,
            url,
            collection_of(request.method, url),
            stream,
            send,
            lambda result: result,
            _library(request),
            make_error,
        )

    def _stainless_call(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> _Call | None:
        given = dict(zip(_REQUEST, args, strict=False)) | kwargs
        options, adapter = given["options"], client.client_adapter
        key, base_url = client.api_key, str(client.base_url)
        own = options.headers if isinstance(options.headers, Mapping) else {}
        if not isinstance(key, str) or (adapter is not None and adapter.is_vertex_ai()):
            return None
        defaults = {k: v for k, v in client.default_headers.items() if isinstance(v, str)}
        if not self._calls.serves(key, base_url, own, defaults):
            return None
        stream = bool(given.get("stream")) or own.get("X-Stainless-Raw-Response") == "stream"

        def send(injection: KeyInjection) -> Any:
            sent = copy.copy(options)
            sent.max_retries = 0
            headers = {k: v for k, v in own.items() if k.lower() != KEY_HEADER}
            if injection.value is not None:
                headers[KEY_HEADER] = injection.mark
            if stream:
                headers = {"Accept-Encoding": _READABLE, **headers}
            sent.headers = headers
            return wrapped(**{**given, "options": sent})

        def make_error(_code: int, body: Any, message: str, response: Any) -> BaseException:
            made: BaseException = client._make_status_error(message, body=body, response=response)
            return made

        body = options.json_data if isinstance(options.json_data, dict) else {}
        extra = options.extra_json if isinstance(options.extra_json, dict) else {}
        asked = ApiRequest(options.method, options.url, {**body, **extra})
        timeout = getattr(options.timeout, "read", options.timeout)
        patience = timeout if isinstance(timeout, int | float) else inf
        return _Call(
            self._state(asked, key, base_url, stream, patience, retries=False),
            Secret(key),
            asked,
            base_url,
            collection_of(options.method, options.url),
            stream,
            send,
            lambda result: getattr(result, "response", getattr(result, "http_response", None)),
            sys.modules.get("httpx"),
            make_error,
        )

    def _state(
        self,
        request: ApiRequest,
        key: str,
        url: str,
        stream: bool,
        patience_s: float,
        *,
        retries: bool,
    ) -> CallState:
        info = call_info(request.http_method, request.path, request.request_dict)
        info = info._replace(
            tokens=self._pool.token_scale.scaled(info.model, info.estimate),
            stream=stream,
            workload=workload.get(),
            host=host_from_url(url),
            sdk_retries=retries,
        )
        return self._calls.call_state(info, key, patience_s)

    # Send it --------------------------------------------------------------------------------------

    def _run(self, call: _Call) -> Any:
        bodies: list[_Bytes] = []
        send, no_key = self._sender(call, bodies), partial(self._exhausted, call)
        try:
            found = runner.stream(self._pool, call.state, send, no_key, self._observe(call))
        except _Refused as refused:
            return refused.with_notes()
        except _ErrorEvent:
            body = bodies.pop()
            return body.relay(iter(body))
        except Exception:
            while bodies:
                bodies.pop().close()
            raise
        return bodies.pop().relay(found) if call.stream else found

    def _sender(
        self, call: _Call, bodies: list[_Bytes]
    ) -> Callable[[Lease], Done | StreamOpened | Failed]:
        """Return what sends once; the open stream of the last send is put into *bodies*."""
        redact = self._calls.redact(call.key.reveal())

        def send(lease: Lease) -> Done | StreamOpened | Failed:
            handled = sys.exception()
            while bodies:  # it had an error, or another key would not be tried
                bodies.pop().close()
            try:
                with self._injection(lease, call) as injection:
                    result = call.send(injection)
                response = call.response_of(result)
                if _is_refused(response):
                    return _refused(read_error(response, redact))
                if not call.stream:
                    return _done(call, result, response)
                bodies.append(_Bytes(call, result, response, redact, injection.key_sent))
                return bodies[-1].open()
            except Exception as error:
                return _failed(error, redact, handled)

        return send

    async def _run_async(self, call: _Call) -> Any:
        bodies: list[_AsyncBytes] = []
        send, no_key = self._async_sender(call, bodies), partial(self._exhausted, call)
        try:
            found = await runner.astream(self._pool, call.state, send, no_key, self._observe(call))
        except _Refused as refused:
            return refused.with_notes()
        except _ErrorEvent:
            body = bodies.pop()
            return body.relay(body)
        except Exception:
            while bodies:
                await bodies.pop().aclose()
            raise
        return bodies.pop().relay(found) if call.stream else found

    def _async_sender(
        self, call: _Call, bodies: list[_AsyncBytes]
    ) -> Callable[[Lease], Awaitable[Done | StreamOpened | Failed]]:
        redact = self._calls.redact(call.key.reveal())

        async def send(lease: Lease) -> Done | StreamOpened | Failed:
            handled = sys.exception()
            while bodies:
                await bodies.pop().aclose()
            try:
                with self._injection(lease, call) as injection:
                    result = await call.send(injection)
                response = call.response_of(result)
                if _is_refused(response):
                    return _refused(await aread_error(response, redact))
                if not call.stream:
                    return _done(call, result, response)
                bodies.append(_AsyncBytes(call, result, response, redact, injection.key_sent))
                return await bodies[-1].open()
            except Exception as error:
                return _failed(error, redact, handled)

        return send

    def _observe(self, call: _Call) -> Any:
        return self._calls.observe(call.state.info)

    def _injection(self, lease: Lease, call: _Call) -> KeyInjection:
        value, origins = self._calls.value(lease), self._calls.allowed[GEMINI_API]
        return KeyInjection(value, call.key, origins, self._patcher, parsed_below=True)

    def _exhausted(self, call: _Call, no_key: Exhausted) -> BaseException:
        """Return `KeyPoolExhausted`, as an exception that the SDK raises for these requests too."""
        model = call.state.info.model
        error: Any = exhausted_call(self._calls, no_key, call.library.Response, model)
        error.response.request = call.library.Request(call.request.http_method, call.url)
        theirs = call.make_error(error.code, error.details, str(error), error.response)
        made = also_api_error(error, theirs)
        last = no_key.last
        if isinstance(last, _Refused):  # which the SDK has made no exception of
            text = f"Error code: {last.code} - {last.body}"  # as the SDK writes it
            last = call.make_error(last.code, last.body, text, last.response)
        made.__cause__ = None if isinstance(last, _ErrorEvent) else last
        return made


def _is_vertex(url: str) -> bool:
    return host_from_url(url).endswith(_VERTEX) or urlsplit(url).path.startswith(_VERTEX_VERSION)


def _without_key_failures(retry: Any) -> Any:
    """Return the SDK's retries without those of a key's own failure; None if none is left.

    Args:
        retry: The configuration and the codes to repeat, such as `429` and `5XX`; or None.
    """
    if retry is None:
        return None
    config, codes = retry
    codes = getattr(config, "status_codes_override", None) or codes
    left = [
        code
        for some in codes
        for code in (map(str, range(400, 500)) if some.upper() == "4XX" else (some,))
        if code not in _KEY_CODES
    ]
    config = copy.copy(config)
    config.status_codes_override = None
    return (config, left) if left else None


_KEY_CODES = frozenset(map(str, KEY_FAILURES))


def _body_of(request: Any) -> Mapping[str, Any]:
    """Return the body of a request, if it is a JSON object that is in memory."""
    if "json" not in request.headers.get("content-type", "") or not hasattr(request, "_content"):
        return {}
    body = json.loads(request.content or b"{}")
    return body if isinstance(body, dict) else {}


def _timeout_s(request: Any) -> float:
    seconds = request.extensions.get("timeout", {}).get("read")
    return seconds if isinstance(seconds, int | float) else inf


def _library(request: Any) -> Any:
    """Return the HTTP library of a request, httpx or httpx2."""
    roots = (cls.__module__.partition(".")[0] for cls in type(request).__mro__)
    return next(sys.modules[root] for root in roots if root in ("httpx", "httpx2"))


# What a send returns ----------------------------------------------------------------------------


class _Refused(Exception):  # noqa: N818 - never reaches a caller
    """The server refused a request; the SDK makes its own exception of the response."""

    def __init__(self, response: Any, body: Any) -> None:
        super().__init__(f"HTTP {response.status_code}")
        self.response = response
        self.code: int = response.status_code
        self.body = body
        self.details = _as_google(body, self.code)
        """As for any other request: see `Pool.record_refusal`."""
        self.status = self.details["error"]["status"]

    def with_notes(self) -> Any:
        """Return the response, with what is noted for the exception that is made of it."""
        self.response.extensions[_NOTES] = getattr(self, "__notes__", ())
        return self.response


def _as_google(body: Any, code: int) -> dict[str, Any]:
    """Return the error body of another method of the API for one of these."""
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    status = error.get("status") or _STATUSES.get(code, "UNKNOWN")
    message = error.get("message") or str(body)  # the SDK's exceptions need a text
    return {"error": {**error, "code": code, "message": message, "status": status}}


_STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}


class _ErrorEvent(Exception):  # noqa: N818 - never reaches a caller
    """An error came inside a stream; the program reads it there."""


def _is_refused(response: Any) -> bool:
    """Return whether the SDK raises an error for a response, and does not read it."""
    return response is not None and not response.is_success


def _refused(response: Any) -> Failed:
    try:
        body = response.json()
    except ValueError:
        body = response.text
    after = response.headers.get("retry-after")
    return Failed(FailureFacts(response.status_code, body, after), _Refused(response, body))


def _failed(error: Exception, redact: Redact, handled: BaseException | None) -> Failed:
    redact_exception(error, redact, handled)
    facts = facts_from_error(error, redact)
    if facts is None:  # of a lost connection the SDK makes another exception
        facts = failed_from_error(_origin(error), redact, handled).facts
    return Failed(facts, error)


def _origin(error: Exception) -> Exception:
    cause = error.__cause__
    return cause if isinstance(cause, Exception) else error


def _done(call: _Call, result: Any, response: Any) -> Done:
    """Read a whole response."""
    ledger = BodyLedger(call.collection)
    try:
        if response is None:
            ledger.read(result.model_dump(mode="json") if hasattr(result, "model_dump") else None)
        elif "json" in response.headers.get("content-type", ""):
            ledger.feed(response.content)
            ledger.finish()
    except Exception:
        handle_internal_error("genai")
    usage = with_served_tier(ledger.usage, getattr(response, "headers", None))
    return Done(result, usage, _new_names(ledger, call))


def _new_names(ledger: ResponseLedger, call: _Call) -> tuple[str, ...]:
    """Return the names whose owner is not recorded already."""
    known = call.state.info.resources if call.state.owner_is_known else ()
    return tuple(name for name in ledger.names if name not in known)


# The bytes of a stream --------------------------------------------------------------------------


_READABLE = "gzip, deflate"
_UNREADABLE = frozenset({"br", "zstd"})
"""Encodings that need a library to be read. A stream is not asked for in these."""


class _Body:
    """The bytes of an open stream, and what they report."""

    def __init__(
        self, call: _Call, result: Any, response: Any, redact: Redact, key: Secret
    ) -> None:
        self._call, self._result, self._response, self._redact = call, result, response, redact
        self._key, self._line = key, b""
        self._source, self._headers = response.stream, response.headers
        self._first: list[bytes] = []
        """The bytes up to the first event, which the program has not read yet."""
        kind, encoding = (
            response.headers.get(name, "") for name in ("content-type", "content-encoding")
        )
        ledger = EventLedger if "event-stream" in kind else BodyLedger
        readable = "json" in kind or ledger is EventLedger
        self._redacts = readable and not encoding
        """Its lines pass without the key; those of a compressed stream as they are."""
        self.ledger = (ledger if readable else ResponseLedger)(call.collection)
        # zlib's 32 accepts both formats and recognizes them by their first bytes
        self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress if encoding else bytes
        self.is_closing = False
        """The program reads no further: nothing is read any more."""

    def _take(self, data: bytes | None) -> bytes | None:
        """Count what has arrived, or that no more will; return what the program reads of it."""
        if data is not None:
            self._count(data)
        if not self._redacts:
            return data
        if data is None:
            lines, self._line = self._line or None, b""
        else:
            lines, self._line = _whole_lines(self._line + data)
        return lines and redact_key(lines, self._key)

    def _count(self, data: bytes) -> None:
        try:
            self.ledger.feed(self._unpack(data))
        except zlib.error:
            self.ledger = ResponseLedger("")
        except Exception:
            self.ledger = ResponseLedger("")
            handle_internal_error("genai")

    def _add_request(self, error: Exception) -> None:
        """Name the request in an error of the HTTP library, as its response does."""
        if isinstance(error, self._call.library.RequestError):
            error.request = self._response.request

    def _has_begun(self, data: bytes) -> bool:
        """Keep bytes of the beginning; return whether the first event is among them."""
        self._first.append(data)
        return self.ledger.has_begun

    def _opened(self) -> StreamOpened | Failed:
        if not self.ledger.has_begun:
            self._finish()
        if self.ledger.failed_at_once:
            return self._failed_event()
        return StreamOpened(self)

    def _finish(self) -> None:
        try:
            self.ledger.finish()
        except Exception:
            handle_internal_error("genai")

    def _failed_event(self) -> Failed:
        facts = FailureFacts(None, self.ledger.error, self._headers.get("retry-after"))
        return Failed(facts, _ErrorEvent())

    def end(self, error: Exception | None) -> StreamEnd:
        """Return the usage of the stream, the names in it and why it broke."""
        handled = sys.exception()  # by the reader of the stream
        failed: Failed | None = None
        self._finish()
        if error is not None:
            failed = _failed(error, self._redact, handled)
        elif self.ledger.error is not None:
            failed = self._failed_event()
        usage = with_served_tier(self.ledger.usage, self._headers)
        return StreamEnd(usage, _new_names(self.ledger, self._call), failed)

    def _relay_by(self, tee: Any) -> Any:
        result, self._response.stream = self._result, tee
        self._result = self._response = None  # which have the stream, and it this: a cycle
        return result


def _whole_lines(data: bytes) -> tuple[bytes, bytes]:
    """Split behind the last line that is whole; what is too long for a line passes as it is."""
    end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    return (data[:end], data[end:]) if len(data) - end <= MOST else (data, b"")


class _Bytes(_Body):
    """Those of a sync stream."""

    def open(self) -> StreamOpened | Failed:
        """Read the first event: before it arrives, another key may still serve the call."""
        try:
            self._inner = iter(self._source)
            while (data := self._next()) is not None:
                if self._has_begun(data):
                    break
        except Exception as error:
            self.close()  # the next attempt needs a connection too
            self._add_request(error)
            raise
        return self._opened()

    def _next(self) -> bytes | None:
        with Forgetting():
            data = next(self._inner, None)
        return self._take(data)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes, the first included."""
        first, self._first = self._first, []
        yield from first
        while not self.is_closing and (data := self._next()) is not None:
            yield data

    def close(self) -> None:
        """Release the connection."""
        self._line = b""
        with suppress(Exception):
            self._source.close()

    def relay(self, chunks: Any) -> Any:
        """Let the program read *chunks*; return what the SDK has made of the response."""
        return self._relay_by(_tee_type(self._call.library, "SyncByteStream")(self, chunks))


class _AsyncBytes(_Body):
    """Those of an async stream."""

    async def open(self) -> StreamOpened | Failed:
        """Read the first event: before it arrives, another key may still serve the call."""
        try:
            self._inner = aiter(self._source)
            while (data := await self._next()) is not None:
                if self._has_begun(data):
                    break
        except Exception as error:
            await self.aclose()
            self._add_request(error)
            raise
        return self._opened()

    async def _next(self) -> bytes | None:
        with Forgetting():
            data = await anext(self._inner, None)
        return self._take(data)

    def __aiter__(self) -> _AsyncBytes:
        """Return this stream."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes.

        Raises:
            StopAsyncIteration: The stream ended.
        """
        if self._first:
            return self._first.pop(0)
        data = await self._next() if not self.is_closing else None
        if data is None:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        """Release the connection."""
        self._line = b""
        with suppress(Exception):
            await self._source.aclose()

    def relay(self, chunks: Any) -> Any:
        """Let the program read *chunks*; return what the SDK has made of the response."""
        return self._relay_by(_tee_type(self._call.library, "AsyncByteStream")(self, chunks))


class _Tee:
    """The stream of a response, of which the lease ends with it.

    The SDK stops reading behind the last event, before the end of the bytes. Closed there, the
    stream is whole; closed before, the call is abandoned.
    """

    def __init__(self, body: _Bytes, chunks: Any) -> None:
        self._body, self._chunks = body, chunks

    def __iter__(self) -> Iterator[bytes]:
        with suppress(_ErrorEvent):
            # `yield from` would close them with this generator, before close() is called
            for data in self._chunks:  # noqa: UP028
                yield data

    def close(self) -> None:
        self._body.is_closing = True
        try:
            if self._body.ledger.is_over:
                with suppress(_ErrorEvent):
                    for _ in self._chunks:
                        pass
            else:
                self._chunks.close()
        except ValueError:
            pass  # another thread reads it, and ends with an error now
        self._body.close()


class _AsyncTee:
    """The same for async streams."""

    def __init__(self, body: _AsyncBytes, chunks: Any) -> None:
        self._body, self._chunks = body, chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with suppress(_ErrorEvent):
            async for data in self._chunks:
                yield data

    async def aclose(self) -> None:
        self._body.is_closing = True
        try:
            if self._body.ledger.is_over:
                with suppress(_ErrorEvent):
                    async for _ in self._chunks:
                        pass
            else:
                await self._chunks.aclose()
        except RuntimeError:
            pass  # another task reads it, and ends with an error now
        await self._body.aclose()


@cache
def _tee_type(library: Any, name: str) -> Any:
    """Return the class of our streams that is one of the library's too, which asks for that."""
    tee = _Tee if name == "SyncByteStream" else _AsyncTee
    return type(tee.__name__, (tee, getattr(library, name)), {})
