"""Addresses on loopback where a store gets no answer."""

from __future__ import annotations

import socket

from support.servers import free_port

__all__ = ["SilentServer", "closed_port"]


def closed_port() -> int:
    """Return a port with no listener."""
    return free_port()


class SilentServer:
    """A port that accepts connections and never sends a byte."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Close the port and all connections to it."""
        self._socket.close()
