"""The page's API on a Unix domain socket, for `keyrot status` and `keyrot explain`.

Only the user who runs the program may open it: the socket has mode 0600.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, MissingExtraError
from ..forks import after_fork
from . import app

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["StatusSocket"]

STOP_S = 5.0
_LOGGERS = ("uvicorn.error", "uvicorn.access")


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
        # Not access_log=False: that removes the handlers of the program's own uvicorn.access. And
        # not loop="auto": old versions make uvloop the policy of the whole process.
        config = uvicorn.Config(
            _from_this_machine(app()), lifespan="off", log_config=None, loop="asyncio", ws="none"
        )
        config.load()  # here, so that what is missing is raised here
        self._path, self._socket = path, _bind(path)
        self._inode = Path(path).stat().st_ino
        self._pid = os.getpid()
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="keyrot-status", daemon=True
        )
        self._quiet = _OtherThreads(self._thread)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._quiet)
        after_fork(self, StatusSocket._in_child)
        self._thread.start()

    def close(self) -> None:
        """Stop serving, and remove the socket."""
        if os.getpid() != self._pid:  # a forked child has a copy of what is its parent's
            return
        self._server.should_exit = True
        self._thread.join(STOP_S)
        self._socket.close()
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._quiet)
        with contextlib.suppress(OSError):
            if Path(self._path).stat().st_ino == self._inode:  # else another process's by now
                Path(self._path).unlink()

    def _in_child(self) -> None:
        """Close the copy: it would keep the socket open, unanswered, after the parent's end."""
        self._socket.close()


class _OtherThreads(logging.Filter):
    """Drops what one thread logs, but for warnings: the program may log by uvicorn's loggers."""

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__()
        self._thread = thread

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record."""
        return record.levelno >= logging.WARNING or threading.current_thread() is not self._thread


def _bind(path: str) -> socket.socket:
    """Make a socket for this user alone, in place of one that no process serves any more."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        made.bind(path)
        Path(path).chmod(0o600)  # nobody can connect before listen(); a umask is the process's
        made.listen()  # here, so that whoever connects after install() is not refused
    except OSError as error:
        made.close()
        raise ConfigError(
            f"KEYROT_STATUS_SOCKET: no socket can be made at {path}: {error.strerror or error}"
        ) from None
    except ConfigError:
        made.close()
        raise
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
