"""Block every host but this one, for tests of others."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_connect = socket.socket.connect
_getaddrinfo = socket.getaddrinfo


def only_loopback() -> None:
    """From now on this process can reach this machine only."""
    socket.socket.connect = _connect_here  # type: ignore[assignment,method-assign]
    socket.getaddrinfo = _resolve_here


def _connect_here(self: socket.socket, address: Any) -> None:
    """Connect within this machine, refuse anything else at once."""
    host = address[0] if isinstance(address, tuple) else "localhost"
    if host != "localhost" and not (_is_address(host) and ipaddress.ip_address(host).is_loopback):
        raise ConnectionRefusedError("these tests run without a network")
    _connect(self, address)


def _resolve_here(host: Any, *args: Any, **kwargs: Any) -> Any:
    """Resolve addresses and ``localhost``; any other name is unknown."""
    if host not in {None, "", "localhost", b"localhost"} and not _is_address(host):
        raise socket.gaierror(socket.EAI_NONAME, "these tests run without a network")
    return _getaddrinfo(host, *args, **kwargs)


def _is_address(host: Any) -> bool:
    """Return whether a host is written as an IP address."""
    try:
        ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError:
        return False
    return True
