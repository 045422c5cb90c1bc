"""HTTP/1.1 as far as the SDK speaks it: bytes to requests, answers to bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

__all__ = ["HttpRequest", "NotHttpError", "RequestReader", "chunk", "head", "last_chunk"]

_MAX_HEAD = 65_536
# What Google's front end puts on every answer (GEMINI.md A0); no Retry-After, no X-RateLimit-*.
_FIXED = (
    "Vary: Origin\r\nVary: X-Origin\r\nVary: Referer\r\nServer: scaffolding on HTTPServer2\r\n"
    "X-XSS-Protection: 0\r\nX-Frame-Options: SAMEORIGIN\r\nX-Content-Type-Options: nosniff\r\n"
    "Server-Timing: gfet4t7; dur=42\r\n"
)
last_chunk = b"0\r\n\r\n"


class NotHttpError(ValueError):
    """The peer does not speak HTTP/1.1, or a head is longer than 64 KiB."""


@dataclass(slots=True)
class HttpRequest:
    """One whole request.

    Attributes:
        method: In capitals.
        target: The path with its query, as sent.
        headers: Pairs in the order and case in which they came.
        body: Decoded from chunks if it came in chunks.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    def values(self, name: str) -> list[str]:
        """Return every value of a header, whatever its case."""
        wanted = name.lower()
        return [value for key, value in self.headers if key.lower() == wanted]

    def value(self, name: str) -> str:
        """Return the first value of a header, or an empty string."""
        return next(iter(self.values(name)), "")


class RequestReader:
    """Takes bytes as they come, and gives whole requests."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: HttpRequest | None = None
        self._length = 0
        self._chunked = False

    def feed(self, data: bytes) -> None:
        """Keep bytes that came."""
        self._buffer += data

    def next(self) -> HttpRequest | None:
        """Return the next whole request, or None if more bytes are needed.

        Raises:
            NotHttpError: If the bytes are not HTTP/1.1.
        """
        if self._head is None and not self._read_head():
            return None
        request = self._head
        body = self._read_chunks() if self._chunked else self._read_length()
        if request is None or body is None:
            return None
        self._head, request.body = None, body
        return request

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise NotHttpError("the head of a request is longer than 64 KiB")
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        self._head = head = _parse_head(lines)
        self._chunked = "chunked" in head.value("transfer-encoding").lower()
        self._length = int(head.value("content-length") or 0)
        return True

    def _read_length(self) -> bytes | None:
        if len(self._buffer) < self._length:
            return None
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        return body

    def _read_chunks(self) -> bytes | None:
        parts: list[bytes] = []
        at = 0
        while True:
            end = self._buffer.find(b"\r\n", at)
            if end < 0:
                return None
            size = int(self._buffer[at:end].split(b";")[0], 16)
            at = end + 2 + size + 2
            if len(self._buffer) < at:
                return None
            if size == 0:
                del self._buffer[:at]
                return b"".join(parts)
            parts.append(bytes(self._buffer[end + 2 : at - 2]))


def _parse_head(lines: list[str]) -> HttpRequest:
    try:
        method, target, _version = lines[0].split(" ")
        pairs = [line.split(":", 1) for line in lines[1:]]
        headers = tuple((name, value.strip()) for name, value in pairs)
    except ValueError:
        raise NotHttpError(f"not a request of HTTP/1.1: {lines[0][:80]!r}") from None
    return HttpRequest(method, target, headers)


@lru_cache(maxsize=8)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request" if status == 499 else "Unknown"


def head(
    status: int,
    content_type: str,
    now: float,
    *,
    length: int | None,
    headers: Iterable[tuple[str, str]] = (),
) -> bytes:
    """Write a response head; without a length the body comes in chunks."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    more = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return (
        f"HTTP/1.1 {status} {_reason(status)}\r\nContent-Type: {content_type}\r\n"
        f"Date: {_date(int(now))}\r\n{_FIXED}{more}{framing}\r\n\r\n"
    ).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """Write one chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
