"""Interactions and what belongs to it (agents, environments, webhooks…), through the pool.

The SDK has a client of its own for them, made by a generator: one since google-genai 2, another one
in 1.x. Each has one method through which every request goes, and which repeats a 429 up to four
times with the same key. gaos.py and stainless.py wrap that method and read its requests; here they
are sent, once for each key. The response is that of the HTTP library (in 1.x the SDK may have made
something of it), and a stream is read from there. So the bytes of a stream pass through here,
unchanged: ids in them, tokens and errors are read on the way, and the lease ends with them.

An error that Google sends as the first event of a stream, under HTTP 200, is a failed send. Behind
any other event it is booked on the key and the program sees it: a stream is never restarted.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from ..adapters.bodies import AsyncBody, AsyncTee, Body, EventError, Tee, mixed_type
from ..adapters.foreign_errors import facts_from_error
from ..adapters.patching import Patcher
from ..adapters.pool_exhausted import also_api_error, exhausted_call
from ..adapters.pooled_calls import PooledCalls
from ..adapters.reading import with_served_tier
from ..adapters.redaction import Redact, redact_exception
from ..adapters.urls import host_from_url
from ..core.commands import Done, Failed, StreamOpened
from ..core.failures import FailureFacts
from ..core.flow import CallState, Exhausted
from ..core.interactions import BodyLedger, EventLedger, ResponseLedger, call_info
from ..core.model import GEMINI_API, Lease
from ..guard import handle_internal_error
from ..runtime import runner
from ..runtime.current import workload
from ..secrets import Secret
from .call_info import ApiRequest, failed_from_error
from .error_responses import aread_error, read_error
from .key_injection import KeyInjection

__all__ = ["NOTES", "Call", "Interactions"]

NOTES = "keyrot_notes"
"""Where a response keeps the notes for the exception that the SDK makes of it."""


class Call(NamedTuple):
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

    @property
    def known_names(self) -> tuple[str, ...]:
        """The names whose owner is recorded already."""
        return self.state.info.resources if self.state.owner_is_known else ()


class _Opened(NamedTuple):
    """A stream, of which the first event is here."""

    result: Any
    """What the SDK has made of the response."""
    response: Any
    body: Any

    def read_by(self, chunks: Any, library: Any) -> Any:
        """Let the program read *chunks*; return what the SDK has made of the response."""
        if isinstance(self.body, Body):
            kind = mixed_type(Tee, library.SyncByteStream)
        else:
            kind = mixed_type(AsyncTee, library.AsyncByteStream)
        self.response.stream = kind(self.body, chunks)
        return self.result


class Interactions:
    """Sends these requests through a pool; a subclass wraps the methods of one generator."""

    def __init__(self, calls: PooledCalls, keep_patches: Patcher) -> None:
        """Serve a pool.

        Args:
            calls: The pool.
            keep_patches: Keeps the patches of a send in place until it has ended.
        """
        self._pool = calls.pool
        self._calls = calls
        self._patcher = keep_patches

    def read(self, read: Callable[..., Call | None], *args: Any) -> Call | None:
        """Return a call for the pool, or None if it passes through."""
        try:
            return read(*args)
        except Exception:
            handle_internal_error("genai")
            return None

    def state(
        self,
        request: ApiRequest,
        key: str,
        url: str,
        stream: bool,
        wait_limit_s: float,
        *,
        retries: bool,
    ) -> CallState:
        """Return the state of a call; the arguments are those of its reader."""
        info = call_info(request.http_method, request.path, request.request_dict)
        info = info._replace(
            tokens=self._pool.token_scale.scaled(info.model, info.estimate),
            stream=stream,
            workload=workload.get(),
            host=host_from_url(url),
            sdk_retries=retries,
        )
        return self._calls.call_state(info, key, wait_limit_s)

    def run(self, call: Call) -> Any:
        """Send a request; return what the SDK's method would."""
        opened: list[_Opened] = []
        send, no_key = self._sender(call, opened), partial(self._exhausted, call)
        try:
            found = runner.stream(self._pool, call.state, send, no_key, self._observe(call))
        except _Refused as refused:
            return refused.with_notes()
        except EventError:
            last = opened.pop()
            return last.read_by(iter(last.body), call.library)
        except Exception:
            while opened:
                opened.pop().body.close()
            raise
        return opened.pop().read_by(found, call.library) if call.stream else found

    def _sender(
        self, call: Call, opened: list[_Opened]
    ) -> Callable[[Lease], Done | StreamOpened | Failed]:
        """Return what sends once; the open stream of the last send is put into *opened*."""
        redact = self._calls.redact(call.key.reveal())

        def send(lease: Lease) -> Done | StreamOpened | Failed:
            handled, injection = sys.exception(), self._injection(lease, call)
            while opened:  # it had an error, or another key would not be tried
                opened.pop().body.close()
            try:
                with injection:
                    result = call.send(injection)
                response = call.response_of(result)
                if _is_refused(response):
                    return injection.lost() or _refused(read_error(response, redact))
                if not call.stream:
                    return _done(call, result, response)
                pieces, close = iter(response.stream), response.stream.close
                body = Body(pieces, close, **_reading(call, response, redact, injection.key_sent))
                try:
                    body.read_first()
                except BaseException as error:
                    body.close()  # the next attempt needs a connection too
                    _name_request(error, call, response)
                    raise
                opened.append(_Opened(result, response, body))
                return _first_event(body)
            except Exception as error:
                return injection.lost(error) or _failed(error, redact, handled)

        return send

    async def arun(self, call: Call) -> Any:
        """Async version of `run`."""
        opened: list[_Opened] = []
        send, no_key = self._async_sender(call, opened), partial(self._exhausted, call)
        try:
            found = await runner.astream(self._pool, call.state, send, no_key, self._observe(call))
        except _Refused as refused:
            return refused.with_notes()
        except EventError:
            last = opened.pop()
            return last.read_by(last.body, call.library)
        except Exception:
            while opened:
                await opened.pop().body.aclose()
            raise
        return opened.pop().read_by(found, call.library) if call.stream else found

    def _async_sender(
        self, call: Call, opened: list[_Opened]
    ) -> Callable[[Lease], Awaitable[Done | StreamOpened | Failed]]:
        redact = self._calls.redact(call.key.reveal())

        async def send(lease: Lease) -> Done | StreamOpened | Failed:
            handled, injection = sys.exception(), self._injection(lease, call)
            while opened:
                await opened.pop().body.aclose()
            try:
                with injection:
                    result = await call.send(injection)
                response = call.response_of(result)
                if _is_refused(response):
                    return injection.lost() or _refused(await aread_error(response, redact))
                if not call.stream:
                    return _done(call, result, response)
                pieces, close = aiter(response.stream), response.stream.aclose
                reading = _reading(call, response, redact, injection.key_sent)
                body = AsyncBody(pieces, close, **reading)
                try:
                    await body.read_first()
                except BaseException as error:
                    await body.aclose()
                    _name_request(error, call, response)
                    raise
                opened.append(_Opened(result, response, body))
                return _first_event(body)
            except Exception as error:
                return injection.lost(error) or _failed(error, redact, handled)

        return send

    def _observe(self, call: Call) -> Any:
        return self._calls.observe(call.state.info)

    def _injection(self, lease: Lease, call: Call) -> KeyInjection:
        value, origins = self._calls.value(lease), self._calls.allowed[GEMINI_API]
        return KeyInjection(value, call.key, origins, self._patcher, parsed_below=True)

    def _exhausted(self, call: Call, no_key: Exhausted) -> BaseException:
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
        made.__cause__ = None if isinstance(last, EventError) else last
        return made


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
        self.response.extensions[NOTES] = getattr(self, "__notes__", ())
        return self.response


def _as_google(body: Any, code: int) -> dict[str, Any]:
    """Return the error body of another method of the API for one of these."""
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    status = error.get("status") or _STATUSES.get(code, "UNKNOWN")
    message = error.get("message") or str(body)  # the SDK's exceptions need a text
    return {"error": {**error, "code": code, "message": message, "status": status}}


_STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}


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


def _done(call: Call, result: Any, response: Any) -> Done:
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
    names = tuple(name for name in ledger.names if name not in call.known_names)
    return Done(result, usage, names)


def _first_event(body: Body | AsyncBody) -> StreamOpened | Failed:
    """Return what comes of a stream: the program reads it, or its first event is an error."""
    return body.failed_event() if body.ledger.failed_at_once else StreamOpened(body)


def _reading(call: Call, response: Any, redact: Redact, key: Secret) -> dict[str, Any]:
    """Return how the body of a stream is read; a compressed one passes with the key in it."""
    headers = response.headers
    kind, encoding = headers.get("content-type", ""), headers.get("content-encoding", "")
    ledger: type[ResponseLedger] = EventLedger if "event-stream" in kind else BodyLedger
    is_readable = "json" in kind or ledger is EventLedger
    # zlib's 32 accepts both formats and recognizes them by their first bytes
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress if encoding else bytes
    return {
        "ledger": (ledger if is_readable else ResponseLedger)(call.collection),
        "headers": headers,
        "key": key if is_readable and not encoding else None,
        "redact": redact,
        "by_line": True,
        "unpack": unpack,
        "known": call.known_names,
    }


def _name_request(error: BaseException, call: Call, response: Any) -> None:
    """Name the request in an error of the HTTP library, as its response does."""
    if isinstance(error, call.library.RequestError):
        error.request = response.request
