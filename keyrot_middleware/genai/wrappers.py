"""The wrappers of the four request methods, and of the methods that they call.

Calls that the pool has no part in pass through untouched: Vertex AI, a host that is not allowed, a
key header of the caller's own, `bypass()`.
"""

from __future__ import annotations

import copy
import logging
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

from ..core.commands import Done, Failed, StreamOpened
from ..core.flow import CallState, Exhausted, call_flow
from ..core.model import HOME, POOL_KEY, Candidate, Lease
from ..errors import KeyrotWarning, warn
from ..guard import handle_internal_error
from ..runtime import aio, sync
from ..runtime.abandoned import unwatch_gc, watch_gc
from ..runtime.pool import Pool
from ..telemetry.observer import CallObserver, observe
from .call_info import (
    ApiRequest,
    call_info,
    done_from_response,
    effective_options,
    failed_from_error,
    host_from_url,
    option,
    origin_from_url,
    timeout_s,
)
from .home_key import fingerprint, is_key, needs_home
from .imports import Patched
from .key_injection import (
    KeyInjection,
    async_request_once,
    build_request,
    current_injection,
    has_foreign_key,
    request_once,
    without_key_retries,
)
from .patching import Patcher
from .pool_exhausted import NO_KEY, error_body, exhausted, response_type_of
from .redaction import Redact
from .streams import open_async, open_sync
from .uploads import Uploads
from .wire import Wire, restore_placeholder, withdraw_placeholder

__all__ = [
    "Binding",
    "ClientWrappers",
    "bypassed",
    "keyless",
]

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

    def __init__(self, origins: frozenset[str]) -> None:
        """Serve a pool whose keys may go to *origins*."""
        self._origins = origins

    def wrap_init(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `__init__`: a client without a key gets the placeholder, which wire.py replaces."""
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        if not needs_home(given, self._origins):
            return wrapped(*args, **kwargs)
        # No key of the pool: what the client had, a copy or an option of it could take anywhere.
        result = wrapped(**{**given, "api_key": POOL_KEY})
        keyless.add(client)
        return result

    def wrap_build_request(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> Any:
        """Wrap `_build_request`: put the key of a send into its request, and into no other."""
        send = current_injection.get()
        body = args[2] if len(args) > 2 else kwargs.get("request_dict")
        if send is None or send.client is not client or send.body is not body:
            return wrapped(*args, **kwargs)
        return build_request(send, wrapped, client, *args, **kwargs)

    def wrap_request(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `_request`."""
        send = current_injection.get()
        if send is None or send.request is not _first(args, kwargs):
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
        if send is None or send.request is not _first(args, kwargs):
            return wrapped(*args, **kwargs)
        if send.no_sdk_retry:
            sent = async_request_once(client, *args, **kwargs)
        else:
            if len(args) < 2:  # SDK 1.65 leaves a stream's options out, and repeats as it likes
                kwargs.setdefault("http_options", send.options_sent)
            sent = wrapped(*args, **kwargs)
        return _opened_stream(sent, send) if kwargs.get("stream") else sent


async def _opened_stream(sent: Awaitable[Any], send: KeyInjection) -> Any:
    """Keep the response of a stream, which is closed with it."""
    send.response = response = await sent
    return response


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("http_request")


bypassed: ContextVar[bool] = ContextVar("keyrot_bypassed", default=False)

_log = logging.getLogger("keyrot_middleware")

_EPHEMERAL = "auth_tokens/"
_MAX_HOSTS_WARNED = 20
"""Programs may use any number of hosts."""


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

    def copy_arguments(self, injection: KeyInjection) -> tuple[str, str, Any, Any]:
        """Return the arguments of one send: the SDK changes the body that it is given."""
        body = self.request.request_dict
        if isinstance(body, dict):
            body = copy.deepcopy(body) if self.deep_copy else dict(body)
        injection.body, injection.options_sent = body, self.options
        return self.request.http_method, self.request.path, body, self.options


class Binding:
    """A pool and the patches that connect it to the SDK."""

    def __init__(
        self, pool: Pool, allowed_origins: frozenset[str], on_close: Callable[[], None]
    ) -> None:
        """Patch nothing yet; *on_close* is called by `close`."""
        self.pool = pool
        self._on_close = on_close
        self._origins = allowed_origins
        self._warned: set[str] = set()
        enabled: list[bool] = []
        wrappers = ClientWrappers(allowed_origins)
        uploads = self._uploads = Uploads(pool.state)
        self.patcher = Patcher(
            {
                "__init__": wrappers.wrap_init,
                "request": self._request,
                "request_streamed": self._request_streamed,
                "async_request": self._async_request,
                "async_request_streamed": self._async_request_streamed,
                "upload_file": uploads.upload_file,
                "async_upload_file": uploads.async_upload_file,
            },
            {
                "_build_request": wrappers.wrap_build_request,
                "_request": wrappers.wrap_request,
                "_async_request": wrappers.wrap_async_request,
            },
            Wire(pool, allowed_origins, enabled).table,
            enabled,
            self.close,
        )

    def install(self, patched: Patched | None = None) -> None:
        """Patch the SDK, or repair its patches; see `Patcher.install`."""
        watch_gc()
        self.patcher.install(patched)
        for client in tuple(keyless):
            restore_placeholder(client)

    def close(self) -> None:
        """Restore the SDK exactly; clients without a key of their own are left without one.

        Running calls finish.
        """
        self._on_close()
        self.patcher.uninstall()
        unwatch_gc()
        for client in tuple(keyless):
            withdraw_placeholder(client)
        self.pool.close()

    def _request(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        pooled = self._pooled_call(client, args, kwargs, stream=False)
        if not isinstance(pooled, _PooledCall):
            return wrapped(*pooled[0], **pooled[1])

        observer = self._observe(pooled)

        def send(lease: Lease) -> Done | Failed:
            handled = sys.exception()
            try:
                with self._injection(lease, pooled) as injection:
                    response = wrapped(*pooled.copy_arguments(injection))
                return self._done(pooled, response, lease, observer)
            except Exception as error:
                return failed_from_error(error, self._redact(pooled.client), handled)

        driver = sync.SyncDriver(self.pool, pooled.call.info, send, observer)
        try:
            return sync.run(call_flow(pooled.call), driver)
        except Exhausted as no_key:
            error = self._exhausted(pooled, no_key)
        raise error

    def _request_streamed(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> Any:
        pooled = self._pooled_call(client, args, kwargs, stream=True)
        if not isinstance(pooled, _PooledCall):
            return wrapped(*pooled[0], **pooled[1])
        return self._stream(wrapped, pooled)

    def _stream(
        self, wrapped: Callable[..., Any], pooled: _PooledCall
    ) -> Generator[Any, None, None]:
        redact = self._redact(pooled.client)

        def send(lease: Lease) -> StreamOpened | Failed:
            with self._injection(lease, pooled) as injection:
                inner = wrapped(*pooled.copy_arguments(injection))
                return open_sync(inner, injection, redact)

        driver = sync.SyncDriver(self.pool, pooled.call.info, send, self._observe(pooled))
        try:
            yield from sync.run_stream(call_flow(pooled.call), driver)
        except Exhausted as no_key:
            error = self._exhausted(pooled, no_key)
        else:
            return
        raise error

    async def _async_request(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Any, kwargs: Any
    ) -> Any:
        pooled = self._pooled_call(client, args, kwargs, stream=False)
        if not isinstance(pooled, _PooledCall):
            return await wrapped(*pooled[0], **pooled[1])

        observer = self._observe(pooled)

        async def send(lease: Lease) -> Done | Failed:
            handled = sys.exception()
            try:
                with self._injection(lease, pooled) as injection:
                    response = await wrapped(*pooled.copy_arguments(injection))
                return self._done(pooled, response, lease, observer)
            except Exception as error:
                return failed_from_error(error, self._redact(pooled.client), handled)

        driver = aio.AsyncDriver(self.pool, pooled.call.info, send, observer)
        try:
            return await aio.run(call_flow(pooled.call), driver)
        except Exhausted as no_key:
            error = self._exhausted(pooled, no_key)
        raise error

    async def _async_request_streamed(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Any, kwargs: Any
    ) -> AsyncIterator[Any]:
        pooled = self._pooled_call(client, args, kwargs, stream=True)
        if not isinstance(pooled, _PooledCall):
            return await wrapped(*pooled[0], **pooled[1])  # type: ignore[no-any-return]

        redact = self._redact(pooled.client)

        async def send(lease: Lease) -> StreamOpened | Failed:
            handled, injection = sys.exception(), self._injection(lease, pooled)
            try:
                with injection:
                    inner = await wrapped(*pooled.copy_arguments(injection))
            except Exception as error:
                return failed_from_error(error, redact, handled)
            return await open_async(inner, injection, redact)

        driver = aio.AsyncDriver(self.pool, pooled.call.info, send, self._observe(pooled))
        try:
            return await aio.run_stream(call_flow(pooled.call), driver)
        except Exhausted as no_key:
            error = self._exhausted(pooled, no_key)
        raise error

    def _done(
        self, pooled: _PooledCall, response: Any, lease: Lease, observer: CallObserver | None
    ) -> Done:
        if pooled.call.info.bound_to_owner:
            self._uploads.remember_start(response, lease)
        return done_from_response(response, in_full=observer is not None or lease.has_budget)

    def _pooled_call(
        self, client: Any, args: Any, kwargs: Any, *, stream: bool
    ) -> _PooledCall | tuple[Any, dict[str, Any]]:
        """Return a call for the pool, or the arguments with which it passes through."""
        try:
            if client.vertexai:
                return args, kwargs
            return self._read_call(client, ApiRequest(*args, **kwargs), stream=stream)
        except Exception:
            handle_internal_error("genai")
            return args, kwargs

    def _read_call(
        self, client: Any, request: ApiRequest, *, stream: bool
    ) -> _PooledCall | tuple[Any, dict[str, Any]]:
        key = client.api_key or ""
        if key.startswith(_EPHEMERAL):
            return request, {}
        pool, options = self.pool, request.http_options
        base_url, extra, retry = effective_options(client, options)
        if bypassed.get():
            return request, {}
        if origin_from_url(base_url) not in self._origins:
            self._warn_of_host(host_from_url(base_url))
            return request, {}
        if not pool.selector.keys and is_key(key):
            return request, {}
        known = (key, POOL_KEY)
        if has_foreign_key(client._http_options.headers, known) or (
            options is not None and has_foreign_key(option(options, "headers"), known)
        ):
            return request, {}
        sticky = pool.policy.strategy == "sticky"
        info = call_info(
            request,
            extra,
            retry,
            stream=stream,
            host=host_from_url(base_url),
            scale=pool.token_scale,
            sticky=sticky,
        )
        home = self._home(key) if info.bound_to_owner else None
        moment = (pool.clock.time(), pool.random())
        shared = (pool.overload, pool.waiting_lines)
        patience = timeout_s(client, options)
        call = CallState(
            info,
            pool.selector,
            pool.policy,
            pool.token_scale,
            home,
            moment,
            *shared,
            patience,
            pool.hints,
        )
        if not info.bound_to_owner:
            options = without_key_retries(client, options, retry)
        no_sdk_retry = retry is None and not info.bound_to_owner
        return _PooledCall(client, request, options, bool(extra), no_sdk_retry, call)

    def _warn_of_host(self, host: str) -> None:
        """Warn once that calls to a host bypass the pool; the warning cannot fail the call."""
        if host in self._warned or len(self._warned) >= _MAX_HOSTS_WARNED:
            return
        self._warned.add(host)
        text = f"calls to {host} bypass the pool: it is not in KEYROT_ALLOWED_HOSTS"
        _log.warning("%s", text)
        with suppress(KeyrotWarning):
            warn(text)

    def _home(self, key: str) -> Candidate:
        """Return the home key of a client as a candidate, in the pool or not."""
        key_id = self.pool.secrets.key_id_for(key) if is_key(key) else self.pool.home_id
        candidate = self.pool.selector.keys.get(key_id) if key_id is not None else None
        if candidate is not None:
            return candidate
        label = f"{HOME}{fingerprint(key)}"
        return Candidate(label, label, label)

    def _redact(self, client: Any) -> Redact:
        """Return what redacts the pool's keys and the client's own in a text."""
        redact, key = self.pool.secrets.redact, client.api_key or ""
        if not is_key(key):
            return redact
        return lambda text: redact(text.replace(key, "[redacted]"))

    def _injection(self, lease: Lease, pooled: _PooledCall) -> KeyInjection:
        """Return the key injection of a send; a key outside the pool is the client's own."""
        key_id = lease.key_id
        value = None if key_id.startswith(HOME) else self.pool.secrets.value(key_id)
        return KeyInjection(
            value,
            pooled.client,
            pooled.request,
            self._origins,
            self.patcher,
            no_sdk_retry=pooled.no_sdk_retry,
        )

    def _observe(self, pooled: _PooledCall) -> CallObserver | None:
        return observe(self.pool.observers, pooled.call.info, handle_internal_error)

    def _exhausted(self, pooled: _PooledCall, no_key: Exhausted) -> BaseException:
        blocks, now = no_key.unavailable.blocks, no_key.unavailable.at
        pool = self.pool
        response_type = response_type_of(pooled.client)
        if pool.selector.keys:
            last = pool.last_refusal(blocks)
        else:
            text = f"pool {pool.name!r} has no Gemini API key; {NO_KEY}"
            last = (401, "UNAUTHENTICATED", error_body(401, text))
        return exhausted(pool.name, blocks, now, last, response_type)
