"""However a stream ends, its lease is settled once, and an abandoned one penalizes no key."""

import asyncio
import gc
import threading

import pytest
from support.modes import STREAMS, run
from support.streams import REQUEST, collected

import keyrot_middleware
from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply


@pytest.mark.parametrize("when", ["before", "between"])
def test_an_async_stream_that_is_cancelled_is_settled_once(when, gemini, pool, connect) -> None:
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


@pytest.mark.parametrize("mode", STREAMS)
def test_uninstall_while_a_stream_is_open(mode, gemini, pool, connect) -> None:
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
