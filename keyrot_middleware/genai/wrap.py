"""The wrappers of the four request methods and of the constructor.

Each method asks first whether the call is ours at all; what is not (Vertex, a host that may not
have our keys, a caller's own key, `bypass()`) goes through untouched.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextvars import ContextVar
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from ..core.commands import Done, Failed, Opened
from ..core.flow import Call, Exhausted, call_flow
from ..core.model import HOME, Candidate, Lease
from ..core.policy import POOL_KEY
from ..drive import aio, sync
from ..drive.guard import fault
from ..drive.pool import Pool
from ..telemetry.base import Watch, watch
from .exhausted import exhausted, response_type_of
from .facts import Asked, InForce, call_info, done, failed, host_of, in_force, option
from .inject import arguments, build_request, foreign_key, lend, sending, under_way
from .redact import Redact
from .seams import Seams
from .streams import open_async, open_sync

__all__ = ["Binding", "bypassed"]

bypassed: ContextVar[bool] = ContextVar("keyrot_bypassed", default=False)

_ARGUMENTS = ("vertexai", "api_key", "credentials", "project", "location", "http_options")
"""Of the api client's constructor, in their order."""
_EPHEMERAL = "auth_tokens/"
_SALT = os.urandom(16)


class _Ours(NamedTuple):
    """A call that goes through the pool, and what its sends need."""

    client: Any
    asked: Asked
    options: InForce
    call: Call
    redact: Redact


class Binding:
    """A pool under the SDK: what install() puts in place and uninstall() takes away."""

    def __init__(self, pool: Pool, allowed_hosts: frozenset[str]) -> None:
        self.pool = pool
        self._hosts = allowed_hosts
        self._sheltered: weakref.WeakSet[Any] = weakref.WeakSet()
        """Clients whose key is the pool's: it must not follow them to a foreign host."""
        self.seams = Seams(
            {
                "__init__": self._init,
                "_build_request": self._build,
                "request": self._request,
                "request_streamed": self._request_streamed,
                "async_request": self._async_request,
                "async_request_streamed": self._async_request_streamed,
            }
        )

    def put_on(self) -> None:
        """Catch calls from now on."""
        self.seams.put_on()

    def take_off(self) -> None:
        """Restore exactly what was there."""
        self.seams.take_off()

    def _init(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Give a client without a key of its own the pool's key as its home key."""
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        sheltered = self._needs_home(given)
        if sheltered:
            # No key yet, its store being down: the client is made all the same, for later.
            args, kwargs = (), {**given, "api_key": self.pool.home_value or POOL_KEY}
        result = wrapped(*args, **kwargs)
        if sheltered:
            self._sheltered.add(client)
        return result

    def _build(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Put the key of a send into its request; keep the pool's keys at home in all others."""
        if under_way():
            return build_request(wrapped, client, args, kwargs)
        request = wrapped(*args, **kwargs)
        if not client.vertexai and (client in self._sheltered or client.api_key == POOL_KEY):
            at_home = host_of(request.url) in self._hosts
            value = self.pool.home_value if at_home else None
            lend(request, client.api_key, value)
        return request

    def _needs_home(self, given: dict[str, Any]) -> bool:
        key = given.get("api_key")
        others = (given.get(name) for name in ("credentials", "project", "location"))
        if _own(key) or any(others) or _vertex(given.get("vertexai")):
            return False  # a key of its own, another road, or what the SDK will refuse
        if key != POOL_KEY and _own(_env_key()):
            return False
        base_url = option(given.get("http_options"), "base_url")
        return not base_url or host_of(base_url) in self._hosts

    def _request(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        ours = self._ours(client, args, kwargs, stream=False)
        if not isinstance(ours, _Ours):
            return wrapped(*ours[0], **ours[1])

        seen = self._watch(ours)
        in_full = seen is not None and seen.thorough

        def send(lease: Lease) -> Done | Failed:
            try:
                with sending(self._value(lease), ours.asked):
                    return done(wrapped(*self._arguments(ours)), in_full=in_full)
            except Exception as error:
                return failed(error, ours.redact)

        try:
            return sync.run(call_flow(ours.call), sync.Performer(self.pool, send, seen))
        except Exhausted as none_free:
            error = self._exhausted(ours, none_free)
        raise error

    def _request_streamed(
        self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any
    ) -> Any:
        ours = self._ours(client, args, kwargs, stream=True)
        if not isinstance(ours, _Ours):
            return wrapped(*ours[0], **ours[1])
        return self._stream(wrapped, ours)

    def _stream(self, wrapped: Callable[..., Any], ours: _Ours) -> Generator[Any, None, None]:
        def send(lease: Lease) -> Opened | Failed:
            with sending(self._value(lease), ours.asked):
                return open_sync(wrapped(*self._arguments(ours)), ours.redact)

        perform = sync.Performer(self.pool, send, self._watch(ours))
        try:
            yield from sync.run_stream(call_flow(ours.call), perform)
        except Exhausted as none_free:
            error = self._exhausted(ours, none_free)
        else:
            return
        raise error

    async def _async_request(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Any, kwargs: Any
    ) -> Any:
        ours = self._ours(client, args, kwargs, stream=False)
        if not isinstance(ours, _Ours):
            return await wrapped(*ours[0], **ours[1])

        seen = self._watch(ours)
        in_full = seen is not None and seen.thorough

        async def send(lease: Lease) -> Done | Failed:
            try:
                with sending(self._value(lease), ours.asked):
                    response = await wrapped(*self._arguments(ours, aio=True))
                return done(response, in_full=in_full)
            except Exception as error:
                return failed(error, ours.redact)

        perform = aio.AsyncPerformer(self.pool, send, seen)
        try:
            return await aio.run(call_flow(ours.call), perform)
        except Exhausted as none_free:
            error = self._exhausted(ours, none_free)
        raise error

    async def _async_request_streamed(
        self, wrapped: Callable[..., Awaitable[Any]], client: Any, args: Any, kwargs: Any
    ) -> AsyncIterator[Any]:
        ours = self._ours(client, args, kwargs, stream=True)
        if not isinstance(ours, _Ours):
            return await wrapped(*ours[0], **ours[1])  # type: ignore[no-any-return]

        async def send(lease: Lease) -> Opened | Failed:
            try:
                with sending(self._value(lease), ours.asked):
                    inner = await wrapped(*self._arguments(ours, aio=True))
            except Exception as error:
                return failed(error, ours.redact)
            return await open_async(inner, ours.redact)

        perform = aio.AsyncPerformer(self.pool, send, self._watch(ours))
        try:
            return await aio.run_stream(call_flow(ours.call), perform)
        except Exhausted as none_free:
            error = self._exhausted(ours, none_free)
        raise error

    def _ours(
        self, client: Any, args: Any, kwargs: Any, *, stream: bool
    ) -> _Ours | tuple[Any, dict[str, Any]]:
        """Read a call that goes through the pool; else give the arguments to pass through with."""
        try:
            if client.vertexai:
                return args, kwargs
            return self._read(client, Asked(*args, **kwargs), stream=stream)
        except Exception:
            fault("genai")
            return args, kwargs

    def _read(
        self, client: Any, asked: Asked, *, stream: bool
    ) -> _Ours | tuple[Any, dict[str, Any]]:
        key = client.api_key or ""
        if key.startswith(_EPHEMERAL):
            return asked, {}
        shared, options = client._http_options, asked.http_options
        host = host_of(option(options, "base_url") or option(shared, "base_url") or "")
        if bypassed.get() or host not in self._hosts or not self.pool.roster.keys:
            return asked, {}
        own = (key, POOL_KEY)
        if foreign_key(option(options, "headers"), own) or foreign_key(
            option(shared, "headers"), own
        ):
            return asked, {}
        pool = self.pool
        sticky = pool.policy.strategy == "sticky"
        in_use = in_force(client, options)
        info = call_info(asked, in_use, stream=stream, host=host, scale=pool.scale, sticky=sticky)
        home = self._home(key) if info.pinned else None
        call = Call(info, pool.roster, pool.policy, pool.scale, home)
        return _Ours(client, asked, in_use, call, self._redact(key))

    def _home(self, key: str) -> Candidate:
        """Give the client's own key as a candidate: one of the pool's, or a stranger."""
        key_id = self.pool.ring.id_of(key) if _own(key) else self.pool.home_id
        candidate = self.pool.roster.keys.get(key_id) if key_id is not None else None
        if candidate is not None:
            return candidate
        label = f"{HOME}{_fingerprint(key)}"
        return Candidate(label, label, label)

    def _redact(self, key: str) -> Redact:
        redact = self.pool.ring.redact
        if not _own(key):
            return redact
        return lambda text: redact(text.replace(key, "[redacted]"))

    def _value(self, lease: Lease) -> str | None:
        """Give the key to send with; None for a stranger's, which the client has itself."""
        return None if lease.key_id.startswith(HOME) else self.pool.ring.value(lease.key_id)

    def _arguments(self, ours: _Ours, *, aio: bool = False) -> Asked:
        pinned = ours.call.info.pinned
        return arguments(ours.client, ours.asked, ours.options, pinned=pinned, aio=aio)

    def _watch(self, ours: _Ours) -> Watch | None:
        return watch(self.pool.observers, ours.call.info, fault) if self.pool.observers else None

    def _exhausted(self, ours: _Ours, none_free: Exhausted) -> BaseException:
        blocks, now = none_free.unavailable.blocks, none_free.unavailable.at
        pool = self.pool
        response_type = response_type_of(ours.client)
        return exhausted(pool.name, blocks, now, pool.last_words(blocks), response_type)


def _own(key: Any) -> bool:
    """Tell whether a key is one, and not empty or the placeholder."""
    return isinstance(key, str) and key.strip() not in ("", POOL_KEY)


def _env_key() -> str | None:
    """Read the variables as the SDK does: GOOGLE_API_KEY first."""
    return os.environ.get("GOOGLE_API_KEY") or os.environ.get("GEMINI_API_KEY")


def _vertex(asked: Any) -> bool:
    """Tell whether the SDK will take the other road, as it reads its own variables."""
    if asked is not None:
        return bool(asked)
    for name in ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI"):
        if (value := os.environ.get(name)) is not None:
            return value.lower() in ("true", "1")
    return False


@lru_cache(maxsize=256)
def _fingerprint(key: str) -> str:
    """Label a stranger's key for this process; nothing of the key can be had from it."""
    return blake2b(key.encode(), digest_size=4, key=_SALT).hexdigest()
