"""A websocket whose handshake has a key of the pool: no redirect elsewhere, no key in a log."""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from ..errors import ConfigError
from ..providers.gemini import KEY_HEADER
from ..secrets import Secret
from .redaction import HIDDEN, Redact, redact_exception, redact_key, scrub

if TYPE_CHECKING:
    from .live import SessionWatch

UNREAD_S = 30.0
"""How long a program may leave the last messages of a lost connection unread and have their tokens
counted still."""


def guarded(
    arguments: Mapping[str, Any],
    origin: str | None,
    key: Secret,
    redact: Redact,
    watch: SessionWatch,
) -> dict[str, Any]:
    """Return arguments of `connect` that keep the key on *origin*, out of logs and of answers.

    Args:
        arguments: As they are.
        origin: Where the key may go; None: the key is not of the pool.
        key: The key of the handshake.
        redact: Takes keys out of a text.
        watch: Follows messages and the end of the connection.
    """
    make = arguments.get("create_connection") or ClientConnection
    if getattr(make, "func", None) is _create:
        return {}  # by another pool, whose session it is
    log = arguments.get("logger") or logging.getLogger("websockets.client")
    create = partial(_create, make, (origin, key, redact, watch))
    return {"create_connection": create, "logger": _Log(log, redact)}


def _create(make: Callable[..., Any], keyrot: Any, *args: object, **kwargs: object) -> Any:
    """Make a connection, and make it one of ours: the program's own factory may be no class."""
    made = make(*args, **kwargs)
    cls: Any = type(made)
    made.__class__ = _connection_class(cls)
    made._keyrot = keyrot
    return made


@lru_cache(maxsize=8)
def _connection_class(base: Any) -> Any:
    class Connection(base):  # type: ignore[misc]  # the class is the caller's
        """A connection to one origin."""

        async def handshake(self, *args: object, **kwargs: object) -> None:
            """Send the key, unless a redirect has led elsewhere."""
            origin, _, redact, watch = self._keyrot
            uri = self.protocol.uri
            scheme = "https" if uri.secure else "http"
            host = f"[{uri.host}]" if ":" in uri.host else uri.host
            if origin is not None and (here := f"{scheme}://{host}:{uri.port}") != origin:
                raise ConfigError(
                    f"{origin} redirects this session to {here}, where the pool's key may not "
                    "follow: it was not sent there, and no key is penalized"
                )
            try:
                with _cleaned(redact):
                    await super().handshake(*args, **kwargs)
            except Exception as error:
                watch.refused(error)
                raise
            finally:
                scrub(self.response, redact)
                if self.request is not None and origin is not None:
                    _hide_key(self.request.headers)

        async def recv(self, *args: object, **kwargs: object) -> Any:
            """Redact a message, and the reason with which the server closes."""
            _, key, redact, watch = self._keyrot
            async with _watched(redact, watch):
                message = redact_key(await super().recv(*args, **kwargs), key)
            watch.received(message)
            return message

        async def send(self, *args: object, **kwargs: object) -> None:
            """Redact the reason when the program writes to a closed connection."""
            _, _, redact, watch = self._keyrot
            async with _watched(redact, watch):
                await super().send(*args, **kwargs)

        async def close(self, *args: object, **kwargs: object) -> None:
            """Close, and settle the session by what the server said, if it was first."""
            _, _, redact, watch = self._keyrot
            was_open, closed = self.protocol.state is State.OPEN, None
            try:
                await super().close(*args, **kwargs)
                closed = _closed_by_server(self, redact, was_open=was_open)
            finally:
                await watch.closed(closed)

        def connection_lost(self, *args: object) -> None:
            """Settle a session that the program does not use meanwhile; see `UNREAD_S`."""
            super().connection_lost(*args)
            later = asyncio.get_running_loop().call_later
            # The context of the handshake would keep a session that the program has dropped.
            later(UNREAD_S, _settle_unread, weakref.ref(self), context=Context())

    return Connection


def _closed_by_server(
    connection: Any, redact: Redact, *, was_open: bool
) -> ConnectionClosed | None:
    """Return how a connection ended; None if the program has closed it."""
    error: ConnectionClosed = connection.protocol.close_exc
    if was_open and error.rcvd in (None, error.sent):
        return None
    redact_exception(error, redact)
    return error


def _settle_unread(reference: Callable[[], Any]) -> None:
    if (connection := reference()) is not None:
        _, _, redact, watch = connection._keyrot
        error = _closed_by_server(connection, redact, was_open=False)
        connection._keyrot_end = asyncio.ensure_future(watch.closed(error))


def _hide_key(headers: Any) -> None:
    """Take the key out of the request that a connection keeps."""
    if KEY_HEADER in headers:
        del headers[KEY_HEADER]
        headers[KEY_HEADER] = HIDDEN


@asynccontextmanager
async def _watched(redact: Redact, watch: SessionWatch) -> AsyncIterator[None]:
    try:
        with _cleaned(redact):
            yield
    except ConnectionClosed as error:
        await watch.closed(error)
        raise


@contextmanager
def _cleaned(redact: Redact) -> Iterator[None]:
    handled = sys.exception()
    try:
        yield
    except BaseException as error:
        redact_exception(error, redact, handled)
        raise


class _Log(logging.LoggerAdapter):  # type: ignore[type-arg]  # generic for type checkers only
    """A logger that shows no key: websockets writes each header of the handshake at DEBUG."""

    def __init__(self, log: Any, redact: Redact) -> None:
        super().__init__(log, {})
        self._redact = redact

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log the redacted line."""
        if self.isEnabledFor(level):
            text = self._redact(str(msg) % args if args else str(msg))
            super().log(level, "%s", text, **kwargs)
