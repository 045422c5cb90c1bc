"""The wrappers of the four request methods; what is patched below them stands in below.py.

Each method asks first whether the call is ours at all; what is not (Vertex, a host that may not
have our keys, a caller's own key, `bypass()`) goes through untouched.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

from ..core.commands import Done, Failed, Opened
from ..core.flow import CallState, Exhausted, call_flow
from ..core.model import HOME, POOL_KEY, Candidate, Lease
from ..errors import KeyrotWarning, warn
from ..guard import handle_internal_error
from ..runtime import aio, sync
from ..runtime.abandoned import unwatch_collector, watch_collector
from ..runtime.pool import Pool
from ..telemetry.observer import CallObserver, observe
from .call_info import (
    ApiRequest,
    call_info,
    done,
    failed,
    host_from_url,
    in_force,
    option,
    origin_of,
    patience_s,
)
from .home_key import fingerprint, needs_home, own
from .imports import Patched
from .key_injection import (
    KeyInjection,
    asend_once,
    build_request,
    copy_arguments,
    current_injection,
    foreign_key,
    send_once,
    without_key_retries,
)
from .patching import Patcher
from .pool_exhausted import NO_KEY, error_body, exhausted, response_type_of
from .redaction import Redact
from .streams import open_async, open_sync
from .uploads import Uploads
from .wire import Wire, mute, unmute

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

    def init(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Give a client without a key of its own the placeholder, which wire.py replaces."""
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        if not needs_home(given, self._origins):
            return wrapped(*args, **kwargs)
        # No key of the pool: what the client had, a copy or an option of it could take anywhere.
        result = wrapped(**{**given, "api_key": POOL_KEY})
        keyless.add(client)
        return result

    def build(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Put the key of a send into its request, and into no other."""
        send = current_injection.get()
        body = args[2] if len(args) > 2 else kwargs.get("request_dict")
        if send is None or send.client is not client or send.body is not body:
            return wrapped(*args, **kwargs)
        return build_request(send, wrapped, client, *args, **kwargs)

    def send_once(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `_request`."""
        send = current_injection.get()
        if send is None or send.request is not _first(args, kwargs):
            return wrapped(*args, **kwargs)
        once = send.once
        sent = send_once(client, *args, **kwargs) if once else wrapped(*args, **kwargs)
        if kwargs.get("stream"):
            send.response = sent
        return sent

    def asend_once(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `_async_request`."""
        send = current_injection.get()
        if send is None or send.request is not _first(args, kwargs):
            return wrapped(*args, **kwargs)
        if send.once:
            sent = asend_once(client, *args, **kwargs)
        else:
            if len(args) < 2:  # SDK 1.65 leaves a stream's options out, and repeats as it likes
                kwargs.setdefault("http_options", send.options_sent)
            sent = wrapped(*args, **kwargs)
        return _opened(sent, send) if kwargs.get("stream") else sent


async def _opened(sent: Awaitable[Any], send: KeyInjection) -> Any:
    """Keep the response of a stream, to be closed with it."""
    send.response = response = await sent
    return response


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("http_request")


bypassed: ContextVar[bool] = ContextVar("keyrot_bypassed", default=False)

_log = logging.getLogger("keyrot_middleware")

_EPHEMERAL = "auth_tokens/"
_HOSTS_WARNED = 20
"""A program may make up hosts without end."""


class _PooledCall(NamedTuple):
    """A call that goes through the pool, and what its sends need."""

    client: Any
    asked: ApiRequest
    options: Any
    """As it is sent with."""
    deep: bool
    """The SDK changes what is inside its body."""
    once: bool
    """The SDK would not repeat it."""
    call: CallState


class Binding:
    """A pool under the SDK: what install() puts in place and uninstall() takes away."""

    def __init__(
        self, pool: Pool, allowed_origins: frozenset[str], closing: Callable[[], None]
    ) -> None:
        """Patch nothing yet; *closing* is called when the pool is taken away."""
        self.pool = pool
        self._closing = closing
        self._origins = allowed_origins
        self._warned: set[str] = set()
        on: list[bool] = []
        below = ClientWrappers(allowed_origins)
        uploads = self._uploads = Uploads(pool.state)
        self.seams = Patcher(
            {
                "__init__": below.init,
                "request": self._request,
                "request_streamed": self._request_streamed,
                "async_request": self._async_request,
                "async_request_streamed": self._async_request_streamed,
                "upload_file": uploads.upload_file,
                "async_upload_file": uploads.async_upload_file,
            },
            {
                "_build_request": below.build,
                "_request": below.send_once,
                "_async_request": below.asend_once,
            },
            Wire(pool, allowed_origins, on).table,
            on,
            self.close,
        )

    def put_on(self, patched: Patched | None = None) -> None:
        """Catch calls from now on, or once more; see `Patcher.put_on`."""
        watch_collector()
        self.seams.put_on(patched)
        for client in tuple(keyless):
            unmute(client)

    def close(self) -> None:
        """Restore exactly what was there; clients without a key of their own are left without.

        Calls under way are carried to their end.
        """
        self._closing()
        self.seams.take_off()
        unwatch_collector()
        for client in tuple(keyless):
            mute(client)
        self.pool.close()

    def _request(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        ours = self._ours(client, args, kwargs, stream=False)
        if not isinstance(ours, _PooledCall):
            return wrapped(*ours[0], **ours[1])

        seen = self._watch(ours)

        def send(lease: Lease) -> Done | Failed:
            handled = sys.exception()
            try:
                with self._sending(lease, ours) as one:
                    response = wrapped(
                        *copy_arguments(one, ours.asked, ours.options, deep=ours.deep)
                    )
                if ours.call.info.pinned:
                    self._uploads.begun(response, lease)
                return done(response, in_full=seen is not None)
            except Exception as error:
                return failed(error, self._redact(ours.client), handled)

        call = ours.call
        try:
            return sync.run(call_flow(call), sync.SyncDriver(self.pool, call.info, send, seen))
        except Exhausted as none_free:
            error = self._exhausted(ours, none_free)
        raise error

    def _request_streamed(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> Any:
        ours = self._ours(client, args, kwargs, stream=True)
        if not isinstance(ours, _PooledCall):
            return wrapped(*ours[0], **ours[1])
        return self._stream(wrapped, ours)

    def _stream(self, wrapped: Callable[..., Any], ours: _PooledCall) -> Generator[Any, None, None]:
        redact, call = self._redact(ours.client), ours.call

        def send(lease: Lease) -> Opened | Failed:
            sender = self._sending(lease, ours)
            with sender:
                inner = wrapped(*copy_arguments(sender, ours.asked, ours.options, deep=ours.deep))
                return open_sync(inner, sender, redact)

        perform = sync.SyncDriver(self.pool, call.info, send, self._watch(ours))
        try:
            yield from sync.run_stream(call_flow(call), perform)
        except Exhausted as none_free:
            error = self._exhausted(ours, none_free)
        else:
            return
        raise error

    async def _async_request(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Any, kwargs: Any
    ) -> Any:
        ours = self._ours(client, args, kwargs, stream=False)
        if not isinstance(ours, _PooledCall):
            return await wrapped(*ours[0], **ours[1])

        seen = self._watch(ours)

        async def send(lease: Lease) -> Done | Failed:
            handled = sys.exception()
            try:
                with self._sending(lease, ours) as one:
                    response = await wrapped(
                        *copy_arguments(one, ours.asked, ours.options, deep=ours.deep)
                    )
                if ours.call.info.pinned:
                    self._uploads.begun(response, lease)
                return done(response, in_full=seen is not None)
            except Exception as error:
                return failed(error, self._redact(ours.client), handled)

        perform = aio.AsyncDriver(self.pool, ours.call.info, send, seen)
        try:
            return await aio.run(call_flow(ours.call), perform)
        except Exhausted as none_free:
            error = self._exhausted(ours, none_free)
        raise error

    async def _async_request_streamed(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Any, kwargs: Any
    ) -> AsyncIterator[Any]:
        ours = self._ours(client, args, kwargs, stream=True)
        if not isinstance(ours, _PooledCall):
            return await wrapped(*ours[0], **ours[1])  # type: ignore[no-any-return]

        redact, call = self._redact(ours.client), ours.call

        async def send(lease: Lease) -> Opened | Failed:
            handled, sender = sys.exception(), self._sending(lease, ours)
            try:
                with sender:
                    inner = await wrapped(
                        *copy_arguments(sender, ours.asked, ours.options, deep=ours.deep)
                    )
            except Exception as error:
                return failed(error, redact, handled)
            return await open_async(inner, sender, redact)

        perform = aio.AsyncDriver(self.pool, call.info, send, self._watch(ours))
        try:
            return await aio.run_stream(call_flow(call), perform)
        except Exhausted as none_free:
            error = self._exhausted(ours, none_free)
        raise error

    def _ours(
        self, client: Any, args: Any, kwargs: Any, *, stream: bool
    ) -> _PooledCall | tuple[Any, dict[str, Any]]:
        """Read a call that goes through the pool; else give the arguments to pass through with."""
        try:
            if client.vertexai:
                return args, kwargs
            return self._read(client, ApiRequest(*args, **kwargs), stream=stream)
        except Exception:
            handle_internal_error("genai")
            return args, kwargs

    def _read(
        self, client: Any, asked: ApiRequest, *, stream: bool
    ) -> _PooledCall | tuple[Any, dict[str, Any]]:
        key = client.api_key or ""
        if key.startswith(_EPHEMERAL):
            return asked, {}
        pool, options = self.pool, asked.http_options
        base_url, extra, retry = in_force(client, options)
        if bypassed.get():
            return asked, {}
        if origin_of(base_url) not in self._origins:
            self._warn_of(host_from_url(base_url))
            return asked, {}
        if not pool.roster.keys and own(key):
            return asked, {}
        known = (key, POOL_KEY)
        if foreign_key(client._http_options.headers, known) or (
            options is not None and foreign_key(option(options, "headers"), known)
        ):
            return asked, {}
        sticky = pool.policy.strategy == "sticky"
        info = call_info(
            asked,
            extra,
            retry,
            stream=stream,
            host=host_from_url(base_url),
            scale=pool.scale,
            sticky=sticky,
        )
        home = self._home(key) if info.pinned else None
        moment = (pool.clock.time(), pool.draw())
        shared = (pool.overload, pool.lines)
        patience = patience_s(client, options)
        call = CallState(
            info, pool.roster, pool.policy, pool.scale, home, moment, *shared, patience, pool.hints
        )
        if not info.pinned:
            options = without_key_retries(client, options, retry)
        once = retry is None and not info.pinned
        return _PooledCall(client, asked, options, bool(extra), once, call)

    def _warn_of(self, host: str) -> None:
        """Say once that calls to a host go past the pool; no such warning may fail the call."""
        if host in self._warned or len(self._warned) >= _HOSTS_WARNED:
            return
        self._warned.add(host)
        text = f"calls to {host} go out without the pool: it is not among KEYROT_ALLOWED_HOSTS"
        _log.warning("%s", text)
        with suppress(KeyrotWarning):
            warn(text)

    def _home(self, key: str) -> Candidate:
        """Give the client's own key as a candidate: one of the pool's, or a stranger."""
        key_id = self.pool.ring.id_of(key) if own(key) else self.pool.home_id
        candidate = self.pool.roster.keys.get(key_id) if key_id is not None else None
        if candidate is not None:
            return candidate
        label = f"{HOME}{fingerprint(key)}"
        return Candidate(label, label, label)

    def _redact(self, client: Any) -> Redact:
        """Take the pool's keys out of a text, and the client's own."""
        redact, key = self.pool.ring.redact, client.api_key or ""
        if not own(key):
            return redact
        return lambda text: redact(text.replace(key, "[redacted]"))

    def _sending(self, lease: Lease, ours: _PooledCall) -> KeyInjection:
        """Prepare a send; a stranger's key is left to the client, which has it."""
        key_id = lease.key_id
        value = None if key_id.startswith(HOME) else self.pool.ring.value(key_id)
        return KeyInjection(
            value, ours.client, ours.asked, self._origins, self.seams, once=ours.once
        )

    def _watch(self, ours: _PooledCall) -> CallObserver | None:
        return observe(self.pool.observers, ours.call.info, handle_internal_error)

    def _exhausted(self, ours: _PooledCall, none_free: Exhausted) -> BaseException:
        blocks, now = none_free.unavailable.blocks, none_free.unavailable.at
        pool = self.pool
        response_type = response_type_of(ours.client)
        if pool.roster.keys:
            last = pool.last_words(blocks)
        else:
            text = f"pool {pool.name!r} has no Gemini API key; {NO_KEY}"
            last = (401, "UNAUTHENTICATED", error_body(401, text))
        return exhausted(pool.name, blocks, now, last, response_type)
