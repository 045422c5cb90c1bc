"""The page's API on a Unix domain socket, for `keyrot status` and `keyrot explain`.

Only the user who runs the program may open it: the socket has mode 0600.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, MissingExtraError
from . import app

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["StatusSocket"]

STOP_S = 5.0


class StatusSocket:
    """A server on a socket, in a thread of its own."""

    def __init__(self, path: str) -> None:
        """Start to serve the pool that install() put in place.

        Raises:
            ConfigError: The socket cannot be made at *path*.
            MissingExtraError: Starlette or uvicorn is not installed.
        """
        try:
            import uvicorn  # noqa: PLC0415 - an optional library
        except ImportError:
            raise MissingExtraError(
                wanted_by="KEYROT_STATUS_SOCKET", package="uvicorn", extra="ui"
            ) from None
        config = uvicorn.Config(
            _from_this_machine(app()), lifespan="off", access_log=False, log_config=None
        )
        config.load()  # here, so that what is missing is raised here
        self._path, self._socket = path, _bind(path)
        self._inode = Path(path).stat().st_ino
        self._pid = os.getpid()
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="keyrot-status", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving, and remove the socket."""
        if os.getpid() != self._pid:  # a forked child has a copy of what is its parent's
            return
        self._server.should_exit = True
        self._thread.join(STOP_S)
        self._socket.close()
        with contextlib.suppress(OSError):
            if Path(self._path).stat().st_ino == self._inode:  # else another process's by now
                Path(self._path).unlink()


def _bind(path: str) -> socket.socket:
    """Make a socket for this user alone, in place of one that no process serves any more."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        _clear(path)
        made.bind(path)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"KEYROT_STATUS_SOCKET: no socket can be made at {path}: {error.strerror or error}"
        ) from None
    except ConfigError:
        made.close()
        raise
    finally:
        os.umask(before)
    return made


def _clear(path: str) -> None:
    """Remove a socket that no process serves."""
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"KEYROT_STATUS_SOCKET: {path} exists and is no socket")
    if _is_served(path):
        raise ConfigError(
            f"KEYROT_STATUS_SOCKET: another process serves {path}; give each process its own"
        )
    Path(path).unlink()


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(path)
        except OSError:
            return False
    return True


def _from_this_machine(page: ASGIApp) -> ASGIApp:
    """Give each request the address of a client on this machine, for a socket has none."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await page({**scope, "client": ("127.0.0.1", 0)}, receive, send)

    return serve
