"""A lease is settled exactly once, whenever and however a real task or thread is stopped."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.pool import INFO, STREAMED, Rig, key
from support.replies import Chunks, minute

from keyrot_middleware.core.model import Lease, LeaseOutcome, Limits
from keyrot_middleware.runtime.runner import AsyncRelay, run


@pytest.fixture
def rig() -> Rig:
    """Make a pool of one key."""
    return Rig(key("a", Limits(tpm=1_000)), max_wait_s=60.0)


def _raised(exhausted: BaseException) -> BaseException:
    return exhausted


def kinds(rig: Rig) -> list[LeaseOutcome]:
    """Return how the leases ended; check that each ended once."""
    rig.state.check()
    return [outcome.kind for _, outcome in rig.state.settled]


def tokens(rig: Rig) -> int:
    """Return the tokens that are counted in this minute."""
    return rig.state.snapshot(rig.selector.keys.values())["a"].used[0].tokens_minute


async def stopped(task: asyncio.Task[Any], times: int = 1) -> None:
    """Cancel *task* so many times, and let it end."""
    for _ in range(5):
        await asyncio.sleep(0)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task


class Hanging(Chunks):
    """A stream without a second chunk; closing it takes a while too."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield one chunk."""
        self.given += 1
        yield 1
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        """Take some iterations of the loop."""
        for _ in range(3):
            await asyncio.sleep(0)
        self.closed += 1


async def open_stream(rig: Rig, chunks: Chunks) -> AsyncRelay:
    """Begin a streamed call."""
    rig.will("a", chunks)
    relay: AsyncRelay = await rig.aopen()
    return relay


def test_a_stream_under_another_loop_than_asyncios(rig: Rig) -> None:
    """A stream opened without asyncio is returned, and settled when it is dropped unread."""
    opening = open_stream(rig, Chunks(1, 2))
    with pytest.raises(StopIteration) as opened:
        opening.send(None)
    assert isinstance(opened.value.value, AsyncRelay)
    del opened
    gc.collect()
    assert kinds(rig) == [LeaseOutcome.ABANDONED]


async def test_a_task_cancelled_while_it_sends(rig: Rig) -> None:
    """The request may have counted: abandoned, its reservation kept, no key penalized."""

    async def hang(_: Lease) -> Any:
        await asyncio.Event().wait()

    rig.asend = hang  # type: ignore[method-assign]
    await stopped(asyncio.create_task(rig.acall()))
    assert kinds(rig) == [LeaseOutcome.ABANDONED]
    assert tokens(rig) == INFO.tokens


async def test_a_task_cancelled_while_it_waits(rig: Rig) -> None:
    """While a call sleeps it holds no lease."""

    async def hang(_: float) -> None:
        await asyncio.Event().wait()

    rig.asleep = hang  # type: ignore[method-assign]
    rig.will("a", minute())
    await stopped(asyncio.create_task(rig.acall()))
    assert kinds(rig) == [LeaseOutcome.FAILURE]


@pytest.mark.parametrize("times", [1, 2, 4])
async def test_a_task_cancelled_while_it_reads(rig: Rig, times: int) -> None:
    """However often it is cancelled, the stream is abandoned with its usage so far."""
    relay = await open_stream(rig, Hanging())

    async def read() -> None:
        async for _ in relay:
            pass

    await stopped(asyncio.create_task(read()), times)
    assert kinds(rig) == [LeaseOutcome.ABANDONED]
    assert tokens(rig) == 4


async def test_a_stream_closed_half_way(rig: Rig) -> None:
    """`aclose()` after a chunk closes the SDK's stream and records its usage."""
    chunks = Chunks(1, 2, 3)
    relay = await open_stream(rig, chunks)
    assert await anext(relay) == 1
    await relay.aclose()
    await relay.aclose()
    assert kinds(rig) == [LeaseOutcome.ABANDONED]
    assert (chunks.closed, tokens(rig)) == (1, 4)
    with pytest.raises(StopAsyncIteration):
        await anext(relay)


async def test_a_stream_closed_before_its_first_chunk(rig: Rig) -> None:
    """`aclose()` on an unread stream closes the SDK's stream as well."""
    chunks = Chunks(1, 2, 3)
    chunks.complaint = ConnectionError("already closed")
    relay = await open_stream(rig, chunks)
    await relay.aclose()
    await relay.aclose()
    assert kinds(rig) == [LeaseOutcome.ABANDONED]
    assert chunks.closed == 1


async def test_a_stream_dropped_before_its_first_chunk(rig: Rig) -> None:
    """An unread stream is settled when it is collected."""
    relay = await open_stream(rig, Chunks(1, 2, 3))
    del relay
    gc.collect()
    assert kinds(rig) == [LeaseOutcome.ABANDONED]


async def test_a_stream_dropped_half_way(rig: Rig) -> None:
    """A stream dropped after a chunk is closed by the loop and settled."""
    relay = await open_stream(rig, Chunks(1, 2, 3))
    async for _ in relay:
        break
    del relay
    gc.collect()
    for _ in range(5):
        await asyncio.sleep(0)
    assert kinds(rig) == [LeaseOutcome.ABANDONED]


async def test_a_stream_read_to_its_end_is_settled_once(rig: Rig) -> None:
    """Closing or dropping it afterwards changes nothing."""
    relay = await open_stream(rig, Chunks(1, 2))
    assert [chunk async for chunk in aiter(relay)] == [1, 2]
    await relay.aclose()
    del relay
    gc.collect()
    assert kinds(rig) == [LeaseOutcome.SUCCESS]


def test_a_sync_stream_abandoned_half_way(rig: Rig) -> None:
    """A stream that is closed or dropped settles with its usage so far."""
    for leave in ("close", "drop"):
        chunks = Chunks(1, 2, 3)
        rig.will("a", chunks)
        stream = run(rig.pool, rig.make(STREAMED), rig.send, _raised)
        assert next(stream) == 1
        if leave == "close":
            stream.close()
        del stream
        gc.collect()
        assert chunks.closed == (leave == "close")
    assert kinds(rig) == [LeaseOutcome.ABANDONED] * 2
    assert tokens(rig) == 2 * 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError])
def test_any_exception_of_a_send_is_raised_and_settled(
    rig: Rig, error: type[BaseException]
) -> None:
    """Only an SDK failure is a value; anything else is raised to the caller unchanged."""

    def send(_: Lease) -> Any:
        raise error

    rig.send = send  # type: ignore[method-assign]
    with pytest.raises(error):
        rig.call()
    assert kinds(rig) == [LeaseOutcome.ABANDONED]


async def test_a_coroutine_closed_from_outside_is_settled(rig: Rig) -> None:
    """A loop that is torn down closes its coroutines: GeneratorExit, with no time to wait."""

    async def hang(_: Lease) -> Any:
        await asyncio.Event().wait()

    rig.asend = hang  # type: ignore[method-assign]
    coroutine = rig.acall()
    coroutine.send(None)
    coroutine.close()
    assert kinds(rig) == [LeaseOutcome.ABANDONED]


class Distant:
    """A state whose awaited methods take a while, like one over a network."""

    is_local = False

    def __init__(self, rig: Rig) -> None:
        self.near, self.wait = rig.state, asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.near, name)

    async def do(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Settle when the test allows it; else answer after an iteration of the loop."""
        if method == "settle":
            await self.wait.wait()
        await asyncio.sleep(0)
        return getattr(self.near, method)(*args, **kwargs)


async def test_a_task_cancelled_while_it_settles_over_a_network(rig: Rig) -> None:
    """The settle is finished first, once; then the task is cancelled."""
    distant = Distant(rig)
    rig.pool.state = distant  # type: ignore[assignment]
    task = asyncio.create_task(rig.acall())
    for _ in range(50):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    distant.wait.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert kinds(rig) == [LeaseOutcome.SUCCESS]


async def test_a_call_over_a_network_has_the_same_result(rig: Rig) -> None:
    """Awaited methods of a remote state are awaited."""
    distant = Distant(rig)
    rig.pool.state = distant  # type: ignore[assignment]
    distant.wait.set()
    rig.will("a", minute("5s"))
    assert await rig.acall() == "answer"
    assert kinds(rig) == [LeaseOutcome.FAILURE, LeaseOutcome.SUCCESS]
    with pytest.raises(Exception, match="no key is available"):
        await rig.acall(INFO._replace(bound_to_owner=True, resources=("files/a",)))


async def test_a_stream_that_breaks_is_a_failure_of_its_key(rig: Rig) -> None:
    """The SDK's error is raised by the async stream too, with the tokens so far recorded."""
    reply = minute()
    relay = await open_stream(rig, Chunks(1, failed=reply))
    assert await anext(relay) == 1
    with pytest.raises(Exception, match="quota") as raised:
        await anext(relay)
    assert raised.value is reply.error
    assert kinds(rig) == [LeaseOutcome.FAILURE]
    assert tokens(rig) == 4


def test_all_opened_streams_are_closed(rig: Rig) -> None:
    """A stream is closed at its end, and after a failure."""
    whole, broken = Chunks(1), Chunks(1, failed=minute())
    rig.will("a", whole, broken)
    assert rig.call(STREAMED) == [1]
    rig.failing(STREAMED)
    assert (whole.closed, broken.closed) == (1, 1)
