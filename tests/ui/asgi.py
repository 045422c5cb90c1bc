"""Requests to an ASGI app without a server: a test decides each part of the scope."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

__all__ = ["TOKEN", "Reply", "request"]

TOKEN = "a-token-of-the-tests-0123"


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def content(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> str:
        return str(self.content["error"])

    @property
    def cookie(self) -> str:
        """Return the cookie that was set, as a browser sends it back."""
        return self.headers["set-cookie"].partition(";")[0]


SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "root_path": "",
    "client": ("127.0.0.1", 50_000),
    "server": ("127.0.0.1", 8000),
}


def request(app: Any, path: str = "/", *, host: str = "127.0.0.1:8000", **more: Any) -> Reply:
    """Send a request, as a script that has the token unless headers say otherwise."""
    scope = SCOPE | {name: value for name, value in more.items() if name in SCOPE}
    headers = {"host": host} | {name: value for name, value in more.items() if name not in SCOPE}
    if not {"authorization", "cookie"} & headers.keys():
        headers["authorization"] = f"Bearer {TOKEN}"
    bare, _, query = path.partition("?")
    scope["path"] = str(scope["root_path"]) + bare
    scope["raw_path"], scope["query_string"] = scope["path"].encode(), query.encode()
    scope["headers"] = [
        (name.replace("_", "-").encode(), value.encode("latin-1"))
        for name, value in headers.items()
        if value
    ]
    with ThreadPoolExecutor(1) as thread:  # in this one Playwright's loop may be running
        return thread.submit(asyncio.run, _request(app, scope)).result()


async def _request(app: Any, scope: Any) -> Reply:
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    await app(scope, receive, send)
    start, *rest = messages
    found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Reply(start["status"], found, b"".join(one.get("body", b"") for one in rest).decode())
