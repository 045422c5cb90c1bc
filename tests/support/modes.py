"""The four ways to call a model: sync and async, whole and as a stream."""

import asyncio
import importlib
import inspect
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import pytest
from google.genai import Client
from google.genai._api_client import BaseApiClient

import keyrot_middleware


def spread(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return combinations in which each value of each axis stands twice at least, in other company.

    An axis of tuples gives the values of several parameters.
    """
    lists = [list(axis) for axis in axes]
    rows = []
    for number in range(2 * max(map(len, lists))):
        row: tuple[Any, ...] = ()
        for shift, axis in enumerate(lists):
            value = axis[(number + shift * (number // len(axis))) % len(axis)]
            row += value if isinstance(value, tuple) else (value,)
        rows.append(row)
    return list(dict.fromkeys(rows))


MODEL = "gemini-3.1-flash-lite"
MODES = ("sync", "sync_stream", "async", "async_stream")
STREAMS = ("sync_stream", "async_stream")


AIOHTTP = find_spec("aiohttp") is not None
"""Whether the SDK sends async calls by aiohttp; else by httpx or httpx2."""


def http_library() -> Any:
    """Give the library that this SDK speaks HTTP with by default: httpx or httpx2."""
    client = Client(api_key="FAKE")
    sync = client._api_client._httpx_client
    client.close()
    bases = {base.__module__.partition(".")[0] for base in type(sync).__mro__}
    return importlib.import_module(next(iter(bases & {"httpx", "httpx2"})))


def skip_where_the_sdk_reconnects(mode: str) -> None:
    """Skip where the SDK itself sleeps up to ten seconds after a lost connection, and repeats."""
    once = BaseApiClient._async_request_once
    if mode.startswith("async") and "implicit_retry" not in inspect.signature(once).parameters:
        pytest.skip("this SDK reconnects under aiohttp by itself, and has no option against it")


def ask_sync(mode: str, client: Any, **request: Any) -> str:
    """Send a call in this thread; return the text of the whole answer."""
    request = {"model": MODEL, "contents": "hello", **request}
    if mode == "sync":
        return str(client.models.generate_content(**request).text)
    return "".join(chunk.text or "" for chunk in client.models.generate_content_stream(**request))


async def ask_async(mode: str, client: Any, **request: Any) -> str:
    """Send a call in this task; return the text of the whole answer."""
    request = {"model": MODEL, "contents": "hello", **request}
    if mode == "async":
        return str((await client.aio.models.generate_content(**request)).text)
    stream = await client.aio.models.generate_content_stream(**request)
    return "".join([chunk.text or "" async for chunk in stream])


async def close_connections(client: Any) -> None:
    """Close what the client has open in this loop.

    Without aiohttp `aclose()` would close the client itself, for all loops to come.
    """
    http = client._api_client._async_httpx_client
    if AIOHTTP or not getattr(http, "_per_loop", False):
        await client.aio.aclose()
    elif (opened := http._loop_clients.pop(asyncio.get_running_loop(), None)) is not None:
        await opened.aclose()


def run(client: Any, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run *work* in a loop of its own, in which the client's connections are closed again."""

    async def all_of_it() -> Any:
        try:
            return await work()
        finally:
            await close_connections(client)
            await asyncio.sleep(0)  # transports close their sockets in the next turn

    return asyncio.run(all_of_it())


def sdk_error(error: BaseException) -> Any:
    """Return the SDK's own error of the last attempt, also where the pool is exhausted by it."""
    is_exhausted = isinstance(error, keyrot_middleware.KeyPoolExhausted)
    return error.__cause__ if is_exhausted and error.__cause__ is not None else error


def ask(mode: str, client: Any, **request: Any) -> str:
    """Send one call in any mode; return the text, or raise what the program would see."""
    if not mode.startswith("async"):
        return ask_sync(mode, client, **request)
    return str(run(client, lambda: ask_async(mode, client, **request)))


def calls(
    mode: str, client: Any, number: int, at_once: int = 1, **request: Any
) -> list[str | Exception]:
    """Send *number* calls, so many at once; return texts and errors."""

    def one(_: int) -> str | Exception:
        try:
            return ask_sync(mode, client, **request)
        except Exception as error:
            return error

    async def everyone() -> list[Any]:
        turn = asyncio.Semaphore(at_once)

        async def one_task() -> str:
            async with turn:
                return await ask_async(mode, client, **request)

        return await asyncio.gather(*[one_task() for _ in range(number)], return_exceptions=True)

    if mode.startswith("async"):
        return list(run(client, everyone))
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(one, range(number)))
