"""The four ways to ask a model: sync and async, whole and as a stream."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from google.genai._api_client import BaseApiClient

__all__ = [
    "MODEL",
    "MODES",
    "STREAMS",
    "ask",
    "ask_async",
    "ask_sync",
    "calls",
    "run",
    "skip_where_the_sdk_reconnects",
]

MODEL = "gemini-2.5-flash"
MODES = ("sync", "sync_stream", "async", "async_stream")
STREAMS = ("sync_stream", "async_stream")


def skip_where_the_sdk_reconnects(mode: str) -> None:
    """Skip where the SDK itself sleeps up to ten seconds after a lost connection, and repeats."""
    once = BaseApiClient._async_request_once
    if mode.startswith("async") and "implicit_retry" not in inspect.signature(once).parameters:
        pytest.skip("this SDK reconnects under aiohttp by itself, and cannot be told not to")


def ask_sync(mode: str, client: Any, **asked: Any) -> str:
    """Ask in this thread; give the text of the whole answer."""
    asked = {"model": MODEL, "contents": "hello", **asked}
    if mode == "sync":
        return str(client.models.generate_content(**asked).text)
    return "".join(chunk.text or "" for chunk in client.models.generate_content_stream(**asked))


async def ask_async(mode: str, client: Any, **asked: Any) -> str:
    """Ask in this task; give the text of the whole answer."""
    asked = {"model": MODEL, "contents": "hello", **asked}
    if mode == "async":
        return str((await client.aio.models.generate_content(**asked)).text)
    stream = await client.aio.models.generate_content_stream(**asked)
    return "".join([chunk.text or "" async for chunk in stream])


def run(client: Any, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run *work* in a loop of its own, in which the client's connections are closed again."""

    async def all_of_it() -> Any:
        try:
            return await work()
        finally:
            await client.aio.aclose()

    return asyncio.run(all_of_it())


def ask(mode: str, client: Any, **asked: Any) -> str:
    """Ask once, in any mode; give the text, or raise what the program would see."""
    if not mode.startswith("async"):
        return ask_sync(mode, client, **asked)
    return str(run(client, lambda: ask_async(mode, client, **asked)))


def calls(
    mode: str, client: Any, number: int, at_once: int = 1, **asked: Any
) -> list[str | Exception]:
    """Ask *number* times, so many at once; give texts and errors."""

    def one(_: int) -> str | Exception:
        try:
            return ask_sync(mode, client, **asked)
        except Exception as error:
            return error

    async def everyone() -> list[Any]:
        turn = asyncio.Semaphore(at_once)

        async def one_task() -> str:
            async with turn:
                return await ask_async(mode, client, **asked)

        return await asyncio.gather(*[one_task() for _ in range(number)], return_exceptions=True)

    if mode.startswith("async"):
        return list(run(client, everyone))
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(one, range(number)))
