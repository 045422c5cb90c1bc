"""Where the HTTP libraries are wrapped, now or when they are imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..adapters.imports import Patched
from ..adapters.patching import Patcher, warn_and_log
from ..adapters.pooled_calls import PooledCalls
from ..core.model import GEMINI_API
from ..settings import AllowedOrigins
from .httpx_clients import HttpxTransports, PooledTransport, is_request_of_sdk
from .requests_sessions import PooledAdapter

__all__ = ["HttpClients", "transport"]

_AIOHTTP = "aiohttp"
_HTTPX = ("httpx", "httpx2")
_REQUESTS = "requests"
_SHORT_FORMS = ("get", "post", "put", "patch", "delete", "head", "options")
_SEAMS = {
    _AIOHTTP: ("ClientSession.request", *(f"ClientSession.{name}" for name in _SHORT_FORMS)),
    **dict.fromkeys(_HTTPX, ("Client._transport_for_url", "AsyncClient._transport_for_url")),
    _REQUESTS: ("Session.get_adapter",),
}
"""The methods that pick what sends a request to an address. httpx's has no public name."""


class _HttpPatcher(Patcher):
    """Patches what is there, and warns once of a library that has no such method."""

    def __init__(self, replace: Callable[[], None]) -> None:
        super().__init__(replace)
        self._warned: set[str] = set()

    @property
    def served(self) -> set[str]:
        """The libraries that are served, now or when they are imported."""
        return self.modules - self._warned if self.enabled else set()

    def is_complete(self) -> bool:
        """Return True: a library without the method is left alone."""
        for library in self.modules - self._warned:
            module = sys.modules.get(library)
            for seam in _SEAMS[library]:
                owner, _, name = seam.partition(".")
                cls = getattr(module, owner, None)
                if cls is not None and not hasattr(cls, name) and library not in self._warned:
                    self._warned.add(library)
                    version = getattr(module, "__version__", "of this version")
                    warn_and_log(
                        f"{library} {version} has no {seam}, so its requests do not go through "
                        "the pool; a newer keyrot-middleware may know this version, and "
                        "keyrot_middleware.http_clients.transport() works with any"
                    )
        return True


class HttpClients:
    """Serves the requests of HTTP libraries, from `install` to `close`."""

    def __init__(
        self,
        calls: PooledCalls | None,
        allowed: AllowedOrigins,
        libraries: Collection[str],
        replace: Callable[[], None],
    ) -> None:
        """Patch nothing yet.

        Args:
            calls: The pool; None where no key was found, so that only placeholders are kept back.
            allowed: Where its keys may go.
            libraries: The names of those to serve.
            replace: Takes all away, for another copy of this package.
        """
        self._calls = calls
        self.hosts = {_host(origin) for origin in allowed[GEMINI_API]}
        """Where requests may be served: the first and only comparison for all others."""
        self._served: dict[str, Any] = {}
        self.patcher = _HttpPatcher(replace)
        for library in libraries:
            for seam in _SEAMS[library]:
                if library == _AIOHTTP:
                    wrapper = self._aiohttp(seam.partition(".")[2].upper())
                else:
                    wrapper = self._session if library == _REQUESTS else self._client(library)
                self.patcher.add_functions({(library, seam): wrapper})

    def install(self, patched: Patched | None = None) -> None:
        """Patch the libraries, or repair the patches."""
        self.patcher.install(patched)
        _installed[:] = (self,)

    def close(self) -> None:
        """Restore the libraries exactly; running calls finish."""
        self.patcher.uninstall()
        if _installed == [self]:
            _installed.clear()

    def patched(self) -> dict[str, bool]:
        """Return for each patched method whether our layer is in place."""
        return self.patcher.status()

    def serves(self, request: Any) -> bool:
        """Return whether the key of a request of httpx or httpx2 is written here."""
        library = type(request).__module__.partition(".")[0]
        return (
            library in self.patcher.served
            and request.url.host in self.hosts
            and not is_request_of_sdk(request)
        )

    def over(self, inner: Any, library: str) -> Any:
        """Return a transport of httpx or httpx2, over the pool."""
        served = self._served.get(library)
        if served is None:
            served = self._served[library] = HttpxTransports(self._calls, sys.modules[library])
        return PooledTransport(inner, served)

    def _client(self, library: str) -> Any:
        hosts = self.hosts

        def wrapper(wrapped: Callable[..., Any], _client: Any, args: Any, kwargs: Any) -> Any:
            """Wrap `_transport_for_url` of both clients."""
            found = wrapped(*args, **kwargs)
            if _url(args, kwargs).host not in hosts:
                return found
            return found if isinstance(found, _Explicit) else self.over(found, library)

        return wrapper

    def _aiohttp(self, form: str) -> Any:
        names = ("method", "url") if form == "REQUEST" else ("url",)

        def wrapper(wrapped: Callable[..., Any], session: Any, args: Any, kwargs: Any) -> Any:
            """Wrap `ClientSession.request`, and its short forms."""
            given = dict(zip(names, args, strict=False)) | kwargs
            if _host(str(given.get("url"))) not in self.hosts:
                return wrapped(*args, **kwargs)
            if form != "REQUEST":
                return session.request(
                    **{"method": form, "allow_redirects": form != "HEAD"} | given
                )
            return self._sessions(wrapped, session, given)

        return wrapper

    def _sessions(self, wrapped: Callable[..., Any], session: Any, given: dict[str, Any]) -> Any:
        from .aiohttp_sessions import AiohttpSessions  # noqa: PLC0415 - it imports aiohttp

        return AiohttpSessions(self._calls).send(wrapped, session, given)

    def _session(self, wrapped: Callable[..., Any], _session: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `Session.get_adapter`."""
        found = wrapped(*args, **kwargs)
        url = _url(args, kwargs)
        if not any(host in url for host in self.hosts) or _host(url) not in self.hosts:
            return found
        return PooledAdapter(found, self._calls)


def _url(args: Any, kwargs: Any) -> Any:
    """Return the only argument, behind the client where the function is called unbound."""
    return (*args, *kwargs.values())[-1]


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


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
                return installed.over(self._inner, type(request).__module__.partition(".")[0])
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
