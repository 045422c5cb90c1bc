"""A pool, and the patches that connect it to google-genai and the HTTP libraries."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection
from contextvars import ContextVar
from functools import partial
from typing import Any

from ..hosts import AllowedOrigins, hostname
from ..libraries import SDK
from ..runtime.pool import Pool
from . import genai, httpx, live, requests
from .httpx import transport
from .patching import Args, Kwargs, Patcher, Wrapped, Wrapper
from .pooled_calls import PooledCalls
from .redaction import current_redact, filter_logs
from .routing import served

__all__ = ["transport"]

_UNKNOWN = (
    "aiohttp {}: its requests do not go through the pool, which knows 3.12.2 and newer; a newer "
    "keyrot-middleware may know this version"
)


class Binding:
    """Connects one pool to its libraries, from `install` to `close`."""

    def __init__(
        self, pool: Pool | None, allowed: AllowedOrigins, libraries: Collection[str]
    ) -> None:
        """Patch nothing yet.

        Args:
            pool: None where no key was found: then only the placeholder is kept off the wire.
            allowed: Where its keys may go.
            libraries: Those to serve; google-genai sends by three of them.
        """
        self.pool = pool
        self._calls = calls = PooledCalls(pool, allowed) if pool is not None else None
        self._served = of = served(libraries, allowed)
        sdk = {**genai.wrappers(calls, allowed), **live.wrappers(calls)}
        http = {**httpx.wrappers(calls, of), **requests.wrappers(calls, of), **self._asyncio()}
        self._sdk, self._http = Patcher(sdk if SDK in libraries else {}), Patcher(http)

    def install(self) -> None:
        """Patch the libraries, or put back what others have removed."""
        if self.pool is not None:
            filter_logs(self.pool.secrets.redact)
        self._http.install()  # first: it takes the placeholder out of what the SDK sends
        httpx.installed[:] = ((self._calls, self._served, {}),)
        self._sdk.install()

    def close(self) -> None:
        """Restore the libraries exactly; running calls finish."""
        self._sdk.uninstall()
        if self._calls is not None:
            self._calls.close()
        self._http.uninstall()
        httpx.installed.clear()
        filter_logs(None)
        if self.pool is not None:
            self.pool.close()

    def patched(self) -> dict[str, bool]:
        """Return for each patched method whether our layer is in place."""
        return self._sdk.status() | self._http.status()

    def _asyncio(self) -> dict[tuple[str, str], Wrapper]:
        """Return the wrappers of aiohttp, which cannot be imported here, and of the loops."""
        table: dict[tuple[str, str], Wrapper] = {}
        if {"aiohttp", SDK} & set(self._served.libraries):
            table["aiohttp", "ClientSession._request"] = self._request
        if self._calls is not None:
            table["asyncio.base_events", "BaseEventLoop.run_in_executor"] = self._in_executor
            table["uvloop", "Loop.run_in_executor"] = self._in_executor
        return table

    def _request(self, wrapped: Wrapped, session: Any, args: Args, kwargs: Kwargs) -> Any:
        """Wrap `ClientSession._request`: the methods of a session and `aiohttp.request` call it."""
        host = hostname(str(kwargs.get("str_or_url") or args[-1]))
        if host and host not in self._served.hosts:  # an address of a session's base has none
            return wrapped(*args, **kwargs)
        if current_redact.get() is not None:  # the transport of a client that is served above
            return wrapped(*args, **{**kwargs, "allow_redirects": False})
        session = args[0] if session is None else session  # it was called unbound
        library = sys.modules["aiohttp"]
        if not _is_known(library, session):
            if self._calls is not None:
                self._calls.warn_once("aiohttp", _UNKNOWN.format(library.__version__))
            return wrapped(*args, **kwargs)
        from .aiohttp import AiohttpRequests  # noqa: PLC0415 - it imports aiohttp

        above = kwargs.get("middlewares")
        if above is None:  # those of a request replace the session's, which have no public name
            above = session._middlewares
        options = dict(kwargs)
        ours = AiohttpRequests(self._calls, self._served, session, options)
        return _with_own_threads(wrapped(*args, **{**options, "middlewares": (*above, ours)}))

    def _in_executor(self, wrapped: Wrapped, loop: Any, args: Args, kwargs: Kwargs) -> Any:
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


def _is_known(library: Any, session: Any) -> bool:
    """Return whether aiohttp has what is used of it: what 3.12.2 brought, and private names."""
    return (
        hasattr(library.Payload, "as_bytes")
        and hasattr(library.StreamReader, "_wait")
        and hasattr(session, "_middlewares")
    )


_in_aiohttp: ContextVar[bool] = ContextVar("keyrot_in_aiohttp", default=False)
"""Whether aiohttp is at work on a request that the pool may serve."""


async def _with_own_threads(sending: Any) -> Any:
    _in_aiohttp.set(True)
    try:
        return await sending
    finally:
        _in_aiohttp.set(False)
