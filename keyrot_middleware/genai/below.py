"""What is patched below the four request methods: which key a client and its requests have.

A client without a key of its own is lent the pool's, and a send of ours has the key of its lease.
Neither goes to a host that is not allowed, whichever way the request takes.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from ..core.policy import POOL_KEY
from ..drive.pool import Pool
from ..errors import ConfigError
from .facts import origin_of
from .home import needs_home
from .inject import asend_once, build_request, lend, send_once, sending, under_way

__all__ = ["Below"]

_ARGUMENTS = ("vertexai", "api_key", "credentials", "project", "location", "http_options")
"""Of the api client's constructor, in their order."""


class Below:
    """The wrappers of the constructor, and of what the request methods call."""

    def __init__(self, pool: Pool, origins: frozenset[str], on: list[bool]) -> None:
        """Serve *pool*, whose keys may go to *origins*; *on* is empty once it was uninstalled."""
        self._pool = pool
        self._origins = origins
        self._on = on
        self._sheltered: weakref.WeakSet[Any] = weakref.WeakSet()
        """Clients whose key is the pool's: it must not follow them to a foreign host."""

    def init(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Give a client without a key of its own the pool's key as its home key."""
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        sheltered = needs_home(given, self._origins)
        if sheltered:
            # No key yet, its store being down: the client is made all the same, for later.
            args, kwargs = (), {**given, "api_key": self._pool.home_value or POOL_KEY}
        result = wrapped(*args, **kwargs)
        if sheltered:
            self._sheltered.add(client)
        return result

    def build(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Put the key of a send into its request; keep the pool's keys at home in all others."""
        send = under_way.get()
        if send is not None:
            return build_request(send, wrapped, client, *args, **kwargs)
        request = wrapped(*args, **kwargs)
        if not self._on or client.vertexai:
            return request
        if client in self._sheltered or client.api_key == POOL_KEY:
            at_home = origin_of(request.url) in self._origins
            value = self._pool.home_value if at_home else None
            lend(request, client.api_key, value)
        return request

    def websocket(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap what Live asks for its address: a session may name a host of its own (2.x and up).

        Raises:
            ConfigError: The pool's key that the client was lent would go along.
        """
        options = (*args, kwargs.get("http_options"))[0] or client._http_options
        origin = origin_of(options.base_url or "")
        lent = client in self._sheltered and client.api_key in (options.headers or {}).values()
        if lent and origin not in self._origins:
            raise ConfigError(
                f"the key that the pool lent this client may not go to {origin}: give the client "
                "an api_key of its own, or name the host in KEYROT_ALLOWED_HOSTS"
            )
        return wrapped(*args, **kwargs)

    def send_once(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `_request`."""
        send = under_way.get()
        if send is None:
            return wrapped(*args, **kwargs)
        once = send.once
        sent = send_once(client, *args, **kwargs) if once else wrapped(*args, **kwargs)
        if kwargs.get("stream"):
            send.response = sent
        return sent

    def asend_once(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `_async_request`."""
        send = under_way.get()
        if send is None:
            return wrapped(*args, **kwargs)
        once = send.once
        sent = asend_once(client, *args, **kwargs) if once else wrapped(*args, **kwargs)
        return _opened(sent, send) if kwargs.get("stream") else sent


async def _opened(sent: Awaitable[Any], send: sending) -> Any:
    """Keep the response of a stream, to be closed with it."""
    send.response = response = await sent
    return response
