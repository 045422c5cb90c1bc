"""A fake service behind HTTP/2, the protocol that Google prefers: real TLS, ALPN and streams."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config

from keyrot_middleware.testing import FakeGemini
from support.certificate_authority import CertificateAuthority

_PIECE = 65_536
_OF_ONE_CONNECTION = ("connection", "transfer-encoding", "keep-alive")


@contextmanager
def http2_in_front(gemini: FakeGemini, folder: Path) -> Iterator[tuple[str, ssl.SSLContext]]:
    """Serve HTTP/2 in front of *gemini*; give the URL, and what clients need to trust it."""
    authority, loop, over = CertificateAuthority(folder), asyncio.new_event_loop(), asyncio.Event()
    listening, config = socket.create_server(("127.0.0.1", 0)), Config()
    port = listening.getsockname()[1]
    config.bind = [f"fd://{listening.detach()}"]
    config.certfile, config.keyfile = str(authority.chain), str(authority.chain)
    config.alpn_protocols = ["h2"]
    config.errorlog = None
    to_port = int(gemini.host.rpartition(":")[2])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await _relay(to_port, scope, receive, send)

    def run() -> None:
        loop.run_until_complete(serve(app, config, shutdown_trigger=over.wait))
        loop.close()

    thread = Thread(target=run)
    thread.start()
    try:
        yield f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=authority.file)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(20)


async def _relay(to_port: int, scope: Any, receive: Any, send: Any) -> None:
    """Send a request on by HTTP/1.1, and its response back piece by piece."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    path = f"{scope['path']}?{scope['query_string'].decode()}".rstrip("?")
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    connection = HTTPConnection("127.0.0.1", to_port, timeout=30)
    try:
        await asyncio.to_thread(connection.request, scope["method"], path, body, headers)
        response = await asyncio.to_thread(connection.getresponse)
        kept = [
            (name.lower().encode(), value.encode())
            for name, value in response.getheaders()
            if name.lower() not in _OF_ONE_CONNECTION
        ]
        start = {"type": "http.response.start", "status": response.status, "headers": kept}
        await send(start)
        while data := await asyncio.to_thread(response.read1, _PIECE):
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body"})
    finally:
        connection.close()
