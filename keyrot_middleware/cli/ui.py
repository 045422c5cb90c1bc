"""`keyrot ui`: the page in a browser, over the shared state."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..core.wording import one_line
from ..errors import ConfigError, MissingExtraError
from ..hosts import is_loopback
from ..ui import HOW_TO_MAKE, app, check_token
from .status import NOT_SHARED, open_report

try:
    import uvicorn
except ImportError:
    raise MissingExtraError(wanted_by="keyrot ui", package="uvicorn", extra="ui") from None


def ui(*, host: str, port: int, token_file: Path | None, actions: bool) -> int:
    """Serve the page until Ctrl-C.

    Args:
        host: Where to listen; other machines reach it only where this is not loopback.
        port: 0: any free one.
        token_file: Holds the token; None: a random one, in the printed address.
        actions: Offer to reset, disable and enable keys.

    Returns:
        0 after Ctrl-C; 1 where there is nothing to show.

    Raises:
        KeyrotError: An option is wrong, or the state cannot be read.
    """
    token = read_token(host, token_file) or secrets.token_urlsafe(24)
    with (
        contextlib.suppress(KeyboardInterrupt),  # the server has ended by then
        listen(host, port) as listener,
        open_report() as source,
    ):
        if source is None:
            print(NOT_SHARED, file=sys.stderr)
            return 1
        answer = source.status(limit=1)  # raises where it cannot be read
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}/?token="

        _announce(answer, address, token, token_file, host)
        config = uvicorn.Config(
            app(actions=actions, token=token, source=source),
            timeout_graceful_shutdown=1,
            **QUIET,
        )
        uvicorn.Server(config).run(sockets=[listener])
    return 0


QUIET: Mapping[str, Any] = {
    "access_log": False,  # it would show the token, and the log of websockets too
    "lifespan": "off",
    "log_level": "error",
    "proxy_headers": False,
    "server_header": False,
    "ws": "none",
}
"""Options of uvicorn."""


def read_token(host: str, file: Path | None) -> str | None:
    """Return the token in *file*; None: there is no file, and other machines cannot reach *host*.

    Raises:
        ConfigError: It cannot be read, or is too short, or is needed.
    """
    if file is None:
        if not is_loopback(host):
            raise ConfigError(f"--host {host} lets other machines in; that needs --token-file FILE")
        return None
    try:
        token = file.read_text("utf-8").strip()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"--token-file {file}: {reason}; {HOW_TO_MAKE} > {file}") from None
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        print(f"keyrot: other users can read {file}: chmod 600 {file}", file=sys.stderr)
    return check_token(token, f"--token-file {file}")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ConfigError: It cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        if error.errno == errno.EADDRINUSE:
            reason = os.strerror(error.errno)  # that of the error may have the address, too
            reason += "; choose another with --port, or --port 0 for any that is free"
        raise ConfigError(f"--host {host} --port {port}: {reason}") from None
    # Connections inherit it. asyncio sets it only for a socket that it has made itself, and without
    # it the body of a reply waits up to 40 ms behind its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _announce(
    answer: dict[str, Any], address: str, token: str, file: Path | None, host: str
) -> None:
    pool, url = one_line(str(answer["pool"])), one_line(str(answer["state_url"]))
    print(f"keyrot ui: pool {pool}, {answer['summary']['keys']} keys, state in {url}")
    shown = quote(token, safe="") if file is None else f"…  with the token in {file}"
    print(f"Open  {address}{shown}")
    if not is_loopback(host):
        print("This is plain HTTP: put a server with TLS in front of it.")
    print("Ctrl-C ends it.", flush=True)
