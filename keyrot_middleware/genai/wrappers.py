"""The wrappers of the four request methods, and of the methods that they call.

Calls that the pool has no part in pass through untouched: Vertex AI, unless it is express mode and
the pool has keys for it, a host that is not allowed, a key header of the caller's own, `bypass()`.
"""

from __future__ import annotations

import copy
import logging
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from functools import partial
from typing import Any, NamedTuple

from ..adapters.model_chains import Chains, Models
from ..adapters.patching import Patcher
from ..adapters.pool_exhausted import exhausted_call
from ..adapters.pooled_calls import PooledCalls
from ..adapters.redaction import Redact
from ..adapters.urls import host_from_url
from ..core.commands import Done, Failed, StreamOpened
from ..core.flow import CallState, Exhausted
from ..core.model import GEMINI_API, Lease, Platform
from ..core.model_fallback import (
    replace_model,
)
from ..guard import handle_internal_error
from ..runtime import runner
from ..settings import AllowedOrigins
from ..telemetry.observer import CallObserver
from .call_info import (
    ApiRequest,
    call_info,
    done_from_response,
    effective_options,
    option,
    timeout_s,
)
from .error_responses import response_type_of
from .home_key import placeholder_for, platform_of
from .key_injection import (
    ApiInjection,
    async_request_once,
    build_request,
    current_injection,
    request_once,
    without_key_retries,
)
from .streams import hide_key, open_async, open_sync
from .uploads import Uploads

__all__ = [
    "ClientWrappers",
    "RequestWrappers",
    "keyless",
]

_log = logging.getLogger("keyrot_middleware")

# What is patched below the four request methods: which key a client and its requests have ------
#
# A client without a key of its own has the placeholder, and a send of ours has the key of its
# lease.


keyless: weakref.WeakSet[Any] = weakref.WeakSet()
"""Clients that were made without a key of their own. They outlive the pool."""

_ARGUMENTS = ("vertexai", "api_key", "credentials", "project", "location", "http_options")
"""Of the api client's constructor, in their order."""


class ClientWrappers:
    """The wrappers of the constructor, and of what the request methods call."""

    def __init__(self, allowed: AllowedOrigins, repair: Callable[[], None]) -> None:
        """Serve a pool.

        Args:
            allowed: Where its keys may go.
            repair: Puts back patches that others have removed. Called where that can be noticed:
                when a client is made, and with a request that came in at no other patch.
        """
        self._allowed = allowed
        self._repair = repair

    def wrap_init(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `__init__`: a client without a key gets the placeholder, which wire.py replaces."""
        self._repair()
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        placeholder = placeholder_for(given, self._allowed)
        if placeholder is None:
            return wrapped(*args, **kwargs)
        # No key of the pool: what the client had, a copy or an option of it could take anywhere.
        result = wrapped(**{**given, "api_key": placeholder})
        keyless.add(client)
        return result

    def wrap_build_request(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap `_build_request`: put the key of a send into its request, and into no other."""
        send = current_injection.get()
        if send is None:
            self._repair()
            return wrapped(*args, **kwargs)
        if not isinstance(send, ApiInjection) or send.client is not client:
            return wrapped(*args, **kwargs)
        body = args[2] if len(args) > 2 else kwargs.get("request_dict")
        if send.body is not body:  # a download has no body of ours, but its path
            path = args[1] if len(args) > 1 else kwargs.get("path")
            if send.body is not path:
                return wrapped(*args, **kwargs)
        return build_request(send, wrapped, client, *args, **kwargs)

    def wrap_request(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `_request`."""
        send = current_injection.get()
        if not isinstance(send, ApiInjection) or send.request is not _first(args, kwargs):
            return wrapped(*args, **kwargs)
        if send.no_sdk_retry:
            sent = request_once(client, *args, **kwargs)
        else:
            sent = wrapped(*args, **kwargs)
        if kwargs.get("stream"):
            send.response = sent
        return sent

    def wrap_async_request(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap `_async_request`."""
        send = current_injection.get()
        if not isinstance(send, ApiInjection) or send.request is not _first(args, kwargs):
            return wrapped(*args, **kwargs)
        if send.no_sdk_retry:
            sent = async_request_once(client, *args, **kwargs)
        else:
            if len(args) < 2:  # SDK 1.65 leaves a stream's options out, and repeats as it likes
                kwargs.setdefault("http_options", send.options_sent)
            sent = wrapped(*args, **kwargs)
        return _opened_stream(sent, send) if kwargs.get("stream") else sent


async def _opened_stream(sent: Awaitable[Any], send: ApiInjection) -> Any:
    """Keep the response of a stream, which is closed with it."""
    send.response = response = await sent
    return response


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("http_request")


class _PooledCall(NamedTuple):
    """A call that goes through the pool, and what its sends need."""

    client: Any
    request: ApiRequest
    options: Any
    """As it is sent with."""
    deep_copy: bool
    """The SDK changes what is inside its body."""
    no_sdk_retry: bool
    """The SDK would not repeat it."""
    call: CallState

    def get(self, name: str) -> _PooledCall:
        """Return the same call with a GET of a stored resource as its request."""
        return self._replace(request=ApiRequest("get", name, {}, self.request.http_options))

    def copy_arguments(self, injection: ApiInjection) -> tuple[str, str, Any, Any]:
        """Return the arguments of one send: the SDK changes the body that it is given."""
        body = self.request.request_dict
        if isinstance(body, dict):
            body = copy.deepcopy(body) if self.deep_copy else dict(body)
        injection.body, injection.options_sent = body, self.options
        return self.request.http_method, self.request.path, body, self.options


class _Models(Models):
    """The models of one request, tried one after the other."""

    __slots__ = ("pooled",)

    def __init__(self, pooled: _PooledCall, chains: Chains) -> None:
        self.pooled = pooled
        """The request to the current model."""
        body = pooled.request.request_dict
        super().__init__(
            pooled.call, chains, body.get("contents") if isinstance(body, dict) else ()
        )

    def take(self, call: CallState) -> None:
        """Use another call, that to the next model."""
        self.pooled = self.pooled._replace(call=call)
        super().take(call)

    def send_to(self, model: str) -> bool:
        """Send the request to another model; return False if its path does not name the model."""
        request = self.pooled.request
        path = replace_model(request.path, self.call.info.model, model)
        if path is None:
            return False
        self.pooled = self.pooled._replace(request=request._replace(path=path))
        return True


class RequestWrappers:
    """The wrappers of the four request methods."""

    def __init__(self, calls: PooledCalls, uploads: Uploads, keep_patches: Patcher) -> None:
        """Serve a pool.

        Args:
            calls: The pool.
            uploads: Remembers the key of each upload that starts.
            keep_patches: Keeps the patches of a send in place until it has ended.
        """
        self._pool = calls.pool
        self._calls = calls
        self._uploads = uploads
        self._chains = calls.chains
        self._patcher = keep_patches

    def request(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `request`."""
        pooled = self._pooled_call(client, args, kwargs, stream=False)
        if not isinstance(pooled, _PooledCall):
            return wrapped(*pooled[0], **pooled[1])
        if pooled.call.info.model not in self._pool.next_models:
            return self._request(wrapped, pooled)
        with _Models(pooled, self._chains) as models:
            while True:
                try:
                    return self._request(wrapped, models.pooled)
                except Exception as error:
                    goes_on = models.go_on(error)
                if not goes_on:
                    raise models.take_error()

    def _request(self, wrapped: Callable[..., Any], pooled: _PooledCall) -> Any:
        observer = self._observe(pooled)

        def send(lease: Lease, get: str = "") -> Done | Failed:
            handled, sent = sys.exception(), pooled.get(get) if get else pooled
            injection = self._injection(lease, sent)
            try:
                with injection:
                    response = wrapped(*sent.copy_arguments(injection))
                hide_key(response, injection.key_sent)
                return self._done(sent, response, lease, observer)
            except Exception as error:
                return injection.failed(error, self._redact(pooled), handled)

        no_key = partial(self._exhausted, pooled)
        return runner.run(self._pool, pooled.call, send, no_key, observer)

    def request_streamed(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap `request_streamed`."""
        pooled = self._pooled_call(client, args, kwargs, stream=True)
        if not isinstance(pooled, _PooledCall):
            return wrapped(*pooled[0], **pooled[1])
        if pooled.call.info.model not in self._pool.next_models:
            return self._stream(wrapped, pooled)
        return self._stream_of_models(wrapped, _Models(pooled, self._chains))

    def _stream_of_models(
        self, wrapped: Callable[..., Any], models: _Models
    ) -> Generator[Any, None, None]:
        with models:
            while True:
                try:
                    yield from self._stream(wrapped, models.pooled)
                except Exception as error:
                    goes_on = models.go_on(error)
                else:
                    return
                if not goes_on:
                    raise models.take_error()

    def _stream(
        self, wrapped: Callable[..., Any], pooled: _PooledCall
    ) -> Generator[Any, None, None]:
        redact = self._redact(pooled)

        def send(lease: Lease) -> StreamOpened | Failed:
            with self._injection(lease, pooled) as injection:
                inner = wrapped(*pooled.copy_arguments(injection))
                return open_sync(inner, injection, redact, self._on_body(pooled))

        no_key, observer = partial(self._exhausted, pooled), self._observe(pooled)
        return runner.lazy_stream(self._pool, pooled.call, send, no_key, observer)

    async def async_request(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap `async_request`."""
        pooled = self._pooled_call(client, args, kwargs, stream=False)
        if not isinstance(pooled, _PooledCall):
            return await wrapped(*pooled[0], **pooled[1])
        if pooled.call.info.model not in self._pool.next_models:
            return await self._async_request(wrapped, pooled)
        with _Models(pooled, self._chains) as models:
            while True:
                try:
                    return await self._async_request(wrapped, models.pooled)
                except Exception as error:
                    goes_on = models.go_on(error)
                if not goes_on:
                    raise models.take_error()

    async def _async_request(
        self, wrapped: Callable[..., Awaitable[Any]], pooled: _PooledCall
    ) -> Any:
        observer = self._observe(pooled)

        async def send(lease: Lease, get: str = "") -> Done | Failed:
            handled, sent = sys.exception(), pooled.get(get) if get else pooled
            injection = self._injection(lease, sent)
            try:
                with injection:
                    response = await wrapped(*sent.copy_arguments(injection))
                hide_key(response, injection.key_sent)
                return self._done(sent, response, lease, observer)
            except Exception as error:
                return injection.failed(error, self._redact(pooled), handled)

        no_key = partial(self._exhausted, pooled)
        return await runner.arun(self._pool, pooled.call, send, no_key, observer)

    async def async_request_streamed(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Any, kwargs: Any
    ) -> AsyncIterator[Any]:
        """Wrap `async_request_streamed`."""
        pooled = self._pooled_call(client, args, kwargs, stream=True)
        if not isinstance(pooled, _PooledCall):
            return await wrapped(*pooled[0], **pooled[1])  # type: ignore[no-any-return]
        if pooled.call.info.model not in self._pool.next_models:
            return await self._async_stream(wrapped, pooled)
        with _Models(pooled, self._chains) as models:
            while True:
                try:
                    return await self._async_stream(wrapped, models.pooled)
                except Exception as error:
                    goes_on = models.go_on(error)
                if not goes_on:
                    raise models.take_error()

    async def _async_stream(
        self, wrapped: Callable[..., Awaitable[Any]], pooled: _PooledCall
    ) -> AsyncIterator[Any]:
        redact = self._redact(pooled)

        async def send(lease: Lease) -> StreamOpened | Failed:
            handled, injection = sys.exception(), self._injection(lease, pooled)
            try:
                with injection:
                    inner = await wrapped(*pooled.copy_arguments(injection))
            except Exception as error:
                return injection.failed(error, redact, handled)
            return await open_async(inner, injection, redact, self._on_body(pooled))

        no_key, observer = partial(self._exhausted, pooled), self._observe(pooled)
        # In no variable: a frame that an exception still holds would hold the stream too.
        return await runner.astream(  # type: ignore[no-any-return]
            self._pool, pooled.call, send, no_key, observer
        )

    def _done(
        self, pooled: _PooledCall, response: Any, lease: Lease, observer: CallObserver | None
    ) -> Done:
        if pooled.call.info.bound_to_owner:
            self._uploads.remember_start(response, lease)
        if (on_body := self._on_body(pooled)) is not None:
            on_body(response.body)
        # Which tier a request was served in is in the headers, and its price depends on it.
        in_full = observer is not None or lease.has_budget or bool(pooled.call.info.service_tier)
        return done_from_response(response, in_full=in_full)

    def _on_body(self, pooled: _PooledCall) -> Callable[[object], None] | None:
        """Return what reads the responses of a request that went on to another model."""
        info = pooled.call.info
        return partial(self._chains.record_signatures, info.model) if info.models_tried else None

    def _pooled_call(
        self, client: Any, args: Any, kwargs: Any, *, stream: bool
    ) -> _PooledCall | tuple[Any, dict[str, Any]]:
        """Return a call for the pool, or the arguments with which it passes through."""
        try:
            platform = platform_of(client) if client.vertexai else GEMINI_API
            if platform is None:
                return args, kwargs
            request = ApiRequest(*args, **kwargs)
            return self._read_call(client, request, platform, stream=stream)
        except Exception:
            handle_internal_error("genai")
            return args, kwargs

    def _read_call(
        self, client: Any, request: ApiRequest, platform: Platform, *, stream: bool
    ) -> _PooledCall | tuple[Any, dict[str, Any]]:
        key, options = client.api_key or "", request.http_options
        base_url, extra, retry = effective_options(client, options)
        own_headers = option(options, "headers") if options is not None else None
        headers = (client._http_options.headers, own_headers)
        if not self._calls.serves(key, base_url, *headers, platform=platform):
            return request, {}
        info = call_info(
            request,
            extra,
            retry,
            stream=stream,
            host=host_from_url(base_url),
            scale=self._pool.token_scale,
            sticky=self._pool.policy.strategy == "sticky",
            platform=platform,
        )
        call = self._calls.call_state(info, key, timeout_s(client, options))
        if not info.bound_to_owner:
            options = without_key_retries(client, options, retry)
        no_sdk_retry = retry is None and not info.bound_to_owner
        return _PooledCall(client, request, options, bool(extra), no_sdk_retry, call)

    def _observe(self, pooled: _PooledCall) -> CallObserver | None:
        return self._calls.observe(pooled.call.info)

    def _exhausted(self, pooled: _PooledCall, no_key: Exhausted) -> BaseException:
        response_type = response_type_of(pooled.client)
        return exhausted_call(self._calls, no_key, response_type, pooled.call.info.model)

    def _redact(self, pooled: _PooledCall) -> Redact:
        return self._calls.redact(pooled.client.api_key or "")

    def _injection(self, lease: Lease, pooled: _PooledCall) -> ApiInjection:
        """Return the key injection of a send."""
        return ApiInjection(
            self._calls.value(lease),
            pooled.client,
            pooled.request,
            self._calls.allowed[pooled.call.info.platform],
            self._patcher,
            no_sdk_retry=pooled.no_sdk_retry,
        )
