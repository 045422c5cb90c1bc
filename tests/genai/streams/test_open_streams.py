"""Open streams: many at once, read in other threads, still open at uninstall()."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.modes import STREAMS, run
from support.streams import REQUEST

import keyrot_middleware
from keyrot_middleware.core.model import LeaseOutcome


def test_many_async_streams_open_at_once(gemini, pool, connect) -> None:
    """The same in one loop, with tasks that stop early."""
    pool("A", "B", "C")
    client = connect()

    async def one(number: int) -> str:
        text = ""
        async for chunk in await client.aio.models.generate_content_stream(**REQUEST):
            text += chunk.text or ""
            if number % 3 == 0:
                break
        return text

    async def all_of_them() -> list:
        return await asyncio.gather(*[one(number) for number in range(24)])

    texts = run(client, all_of_them)
    assert [len(text) for text in texts] == [2 if n % 3 == 0 else 9 for n in range(24)]
    gc.collect()
    assert sorted(pool.ledger.kinds) == [LeaseOutcome.ABANDONED] * 8 + [LeaseOutcome.SUCCESS] * 16


def test_a_stream_read_in_another_thread(gemini, pool, connect) -> None:
    """Web servers open a stream in one thread and read it in others."""
    pool("A")
    stream = connect().models.generate_content_stream(**REQUEST)
    texts = [next(stream).text]
    for _ in range(2):
        with ThreadPoolExecutor(1) as thread:
            texts.append(thread.submit(next, stream).result().text)
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join()
    assert "".join(texts) == "ok from A"
    assert pool.ledger.kinds in ([LeaseOutcome.ABANDONED], [LeaseOutcome.SUCCESS])


@pytest.mark.parametrize("mode", STREAMS)
def test_uninstall_while_a_stream_is_open(mode, gemini, pool, connect) -> None:
    """Calls in flight continue to their end."""
    pool("A")
    client = connect()
    texts = []

    async def read_async() -> None:
        async for chunk in await client.aio.models.generate_content_stream(**REQUEST):
            texts.append(chunk.text)
            keyrot_middleware.uninstall()

    if mode == "async_stream":
        run(client, read_async)
    else:
        for chunk in client.models.generate_content_stream(**REQUEST):
            texts.append(chunk.text)
            keyrot_middleware.uninstall()
    assert "".join(texts) == "ok from A"
    assert pool.ledger.kinds == [LeaseOutcome.SUCCESS]


@pytest.mark.parametrize(("read", "aiohttp"), [("nothing", True), ("all", False)])
def test_the_next_call_gets_the_key_of_a_stream_that_was_closed(
    read, aiohttp, pool, connect, no_aiohttp
) -> None:
    """`await stream.aclose()` releases the one slot of a key, twenty times."""
    if not aiohttp:
        no_aiohttp()
    pool({"key_id": "A", "max_concurrency": 1}, max_wait_s=0)
    client = connect()

    async def twenty_times() -> None:
        for _ in range(20):
            stream = await client.aio.models.generate_content_stream(**REQUEST)
            if read == "all":
                async for _chunk in stream:
                    pass
            await stream.aclose()
            for _ in range(20):  # the loop closes the SDK's generators
                await asyncio.sleep(0)
            assert (await client.aio.models.generate_content(**REQUEST)).text == "ok from A"

    run(client, twenty_times)
