"""A server on loopback that speaks as it likes: what no library would send, or half of it."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

Talk = Callable[[socket.socket, str], Any]
"""Answers a request on its connection, which has this key; the connection is closed after it."""


class RawServer:
    """Accepts connections, reads a request from each, and lets *talk* answer it."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.keys: list[str] = []
        """The key of each request, in order."""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self._closing = threading.Event()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._closing.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def wait(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(60)
            key = self._read(connection)
            if key is not None:
                self.keys.append(key)
                self._talk(connection, key)

    def _read(self, connection: socket.socket) -> str | None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := connection.recv(65_536)):
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        named = {name.lower(): value.decode() for name, value in fields.items()}
        while len(body) < int(named.get(b"content-length", "0")):
            body += connection.recv(65_536)
        bearer = named.get(b"authorization", "").removeprefix("Bearer ")
        return named.get(b"x-goog-api-key") or named.get(b"x-api-key") or bearer


def answer(
    body: bytes, *headers: str, status: str = "403 Forbidden", length: int | None = None
) -> bytes:
    """Return a response; *length* is another one than the body's own."""
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", "Connection: close", f"Content-Length: {size}"]
    if not any(header.lower().startswith("content-type") for header in headers):
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
