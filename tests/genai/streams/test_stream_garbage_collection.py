"""Streams and calls that are collected in a cycle: settled once, in any order of finalization."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from support.streams import REQUEST, body, collected, path_of

from keyrot_middleware.core.model import LeaseOutcome


@pytest.fixture
def aged(pool, monkeypatch) -> None:
    """Make what exists before a lease older, to the collector, than what is made after it.

    A collection finalises the youngest and the oldest before those in between, so the flow of a
    stream in a cycle comes before its driver.
    """
    pool("A")
    acquire = pool.ledger._acquire

    def promoted(*args: object, **kwargs: object) -> object:
        gc.collect(0)
        return acquire(*args, **kwargs)

    monkeypatch.setattr(pool.ledger, "_acquire", promoted)


def test_a_sync_stream_in_a_cycle_is_settled_in_whatever_order_it_is_collected(
    aged, pool, connect
) -> None:
    """The collector may finalise the call's flow before its driver."""
    stream = connect().models.generate_content_stream(**REQUEST)
    assert next(stream).text == "ok"
    cycle: list = [stream]
    cycle.append(cycle)
    del stream, cycle
    assert collected(pool) == [LeaseOutcome.ABANDONED]


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
    read, end, aged, pool, connect
) -> None:
    """The same, in a loop that continues, was shut down, or was closed."""
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
