"""A stream that is closed early releases its key at once, and one that is lost is collected."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import replace

import pytest
from google import genai
from support.modes import AIOHTTP, run
from support.streams import REQUEST

from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply

ONE_AT_A_TIME = {"key_id": "A", "max_concurrency": 1}


@pytest.mark.parametrize(("read", "aiohttp"), [("nothing", True), ("all", False)])
def test_the_next_call_gets_the_key_of_a_stream_that_was_closed(
    read, aiohttp, pool, connect, no_aiohttp
) -> None:
    """`await stream.aclose()` releases the one slot of a key, twenty times."""
    if not aiohttp:
        no_aiohttp()
    pool(ONE_AT_A_TIME, max_wait_s=0)
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


@pytest.mark.skipif(not AIOHTTP, reason="anyio keeps the tasks of a closed loop (make test)")
@pytest.mark.parametrize("chunks", [0, 1])
def test_a_stream_in_flight_on_a_closed_loop_is_collected(
    chunks, gemini, pool, connect, monkeypatch
) -> None:
    """The loop is closed without a cancel: stream and task are garbage, and the lease ends."""
    # aiohttp and the SDK complain about the closed loop while they are collected.
    complaints: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda found: complaints.append(found.object))
    pool(ONE_AT_A_TIME, max_wait_s=0)
    gemini.script("A", replace(Reply.SLOW, gap_s=60, delay_s=0) if chunks else Reply.slow(60))
    client = genai.Client(http_options=gemini.http_options)
    got = []

    async def read(client: genai.Client) -> None:
        async for chunk in await client.aio.models.generate_content_stream(**REQUEST):
            got.append(chunk.text)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it complains of a task that is still pending
    task = loop.create_task(read(client))
    while not gemini.count() or len(got) < chunks:
        loop.run_until_complete(asyncio.sleep(0.01))
    assert pool.ledger.under_way == {"A": 1}
    loop.close()
    alive = weakref.ref(task)
    del task, loop, client  # the SDK keeps a session for each loop, closed ones too
    gc.collect()
    assert alive() is None
    assert [found for found in complaints if "keyrot" in repr(found)] == []
    assert connect().models.generate_content(**REQUEST).text == "ok from A"
    assert pool.ledger.kinds == [LeaseOutcome.ABANDONED, LeaseOutcome.SUCCESS]
