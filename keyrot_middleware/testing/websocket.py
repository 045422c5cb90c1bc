"""A websocket of the server: websockets' protocol without I/O on a connection that was upgraded."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, Protocol

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

__all__ = ["Peer", "WebSocket"]

_NO_LOG = logging.Logger("fake-gemini", logging.CRITICAL)
"""A program that reads the log of websockets reads that of its own side only."""
_DATA = (Opcode.CONT, Opcode.TEXT, Opcode.BINARY)
MAX_REASON = 123
"""Bytes of a reason that fit into a close frame."""


class Peer(Protocol):
    """What answers the messages of one websocket."""

    def opened(self, socket: WebSocket) -> None:
        """The handshake is done."""

    def received(self, message: Any) -> None:
        """A message came: a JSON value."""

    def ended(self) -> None:
        """The connection is closed or lost; called once."""


class WebSocket(asyncio.Protocol):
    """One connection, from the bytes of its handshake on.

    Args:
        peer: Answers its messages.
        on_lost: Called once, when the connection is closed.
    """

    _transport: asyncio.Transport

    def __init__(self, peer: Peer, on_lost: Callable[[], None]) -> None:
        self._peer = peer
        self._on_lost = on_lost
        self._websocket = ServerProtocol(max_size=None, logger=_NO_LOG)
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP server makes no other
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the peer."""
        del exc
        self._peer.ended()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Answer the handshake, then pass each message on."""
        self._websocket.receive_data(data)
        for event in self._websocket.events_received():
            if isinstance(event, Request):
                self._websocket.send_response(self._websocket.accept(event))
                self._flush()
                self._peer.opened(self)
            elif isinstance(event, Frame) and event.opcode in _DATA:
                self._parts.append(bytes(event.data))
                if event.fin:
                    text, self._parts = b"".join(self._parts), []
                    self._peer.received(json.loads(text))
        self._flush()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message as Google does: JSON in a binary frame."""
        if not self._transport.is_closing():
            self._websocket.send_binary(json.dumps(message).encode())
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """Close with a code and a reason, which is cut where a frame has no more room."""
        if not self._transport.is_closing():
            cut = reason.encode()[:MAX_REASON].decode(errors="ignore")
            self._websocket.send_close(code, cut)
            self._flush()

    def abort(self) -> None:
        """Drop the connection at once, without a close frame."""
        self._transport.abort()

    def _flush(self) -> None:
        for data in self._websocket.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()
