"""However a stream ends, its lease is settled once, and an abandoned one penalizes no key."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from support.modes import run
from support.streams import REQUEST, body, collected, path_of

import keyrot_middleware
from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply


@pytest.mark.parametrize("way", ["close", "drop", "break", "throw"])
def test_an_abandoned_sync_stream_is_settled_once(way, gemini, pool, connect) -> None:
    """Closed, dropped, broken out of or in a cycle: abandoned, and no key is penalized."""
    pool("A")
    stream = connect().models.generate_content_stream(**REQUEST)
    assert next(stream).text == "ok"
    if way == "close":
        stream.close()
    elif way == "break":
        for _ in stream:
            break
    elif way == "throw":
        with pytest.raises(RuntimeError, match="the program's own"):
            stream.throw(RuntimeError("the program's own"))
    del stream
    assert collected(pool) == [LeaseOutcome.ABANDONED]
    assert pool.ledger.under_way == {}
    assert not keyrot_middleware.status()["keys"]["A"]["in_cooldown"]


@pytest.mark.parametrize("way", ["aclose", "drop", "break", "throw"])
def test_an_abandoned_async_stream_is_settled_once(way, gemini, pool, connect) -> None:
    """The same asynchronously; the loop may end at once."""
    pool("A")
    client = connect()

    async def leave() -> None:
        stream = await client.aio.models.generate_content_stream(**REQUEST)
        assert (await anext(stream)).text == "ok"
        if way == "aclose":
            await stream.aclose()
        elif way == "break":
            async for _ in stream:
                break
        elif way == "throw":
            with pytest.raises(RuntimeError, match="the program's own"):
                await stream.athrow(RuntimeError("the program's own"))
        del stream

    run(client, leave)
    assert collected(pool) == [LeaseOutcome.ABANDONED]
    assert pool.ledger.under_way == {}


@pytest.mark.parametrize("way", ["drop", "aclose", "aclose twice", "keep", "unawaited"])
def test_an_async_stream_whose_first_chunk_was_not_read(way, gemini, pool, connect) -> None:
    """It was opened and never read: the lease is settled when it is closed or collected."""
    pool("A")
    client = connect()
    kept = []

    async def leave() -> None:
        stream = await client._api_client.async_request_streamed("post", path_of(), body(), None)
        if way.startswith("aclose"):
            await stream.aclose()
        if way == "aclose twice":
            await stream.aclose()
        if way == "unawaited":
            anext(stream).close()
        if way == "keep":
            kept.append(stream)

    run(client, leave)
    if kept:
        assert pool.ledger.under_way == {"A": 1}
        kept.clear()
    assert collected(pool) == [LeaseOutcome.ABANDONED]
    assert pool.ledger.under_way == {}


@pytest.mark.parametrize("when", ["before", "between"])
def test_an_async_stream_that_is_cancelled_is_settled_once(when, gemini, pool, connect) -> None:
    """Cancelled while it waits for its first chunk, or for a later one."""
    pool("A")
    client = connect()
    gemini.always("A", Reply.slow(60).delayed(60 if when == "before" else 0))
    got = []
    first = asyncio.Event()

    async def reading() -> None:
        async for chunk in await client.aio.models.generate_content_stream(**REQUEST):
            got.append(chunk.text)
            first.set()

    async def cancel() -> None:
        task = asyncio.create_task(reading())
        await (asyncio.to_thread(gemini.wait_for, 1, 60.0) if when == "before" else first.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.ledger.under_way == {}

    run(client, cancel)
    assert pool.ledger.kinds == [LeaseOutcome.ABANDONED]
    assert len(got) == (0 if when == "before" else 1)


def test_a_stream_that_is_collected_under_a_lock_waits_for_no_lock(pool, connect) -> None:
    """A collection may start within a reservation, in the thread that holds the lock."""
    state = pool("A").state
    streams = [connect().models.generate_content_stream(**REQUEST) for _ in range(2)]
    for stream in streams:
        next(stream)
    streams.append(streams)
    del stream, streams

    def collect() -> None:
        with state._lock:
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert collected(pool) == [LeaseOutcome.ABANDONED] * 2


@pytest.mark.parametrize(
    ("end", "read"), [("shutdown", True), ("close", False), ("open", True), ("open", False)]
)
def test_an_async_stream_in_a_cycle_is_settled_in_whatever_order_it_is_collected(
    read, end, pool, connect
) -> None:
    """In a loop that continues, was shut down, or was closed."""
    pool("A")
    client = connect()

    async def leave() -> object:
        stream = await client._api_client.async_request_streamed("post", path_of(), body(), None)
        if read:
            await anext(stream)
        cycle: list = [stream]
        cycle.append(cycle)
        if end == "open":
            del stream, cycle
            gc.collect()
            await asyncio.sleep(0.05)
            return None
        return cycle

    loop = asyncio.new_event_loop()
    cycle = loop.run_until_complete(leave())
    if end == "shutdown":
        loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(client.aio.aclose())
    loop.close()
    del cycle
    assert collected(pool) == [LeaseOutcome.ABANDONED]
