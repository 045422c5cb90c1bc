"""An error that is larger than any of Google's: its beginning is kept, and no more is read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.interactions import SDK_WARNINGS
from support.modes import spread
from support.raw_server import chunk
from support.scenes import WAYS, raised, surfaces

from keyrot_middleware.adapters.redaction import MOST

pytestmark = [*SDK_WARNINGS, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

CUT = "cut by keyrot"
BLOCK = 65_536


def text_without_end(value: str) -> Iterator[bytes]:
    """Return the parts of a body that repeats a key and does not end."""
    yield f"refused: {value} ".encode()
    while True:
        yield b"and so on " * (BLOCK // 10)


def json_without_end(value: str) -> Iterator[bytes]:
    """Return the parts of an error of Google's with details that do not end."""
    yield b'{"error": {"code": 403, "status": "X", "message": "refused", "details": ['
    while True:
        yield b",".join([json.dumps({"reason": "X", "quoted": f'"{value}"'}).encode()] * 500) + b","


def packed(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Compress the parts, of which a few bytes become very many."""
    packer = zlib.compressobj(9, wbits=31)
    for part in parts:
        for _ in range(20):
            yield packer.compress(part)
        yield packer.flush(zlib.Z_SYNC_FLUSH)


BODIES: dict[str, tuple[Callable[[str], Iterator[bytes]], str]] = {
    "text": (text_without_end, "Content-Type: text/plain"),
    "JSON": (json_without_end, "Content-Type: application/json"),
    "a gzip bomb": (
        lambda value: packed(json_without_end(value)),
        "Content-Type: application/json\r\nContent-Encoding: gzip",
    ),
}


@pytest.mark.parametrize(("surface", "library", "body"), spread(WAYS, BODIES))
def test_an_error_without_an_end(surface, library, body, scene, no_aiohttp) -> None:
    """The call ends with the SDK's own error, which says that it was cut."""
    if library == "httpx":
        no_aiohttp()
    parts, headers = BODIES[body]

    def talk(connection: Any, value: str) -> None:
        head = f"HTTP/1.1 403 Forbidden\r\n{headers}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for part in filter(None, parts(value)):
            connection.sendall(chunk(part))  # until the connection is closed

    server = scene.serve(talk)
    error: Any = raised(surfaces(scene.client(server.url, retry_options={"attempts": 1}))[surface])
    code = getattr(error, "code", None) or error.status_code
    assert code == 403
    assert "refused" in str(error)
    assert CUT in str(error)
    assert len(str(error)) < 2 * MOST
    scene.check(error)
