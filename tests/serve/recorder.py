"""A provider that keeps the bytes of each request, which servers with a parser do not show."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, Self

DONE = b'{"candidates": [{"content": {"parts": [{"text": "ok"}], "role": "model"}}]}'


class Sent(NamedTuple):
    """A request, as it arrived."""

    line: str
    headers: list[tuple[str, bytes]]
    """Their names in lower case."""
    body: bytes = b""

    def values(self, name: str) -> list[bytes]:
        return [value for one, value in self.headers if one == name]

    def holds(self, text: str) -> bool:
        """Return whether *text* is anywhere in its head."""
        head = [self.line, *(f"{name}: {value.decode('latin-1')}" for name, value in self.headers)]
        return text.lower() in "\n".join(head).lower()


Reply = bytes | Iterable[bytes]
"""The bytes of a reply, or its pieces as they are made."""


def reply(body: bytes = DONE, *lines: str | bytes, status: str = "200 OK") -> bytes:
    """Return a reply whose connection ends; *lines* are more headers."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    if not any(str(line).lower().startswith("content-type") for line in lines):
        head.append("Content-Type: application/json")
    encoded = [line if isinstance(line, bytes) else line.encode() for line in (*head, *lines)]
    return b"\r\n".join([*encoded, b"", b""]) + body


def refusal(code: int, status: str, message: str = "no") -> bytes:
    body = f'{{"error": {{"code": {code}, "message": "{message}", "status": "{status}"}}}}'
    return reply(body.encode(), status=f"{code} {status}")


class Recorder:
    """Reads one request from each connection, answers it and closes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self._closed, self._lock = False, threading.Lock()
        self._open: list[socket.socket] = []
        self.reset()
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Forget what came, and answer each request well."""
        self.log: list[Sent] = []
        """The requests that came whole."""
        self.begun: list[Sent] = []
        """The heads of all of them, as they come."""
        self.received: list[int] = []
        """The bytes of the body of each of those that came, as they come."""
        self.answer: Callable[[Sent], Reply] = lambda _: reply()
        self.early: Callable[[Sent], bytes | None] = lambda _: None
        """Answers a request before its body is read; None: that is read first."""

    def env(self, **more: str) -> dict[str, str]:
        """Return the environment of a door with a key for each of three providers, all here."""
        return {
            "KEYROT_ALLOWED_HOSTS": f"{self.host},openai={self.url},anthropic={self.url}",
            "GEMINI_API_KEYS": "FAKE-of-gemini",
            "OPENAI_API_KEYS": "FAKE-of-openai",
            "ANTHROPIC_API_KEYS": "FAKE-of-anthropic",
            **more,
        }

    def close(self) -> None:
        self._closed = True
        for one in (self._socket, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as file:
            sent = self._head(file)
            if sent is None:
                return
            with self._lock:
                self.begun.append(sent)
                self.received.append(0)
                count = partial(self._count, self.received, len(self.received) - 1)
            if (early := self.early(sent)) is not None:
                connection.sendall(early)
                while connection.recv(1 << 20):  # no reset takes the reply away
                    pass
                return
            body = b"".join(self._pieces(file, sent, count))
            sent = sent._replace(body=body)
            self.log.append(sent)
            made = self.answer(sent)
            pieces = iter([made] if isinstance(made, bytes) else made)
            try:
                for piece in pieces:
                    connection.sendall(piece)
            finally:
                getattr(pieces, "close", bool)()

    def _head(self, file: Any) -> Sent | None:
        lines = []
        while (line := file.readline()) not in (b"\r\n", b""):
            lines.append(line.rstrip(b"\r\n"))
        if not lines:
            return None
        pairs = [line.partition(b":") for line in lines[1:]]
        named = [(name.decode().lower(), value.strip()) for name, _, value in pairs]
        return Sent(lines[0].decode("latin-1"), named)

    @staticmethod
    def _count(received: list[int], index: int, piece: bytes) -> bytes:
        received[index] += len(piece)
        return piece

    @staticmethod
    def _pieces(file: Any, sent: Sent, count: Callable[[bytes], bytes]) -> Iterable[bytes]:
        if not sent.values("transfer-encoding"):
            left = int((sent.values("content-length") or [b"0"])[0])
            while left and (piece := file.read1(min(left, 1 << 16))):
                left -= len(piece)
                yield count(piece)
            if left:
                raise ConnectionAbortedError
            return
        while size := int(file.readline() or b"0", 16):
            yield count(file.read(size))
            file.readline()
        file.readline()
