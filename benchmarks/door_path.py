"""Count the functions of ours that `keyrot serve` enters until the first byte of a reply goes out.

Beside them, those of the same call by httpx in a Python program: the path through the pool.

    python -m benchmarks.door_path [-v]

The ASGI app is called directly, with a loopback provider and the state in memory. The count is that
of a warm call: no clock and no other load moves it. With `-v` it lists them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from unittest import mock

import httpx

import keyrot_middleware
from keyrot_middleware.monitoring.report import source_of
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.serve import Door
from keyrot_middleware.serve.access import DoorAccess
from keyrot_middleware.serve.call_headers import DetailsObserver
from keyrot_middleware.settings import load
from keyrot_middleware.testing import FakeGemini

from .page import Row

__all__ = ["CALL", "MOST_ADDED", "added", "call", "opened", "rows"]

MOST_ADDED = 52
"""Sixteen of them say in the reply what became of the call; `--no-details` saves them."""
WARM_CALLS = 5
BODY = json.dumps({"contents": [{"parts": [{"text": "hi"}]}]}).encode()
CALL = "/v1beta/models/gemini-flash-latest:streamGenerateContent"
_ROOT = str(Path(keyrot_middleware.__file__).parent) + os.sep

Functions = dict[tuple[str, str], None]
"""By file and name, in the order in which they were first entered."""

_entered: ContextVar[Functions | None] = ContextVar("entered", default=None)
"""Of the request that is counted: it follows it to other tasks and threads, and to nothing else."""


def _note(frame: Any, event: str, _: object) -> None:
    if event == "call" and (entered := _entered.get()) is not None:
        code = frame.f_code
        if code.co_filename.startswith(_ROOT):
            entered[code.co_filename.removeprefix(_ROOT), code.co_qualname] = None


@contextmanager
def _profiled() -> Iterator[None]:
    """Count, without the collector: in the middle of a call it would end what earlier ones left."""
    gc.disable()
    threading.setprofile(_note)
    sys.setprofile(_note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        gc.enable()


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Door, str]]:
    """Yield the app as `keyrot serve` makes it, and the name of its provider."""
    config, pool = load(), current_pool()
    assert pool is not None
    pool.observers = (*pool.observers, DetailsObserver())
    door = Door(config, DoorAccess("127.0.0.1", None), source_of(pool), has_details=True)
    try:
        yield door, next(iter(door.upstream))
    finally:
        await door.aclose()


async def call(door: Door, name: str) -> Functions:
    """Send a request; return what was entered until the first byte of its reply."""
    entered: Functions = {}
    over, requests = asyncio.Event(), iter([{"type": "http.request", "body": BODY}])
    codes = []

    async def receive() -> Any:
        if (request := next(requests, None)) is not None:
            return request
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            codes.append(message["status"])
        elif message["body"]:
            _entered.set(None)

    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "http_version": "1.1",
        "path": f"/{name}{CALL}",
        "raw_path": f"/{name}{CALL}".encode(),
        "root_path": "",
        "query_string": b"alt=sse",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "headers": [
            (b"host", b"127.0.0.1:2"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(BODY)).encode()),
            (b"x-goog-api-key", b"keyrot-pool"),
        ],
    }
    _entered.set(entered)
    await door(scope, receive, send)
    over.set()
    assert codes == [200], codes
    return entered


async def _through_door() -> Functions:
    async with opened() as (door, name):
        for _ in range(WARM_CALLS):
            await asyncio.create_task(call(door, name))
        return await asyncio.create_task(call(door, name))


async def _by_httpx() -> Functions:
    """Send the same request as a Python program does."""

    async def send(client: httpx.AsyncClient) -> Functions:
        entered: Functions = {}
        _entered.set(entered)
        address = f"{os.environ['KEYROT_ALLOWED_HOSTS']}{CALL}?alt=sse"
        headers = {"x-goog-api-key": "keyrot-pool", "content-type": "application/json"}
        async with client.stream("POST", address, content=BODY, headers=headers) as response:
            async for _ in response.aiter_raw():
                _entered.set(None)
        return entered

    async with httpx.AsyncClient() as client:
        for _ in range(WARM_CALLS):
            await asyncio.create_task(send(client))
        return await asyncio.create_task(send(client))


def count(way: Callable[[], Coroutine[Any, Any, Functions]] = _through_door) -> Functions:
    """Return what a warm call enters; `install()` must not have been called."""
    with FakeGemini() as fake:
        env = {
            "GEMINI_API_KEYS": fake.add_key("a").value,
            "KEYROT_STATE_URL": "memory://",
            "KEYROT_ALLOWED_HOSTS": fake.url,
        }
        with mock.patch.dict(os.environ, env), _profiled():
            keyrot_middleware.install()
            try:
                return asyncio.run(way())
            finally:
                keyrot_middleware.uninstall()


def added() -> tuple[int, int]:
    """Return what the door adds to the functions that a program's own call enters, and those."""
    own = len(count(_by_httpx))
    return len(count()) - own, own


def rows() -> list[Row]:
    """Count for the table."""
    more, own = added()
    name = "`keyrot serve`: functions of ours until the first byte of a reply, over those of httpx"
    return [(name, f"≤ {MOST_ADDED}", f"{more} (over {own})")]


def main() -> int:
    """Print the counts, with `-v` the functions; return 1 if there are too many."""
    by_file: dict[str, list[str]] = {}
    for file, name in count():
        by_file.setdefault(file, []).append(name)
    if "-v" in sys.argv[1:]:
        for file, names in by_file.items():
            print(file, *names, sep="\n    ")
    more, own = added()
    print(f"{more} functions (at most {MOST_ADDED}) over {own} of a call by httpx")
    return int(more > MOST_ADDED)


if __name__ == "__main__":
    raise SystemExit(main())
