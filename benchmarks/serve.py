"""`keyrot serve` beside a proxy of ten lines: `make bench-serve`.

A fake provider, the proxy and two doors run in processes of their own; calls take turns.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["main"]

PROXY = """
import sys, httpx, uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route
client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))
async def go(request):
    url = f"{sys.argv[1]}{request.url.path}?{request.url.query}"
    headers = {"content-type": "application/json", "x-goog-api-key": "FAKE-a"}
    up = client.build_request(request.method, url, headers=headers, content=await request.body())
    got = await client.send(up, stream=True)
    return StreamingResponse(got.aiter_raw(), got.status_code, media_type="application/json")
app = Starlette(routes=[Route("/{path:path}", go, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[2]), http="h11", log_level="error", access_log=False)
"""
BODY = json.dumps({"contents": [{"parts": [{"text": "Hi"}]}]}).encode()
TEXT = {"candidates": [{"content": {"role": "model", "parts": [{"text": "x" * 200}]}}]}
USED = {"usageMetadata": {"promptTokenCount": 2, "totalTokenCount": 9}}
WHOLE = json.dumps({**TEXT, **USED}).encode()
EVENTS = b"".join(
    f"data: {json.dumps(one)}\r\n\r\n".encode() for one in (TEXT, TEXT, {**TEXT, **USED})
)
MODEL = "/v1beta/models/gemini-2.5-flash:"
UPLOAD = "/gemini/upload/v1beta/files?upload_id=1"
MB = 1 << 20


class Fake(asyncio.Protocol):
    """A provider that answers in one write, and drops the bytes of uploads."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.head, self.left = transport, b"", -1

    def data_received(self, data: bytes) -> None:
        if self.left < 0:
            self.head += data
            head, end, data = self.head.partition(b"\r\n\r\n")
            if not end:
                return
            sizes = [
                one for one in head.lower().split(b"\r\n") if one.startswith(b"content-length")
            ]
            self.left, self.head = int(sizes[0].partition(b":")[2]), head
        self.left -= len(data)
        if self.left <= 0:
            is_stream = b"stream" in self.head.partition(b"\r\n")[0]
            kind = b"text/event-stream" if is_stream else b"application/json"
            body = EVENTS if is_stream else WHOLE
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
                % (kind, len(body), body)
            )
            self.head, self.left = b"", -1


async def fake(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Fake, "127.0.0.1", port)
    await server.serve_forever()
