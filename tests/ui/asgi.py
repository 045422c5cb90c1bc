"""Requests to an ASGI app without a server: a test decides each part of the scope."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

__all__ = ["LOOPBACK", "Reply", "request"]

LOOPBACK = ("127.0.0.1", 50_000)


@dataclass(frozen=True, slots=True)
class Reply:
    """The app's answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """Decode the body."""
        return self.body.decode()

    @property
    def content(self) -> Any:
        """Parse the body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """Return the sentence of an error."""
        sentence: str = self.content["error"]
        return sentence

    @property
    def cookie(self) -> str:
        """Return the cookie that was set, as a browser sends it back."""
        return self.headers["set-cookie"].partition(";")[0]


def request(
    app: Any,
    path: str = "/",
    *,
    method: str = "GET",
    host: str = "127.0.0.1:8000",
    client: tuple[str, int] | None = LOOPBACK,
    root_path: str = "",
    scheme: str = "http",
    http_version: str = "1.1",
    **headers: str,
) -> Reply:
    """Send one request; underscores in names of *headers* stand for hyphens."""
    work = _request(app, path, method, host, client, root_path, scheme, http_version, headers)
    with ThreadPoolExecutor(1) as thread:  # in this one Playwright's loop may be running
        return thread.submit(asyncio.run, work).result()


async def _request(
    app: Any,
    path: str,
    method: str,
    host: str,
    client: tuple[str, int] | None,
    root_path: str,
    scheme: str,
    http_version: str,
    headers: dict[str, str],
) -> Reply:
    bare, _, query = path.partition("?")
    sent = {"host": host} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": http_version,
        "method": method,
        "scheme": scheme,
        "path": root_path + bare,
        "raw_path": (root_path + bare).encode(),
        "query_string": query.encode(),
        "root_path": root_path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
        "client": client,
        "server": ("127.0.0.1", 8000),
    }
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    await app(scope, receive, send)
    start, *rest = messages
    found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Reply(start["status"], found, b"".join(part.get("body", b"") for part in rest))
