"""A websocket whose handshake has a key of the pool: no redirect elsewhere, no key in a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection

from ..errors import ConfigError
from .redaction import Redact, redact_exception

__all__ = ["guarded"]


def guarded(arguments: Mapping[str, Any], origin: str, redact: Redact) -> dict[str, Any]:
    """Return arguments of `connect` that keep the key on *origin* and out of logs.

    Args:
        arguments: As they are.
        origin: Where the key may go.
        redact: Takes keys out of a text.
    """
    base = arguments.get("create_connection") or ClientConnection
    log = arguments.get("logger") or logging.getLogger("websockets.client")
    return {"create_connection": _connection(base, origin, redact), "logger": _Log(log, redact)}


def _connection(base: Any, origin: str, redact: Redact) -> Any:
    class Connection(base):  # type: ignore[misc]  # the class is the caller's
        """A connection to one origin."""

        async def handshake(self, *args: Any, **kwargs: Any) -> None:
            """Send the key, unless a redirect has led elsewhere."""
            uri = self.protocol.uri
            scheme = "https" if uri.secure else "http"
            host = f"[{uri.host}]" if ":" in uri.host else uri.host
            if (here := f"{scheme}://{host}:{uri.port}") != origin:
                raise ConfigError(
                    f"{origin} redirects this session to {here}, where the pool's key may not "
                    "follow: it was not sent there, and no key is penalized"
                )
            with _cleaned(redact):
                await super().handshake(*args, **kwargs)

        async def recv(self, *args: Any, **kwargs: Any) -> Any:
            """Redact the reason with which the server closes."""
            with _cleaned(redact):
                return await super().recv(*args, **kwargs)

        async def send(self, *args: Any, **kwargs: Any) -> None:
            """Redact the reason when the program writes to a closed connection."""
            with _cleaned(redact):
                await super().send(*args, **kwargs)

    return Connection


@contextmanager
def _cleaned(redact: Redact) -> Iterator[None]:
    handled = sys.exception()
    try:
        yield
    except Exception as error:
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
