"""However a stream ends, its lease is settled once, and nobody is blamed who left it."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from four_modes import MODEL, STREAMS, ask, run

import keyrot_middleware
from keyrot_middleware.core.model import Kind
from keyrot_middleware.drive.holding import held
from keyrot_middleware.genai.inject import under_way
from keyrot_middleware.testing import Reply

ASKED = {"model": MODEL, "contents": "hello"}


def test_an_unstarted_stream_sends_and_borrows_nothing(gemini, pool, connect) -> None:
    """The SDK's sync stream is a generator: until it is asked, nothing happens."""
    pool("A")
    client = connect()
    stream = client.models.generate_content_stream(**ASKED)
    below = client._api_client.request_streamed("post", path_of(), body(), None)
    stream.close()
    del stream, below
    assert (gemini.count(), pool.ledger.lent) == (0, [])


def path_of() -> str:
    """Give the path of a stream, as the SDK calls its api client."""
    return f"models/{MODEL}:streamGenerateContent?alt=sse"


def body() -> dict:
    """Give a body, as the SDK calls its api client."""
    return {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}


@pytest.mark.parametrize("way", ["close", "drop", "break", "throw", "cycle"])
def test_a_sync_stream_that_is_left_is_settled_once(way, gemini, pool, connect) -> None:
    """Closed, dropped, broken out of or in a cycle: abandoned, and nobody is blamed."""
    pool("A")
    stream = connect().models.generate_content_stream(**ASKED)
    assert next(stream).text == "ok"
    if way == "close":
        stream.close()
    elif way == "break":
        for _ in stream:
            break
    elif way == "throw":
        with pytest.raises(RuntimeError, match="the program's own"):
            stream.throw(RuntimeError("the program's own"))
    elif way == "cycle":
        cycle: list = [stream]
        cycle.append(cycle)
        del cycle
    del stream
    gc.collect()
    assert pool.ledger.kinds == [Kind.ABANDONED]
    assert pool.ledger.under_way == {}
    assert not keyrot_middleware.status()["keys"]["A"]["in_cooldown"]


@pytest.fixture
def aged(pool, monkeypatch) -> None:
    """What exists before a lease is older, to the collector, than what is made after it.

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
    """The collector may come to the call's flow before it comes to who drives it."""
    stream = connect().models.generate_content_stream(**ASKED)
    assert next(stream).text == "ok"
    cycle: list = [stream]
    cycle.append(cycle)
    del stream, cycle
    gc.collect()
    assert pool.ledger.kinds == [Kind.ABANDONED]
    assert not held


@pytest.mark.parametrize("end", ["shutdown", "close", "open"])
@pytest.mark.parametrize("read", [True, False])
def test_an_async_stream_in_a_cycle_is_settled_in_whatever_order_it_is_collected(
    read, end, aged, pool, connect
) -> None:
    """The same, in a loop that goes on, was shut down, or was closed just so."""
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
    gc.collect()
    assert pool.ledger.kinds == [Kind.ABANDONED]
    assert not held


def test_an_async_call_in_a_cycle_is_settled_in_whatever_order_it_is_collected(
    aged, gemini, pool, connect
) -> None:
    """A coroutine that is driven by hand, and dropped while it waits for its answer."""
    client = connect()
    gemini.always("A", Reply.slow(5))

    async def leave() -> None:
        call = client.aio.models.generate_content(**ASKED)
        steps = call.__await__()
        while not gemini.count():
            next(steps)
            await asyncio.sleep(0.01)
        cycle: list = [call, steps]
        cycle.append(cycle)
        del call, steps, cycle
        gc.collect()

    asyncio.run(leave())
    assert pool.ledger.kinds == [Kind.ABANDONED]
    assert not held


def test_a_stream_closed_twice_and_read_after_its_end(pool, connect) -> None:
    """Still one settlement, and it stays ended."""
    pool("A")
    stream = connect().models.generate_content_stream(**ASKED)
    assert "".join(chunk.text or "" for chunk in stream) == "ok from A"
    assert list(stream) == []
    stream.close()
    stream.close()
    assert pool.ledger.kinds == [Kind.SUCCESS]


@pytest.mark.parametrize("way", ["aclose", "drop", "break", "throw"])
def test_an_async_stream_that_is_left_is_settled_once(way, gemini, pool, connect) -> None:
    """The same asynchronously; the loop may end at once."""
    pool("A")
    client = connect()

    async def leave() -> None:
        stream = await client.aio.models.generate_content_stream(**ASKED)
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
    gc.collect()
    assert pool.ledger.kinds == [Kind.ABANDONED]
    assert pool.ledger.under_way == {}


@pytest.mark.parametrize("way", ["drop", "aclose", "aclose twice", "keep", "unawaited"])
def test_an_async_stream_whose_first_chunk_nobody_took(way, gemini, pool, connect) -> None:
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
    gc.collect()
    assert pool.ledger.kinds == [Kind.ABANDONED]
    assert pool.ledger.under_way == {}


def test_an_async_stream_of_the_sdk_that_was_never_read(gemini, pool, connect) -> None:
    """Whether the SDK has sent by then or not: what was lent is settled."""
    pool("A")
    client = connect()

    async def leave() -> None:
        await client.aio.models.generate_content_stream(**ASKED)

    run(client, leave)
    gc.collect()
    assert len(pool.ledger.outcomes) == len(pool.ledger.lent) == gemini.count()


@pytest.mark.parametrize("when", ["before", "between"])
def test_an_async_stream_that_is_cancelled_is_settled_once(when, gemini, pool, connect) -> None:
    """Cancelled while it waits for its first chunk, or for a later one."""
    pool("A")
    client = connect()
    gemini.always("A", Reply.slow(0.1))
    got = []
    first = asyncio.Event()

    async def reading() -> None:
        async for chunk in await client.aio.models.generate_content_stream(**ASKED):
            got.append(chunk.text)
            first.set()

    async def cancel() -> None:
        task = asyncio.create_task(reading())
        await (asyncio.to_thread(gemini.wait_for, 1) if when == "before" else first.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.ledger.under_way == {}

    run(client, cancel)
    assert pool.ledger.kinds == [Kind.ABANDONED]
    assert len(got) == (0 if when == "before" else 1)


def test_a_deadline_around_an_async_stream(gemini, pool, connect) -> None:
    """asyncio.timeout() gives TimeoutError, and settles the lease."""
    pool("A")
    client = connect()
    gemini.always("A", Reply.slow(0.2))

    async def reading() -> None:
        async with asyncio.timeout(None) as deadline:
            async for _ in await client.aio.models.generate_content_stream(**ASKED):
                deadline.reschedule(asyncio.get_running_loop().time())

    with pytest.raises(TimeoutError):
        run(client, reading)
    assert pool.ledger.kinds == [Kind.ABANDONED]


def test_many_streams_open_at_once(gemini, pool, connect) -> None:
    """Read in turn, chunk by chunk, each is whole and each lease is settled once."""
    pool("A", "B", "C")
    client = connect()
    streams = [client.models.generate_content_stream(**ASKED) for _ in range(12)]
    texts = [""] * 12
    for _ in range(3):
        for number, stream in enumerate(streams):
            texts[number] += next(stream).text
    assert all(text in ("ok from A", "ok from B", "ok from C") for text in texts)
    assert sum(pool.ledger.under_way.values()) == 12
    assert [list(stream) for stream in streams] == [[]] * 12
    assert pool.ledger.kinds == [Kind.SUCCESS] * 12


def test_many_async_streams_open_at_once(gemini, pool, connect) -> None:
    """The same in one loop, with tasks that leave theirs early."""
    pool("A", "B", "C")
    client = connect()

    async def one(number: int) -> str:
        text = ""
        async for chunk in await client.aio.models.generate_content_stream(**ASKED):
            text += chunk.text or ""
            if number % 3 == 0:
                break
        return text

    async def all_of_them() -> list:
        return await asyncio.gather(*[one(number) for number in range(24)])

    texts = run(client, all_of_them)
    assert [len(text) for text in texts] == [2 if n % 3 == 0 else 9 for n in range(24)]
    gc.collect()
    assert sorted(pool.ledger.kinds) == [Kind.ABANDONED] * 8 + [Kind.SUCCESS] * 16


def test_a_stream_read_in_another_thread(gemini, pool, connect) -> None:
    """Web servers open a stream in one thread and read it in others."""
    pool("A")
    stream = connect().models.generate_content_stream(**ASKED)
    texts = [next(stream).text]
    for _ in range(2):
        with ThreadPoolExecutor(1) as thread:
            texts.append(thread.submit(next, stream).result().text)
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join()
    assert "".join(texts) == "ok from A"
    assert pool.ledger.kinds in ([Kind.ABANDONED], [Kind.SUCCESS])


def test_nothing_of_ours_stays_in_the_context(gemini, pool, connect) -> None:
    """While a stream is open the program's own code sees no key of a send under way."""
    pool("A")
    client = connect()
    stream = client.models.generate_content_stream(**ASKED)
    next(stream)
    assert under_way.get() is None
    assert ask("sync", client) == "ok from A"
    stream.close()

    async def look() -> None:
        opened = await client.aio.models.generate_content_stream(**ASKED)
        await anext(opened)
        assert under_way.get() is None
        await opened.aclose()

    run(client, look)


@pytest.mark.parametrize("mode", STREAMS)
def test_uninstall_while_a_stream_is_open(mode, gemini, pool, connect) -> None:
    """Calls under way are carried to their end."""
    pool("A")
    client = connect()
    texts = []

    async def read_async() -> None:
        async for chunk in await client.aio.models.generate_content_stream(**ASKED):
            texts.append(chunk.text)
            keyrot_middleware.uninstall()

    if mode == "async_stream":
        run(client, read_async)
    else:
        for chunk in client.models.generate_content_stream(**ASKED):
            texts.append(chunk.text)
            keyrot_middleware.uninstall()
    assert "".join(texts) == "ok from A"
    assert pool.ledger.kinds == [Kind.SUCCESS]
