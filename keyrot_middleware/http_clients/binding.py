"""Where the HTTP libraries are wrapped, now or when they are imported."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection
from contextvars import ContextVar
from functools import partial
from inspect import iscoroutine
from typing import Any, TypeVar

from ..adapters import hostname
from ..adapters.patching import Patcher, Wrapper
from ..adapters.pooled_calls import PooledCalls
from ..adapters.redaction import current_redact
from ..settings import AllowedOrigins
from .calls import SDK, served
from .httpx_clients import HttpxTransports, PooledTransport
from .requests_sessions import PooledAdapter

_HTTPX = ("httpx", "httpx2")
_TOO_OLD = "aiohttp before 3.12.2: its requests do not go through the pool; update aiohttp"
_VERBS = ("get", "post", "put", "patch", "delete", "head", "options")


class HttpClients:
    """Serves the requests of HTTP libraries, from `install` to `close`."""

    def __init__(
        self, calls: PooledCalls | None, allowed: AllowedOrigins, libraries: Collection[str]
    ) -> None:
        """Patch nothing yet.

        Args:
            calls: The pool; None where no key was found, so that only placeholders are kept back.
            allowed: Where its keys may go.
            libraries: The names of those to serve; google-genai sends by three of them.
        """
        self._calls, self._served = calls, served(libraries, allowed)
        self.hosts = self._served.hosts
        """Where requests may be served: the first and only comparison for all others."""
        self.patcher = Patcher(self._table())

    def _table(self) -> dict[tuple[str, str], Wrapper]:
        """Return the wrappers of what picks a sender for an address; httpx's has no public name."""
        libraries = self._served.libraries
        table: dict[tuple[str, str], Wrapper] = {}
        for library in _HTTPX:
            if {library, SDK} & set(libraries):
                pick = self._client(library)
                table[library, "Client._transport_for_url"] = pick
                table[library, "AsyncClient._transport_for_url"] = pick
        if "requests" in libraries:
            table["requests", "Session.get_adapter"] = self._session
        if {"aiohttp", SDK} & set(libraries):
            for name in ("request", *_VERBS) if "aiohttp" in libraries else ("request",):
                table["aiohttp", f"ClientSession.{name}"] = self._request
        if self._calls is not None:
            table["asyncio.base_events", "BaseEventLoop.run_in_executor"] = self._in_executor
            table["uvloop", "Loop.run_in_executor"] = self._in_executor
        return table

    def install(self) -> None:
        """Patch the libraries, or repair the patches."""
        self.patcher.install()
        _installed[:] = (self,)

    def close(self) -> None:
        """Restore the libraries exactly; running calls finish."""
        self.patcher.uninstall()
        if _installed == [self]:
            _installed.clear()

    def over(self, library: str, libraries: Collection[str]) -> HttpxTransports:
        """Return what serves requests of httpx or httpx2."""
        served = self._served._replace(libraries=libraries)
        return HttpxTransports(self._calls, served, sys.modules[library])

    def _client(self, library: str) -> Any:
        hosts = self.hosts
        over: list[HttpxTransports] = []

        def wrapper(wrapped: Callable[..., Any], _client: Any, args: Any, kwargs: Any) -> Any:
            """Wrap `_transport_for_url` of both clients."""
            found = wrapped(*args, **kwargs)
            if _url(args, kwargs).host not in hosts or isinstance(found, _Explicit):
                return found
            if not over:
                over.append(self.over(library, self._served.libraries))
            return PooledTransport(found, over[0])

        return wrapper

    def _session(self, wrapped: Callable[..., Any], _session: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `Session.get_adapter`."""
        found = wrapped(*args, **kwargs)
        url = _url(args, kwargs)
        if not any(host in url for host in self.hosts) or hostname(url) not in self.hosts:
            return found
        return PooledAdapter(found, self._calls, self._served)

    def _request(self, wrapped: Callable[..., Any], session: Any, args: Any, kwargs: Any) -> Any:
        """Wrap the methods of `ClientSession` that send."""
        host = hostname(str(kwargs.get("url", args[-1] if args else "")))
        if host and host not in self.hosts:  # an address of a session's base has none
            return wrapped(*args, **kwargs)
        if current_redact.get() is not None:  # the transport of a client that is served above
            return wrapped(*args, **{**kwargs, "allow_redirects": False})
        if not hasattr(sys.modules["aiohttp"].Payload, "as_bytes"):
            if self._calls is not None:
                self._calls.warn_once("aiohttp", _TOO_OLD)
            return wrapped(*args, **kwargs)
        from .aiohttp_sessions import AiohttpRequests  # noqa: PLC0415 - it imports aiohttp

        above = kwargs.get("middlewares")
        if above is None:  # those of a request replace the session's, which have no public name
            above = getattr(session, "_middlewares", None) or ()
        options = dict(kwargs)
        ours = AiohttpRequests(self._calls, self._served, session, options)
        found = wrapped(*args, **{**options, "middlewares": (*above, ours)})
        sending = _with_own_threads(found)
        return sending if iscoroutine(found) else type(found)(sending)

    def _in_executor(self, wrapped: Callable[..., Any], loop: Any, args: Any, kwargs: Any) -> Any:
        """Wrap the loops' `run_in_executor`: a send uses threads of the pool's own.

        asyncio resolves names in the loop's default executor, and aiohttp reads .netrc there. Sync
        calls that wait for a key in that executor (`asyncio.to_thread`) can take all of its
        threads: a task that has the key they wait for could then not connect.
        """
        if self._calls is None or not (_in_aiohttp.get() or current_redact.get()):
            return wrapped(*args, **kwargs)
        threads = self._calls.pool.threads

        def run(executor: Any, func: Callable[..., Any], *given: Any) -> Any:
            if executor is not None:
                return wrapped(executor, func, *given)
            return asyncio.wrap_future(threads.submit(partial(func, *given)), loop=loop)

        return run(*args, **kwargs)


_in_aiohttp: ContextVar[bool] = ContextVar("keyrot_in_aiohttp", default=False)
"""Whether aiohttp is at work on a request that the pool may serve."""


async def _with_own_threads(sending: Any) -> Any:
    _in_aiohttp.set(True)
    try:
        return await sending
    finally:
        _in_aiohttp.set(False)


def _url(args: Any, kwargs: Any) -> Any:
    """Return the only argument, behind the client where the function is called unbound."""
    return (*args, *kwargs.values())[-1]


_installed: list[HttpClients] = []
"""The one that `install()` put in place; empty for none."""


class _Explicit:
    """A transport of the program's that goes over the pool of `install()`, while there is one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def handle_request(self, request: Any) -> Any:
        """Send a request of httpx.Client."""
        return self._over(request).handle_request(request)

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request of httpx.AsyncClient."""
        return await self._over(request).handle_async_request(request)

    def _over(self, request: Any) -> Any:
        for installed in _installed:
            if request.url.host in installed.hosts:
                library = type(request).__module__.partition(".")[0]
                return PooledTransport(self._inner, installed.over(library, (library, SDK)))
        return self._inner

    def __enter__(self) -> Any:
        self._inner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._inner.__exit__(*error)

    async def __aenter__(self) -> Any:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._inner.__aexit__(*error)

    def close(self) -> None:
        """Close the transport below."""
        self._inner.close()

    async def aclose(self) -> None:
        """Close the transport below."""
        await self._inner.aclose()


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
