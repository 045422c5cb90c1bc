"""What is patched below the four request methods: which key a client and its requests have.

A client without a key of its own has the placeholder, and a send of ours has the key of its lease.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from ..core.policy import POOL_KEY
from .home import needs_home
from .inject import asend_once, build_request, send_once, sending, under_way

__all__ = ["Below", "keyless"]

keyless: weakref.WeakSet[Any] = weakref.WeakSet()
"""Clients that were made without a key of their own. They outlive the pool."""

_ARGUMENTS = ("vertexai", "api_key", "credentials", "project", "location", "http_options")
"""Of the api client's constructor, in their order."""


class Below:
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
        send = under_way.get()
        body = args[2] if len(args) > 2 else kwargs.get("request_dict")
        if send is None or send.client is not client or send.body is not body:
            return wrapped(*args, **kwargs)
        return build_request(send, wrapped, client, *args, **kwargs)

    def send_once(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `_request`."""
        send = under_way.get()
        if send is None or send.request is not _first(args, kwargs):
            return wrapped(*args, **kwargs)
        once = send.once
        sent = send_once(client, *args, **kwargs) if once else wrapped(*args, **kwargs)
        if kwargs.get("stream"):
            send.response = sent
        return sent

    def asend_once(self, wrapped: Callable[..., Any], client: Any, args: Any, kwargs: Any) -> Any:
        """Wrap `_async_request`."""
        send = under_way.get()
        if send is None or send.request is not _first(args, kwargs):
            return wrapped(*args, **kwargs)
        if send.once:
            sent = asend_once(client, *args, **kwargs)
        else:
            if len(args) < 2:  # SDK 1.65 leaves a stream's options out, and repeats as it likes
                kwargs.setdefault("http_options", send.options_sent)
            sent = wrapped(*args, **kwargs)
        return _opened(sent, send) if kwargs.get("stream") else sent


async def _opened(sent: Awaitable[Any], send: sending) -> Any:
    """Keep the response of a stream, to be closed with it."""
    send.response = response = await sent
    return response


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("http_request")
