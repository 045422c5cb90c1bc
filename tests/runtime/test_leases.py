"""A lease is settled exactly once, whenever and however a call, a stream or a session ends."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from support.pool import INFO, STREAMED, Rig, key
from support.replies import Chunks, ChunkStream, invalid, minute
from support.servers import wait_for
from support.states import CtrlC, degrading

from keyrot_middleware.core.model import Lease, LeaseOutcome, Limits, Outcome, Scope, Verdict

ABANDONED, FAILURE, SUCCESS = LeaseOutcome.ABANDONED, LeaseOutcome.FAILURE, LeaseOutcome.SUCCESS


@pytest.fixture
def rig() -> Rig:
    return Rig(key("a", Limits(tpm=1_000)), max_wait_s=60.0)


def kinds(rig: Rig) -> list[LeaseOutcome]:
    """Return how the leases ended; check that each ended once."""
    rig.check()
    return [outcome.kind for _, outcome in rig.ledger.outcomes]


def tokens(rig: Rig) -> int:
    return rig.state.snapshot(rig.selector.keys.values())["a"].used[0].tokens_minute


async def ticks(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def hang(_: Any) -> Any:
    await asyncio.Event().wait()


async def stopped(task: asyncio.Task[Any], times: int = 1) -> None:
    await ticks()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task


async def open_stream(rig: Rig, chunks: Chunks) -> ChunkStream:
    rig.will("a", chunks)
    relay: ChunkStream = await rig.aopen()
    return relay


# What a call returns ---------------------------------------------------------------------------


# Tasks that are stopped ------------------------------------------------------------------------


async def test_a_task_cancelled_while_it_sends(rig: Rig) -> None:
    """The request may have counted: abandoned, its reservation kept, no key penalized."""
    rig.asend = hang  # type: ignore[method-assign]
    await stopped(asyncio.create_task(rig.acall()))
    coroutine = rig.acall()
    coroutine.send(None)
    coroutine.close()  # as a loop that is torn down does
    assert kinds(rig) == [ABANDONED] * 2
    assert tokens(rig) == 2 * INFO.tokens


class Hanging(Chunks):
    """A stream without a second chunk; closing it takes a while too."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        self.given += 1
        yield 1
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        await ticks(3)
        self.closed += 1


@pytest.mark.parametrize("times", [1, 2, 4])
async def test_a_task_cancelled_while_it_reads(rig: Rig, times: int) -> None:
    """However often it is cancelled, the stream is abandoned with its usage so far."""
    relay = await open_stream(rig, Hanging())

    async def read() -> None:
        async for _ in relay:
            pass

    await stopped(asyncio.create_task(read()), times)
    assert kinds(rig) == [ABANDONED]
    assert tokens(rig) == 4


class Distant:
    """A state whose awaited methods take a while, like one over a network."""

    is_local = False

    def __init__(self, rig: Rig) -> None:
        self.near, self.wait = rig.state, asyncio.Event()
        rig.pool.state = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.near, name)

    def settles_without_io(self, *_: Any) -> bool:
        """Return False: it is distant."""
        return False

    async def do(self, work: Any) -> Any:
        """Settle when the test allows it; else answer after an iteration of the loop."""
        if work.func == self.near.settle:
            await self.wait.wait()
        await asyncio.sleep(0)
        return work()


async def test_a_task_cancelled_while_it_settles_over_a_network(rig: Rig) -> None:
    """The settle is finished first, once; then the task is cancelled."""
    distant = Distant(rig)
    task = asyncio.create_task(rig.acall())
    await ticks(50)
    task.cancel()
    await asyncio.sleep(0)
    distant.wait.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    rig.will("a", minute("5s"))
    assert await rig.acall() == "answer"
    assert kinds(rig) == [SUCCESS, FAILURE, SUCCESS]


ENDS = ("done", "failed", "rejected", "broken", "closed", "dropped", "cancelled", "undone", "late")


@pytest.mark.parametrize("end", ENDS)
async def test_no_loop_waits_for_a_distant_state(end: str) -> None:
    """However a call ends, threads make the round trips, and what it held is free again."""
    rig = Rig(key("a", Limits(max_concurrency=1)), key("b"), strategy="fill", max_wait_s=0.0)
    rig.pool.state, shared = degrading(rig.clock.time, inner=rig.state)
    if end in ("failed", "rejected"):
        rig.will("a", minute() if end == "failed" else invalid())
    elif end in ("broken", "closed", "dropped", "late"):
        relay = await open_stream(rig, Chunks(1, 2, failed=minute() if end == "broken" else None))
        assert await anext(relay) == 1
    if end in ("done", "failed", "rejected"):
        await rig.acall()
        assert rig.pool.home_id_for() == ("b" if end == "rejected" else "a")
    elif end == "broken":
        with pytest.raises(Exception, match="current quota"):
            [one async for one in relay]
    elif end == "closed":
        await relay.aclose()
    elif end == "dropped":
        del relay
        gc.collect()
    elif end == "cancelled":
        sending = asyncio.Event()

        async def sends(lease: Lease) -> None:
            sending.set()
            await hang(lease)

        rig.asend, send = sends, rig.asend  # type: ignore[method-assign]
        task = asyncio.create_task(rig.acall())
        await sending.wait()
        await stopped(task)
        rig.asend = send  # type: ignore[method-assign]
    elif end == "undone":
        shared.gate.clear()
        task = asyncio.create_task(rig.acall())
        await asyncio.to_thread(wait_for, lambda: shared.calls)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        shared.gate.set()
        await asyncio.to_thread(wait_for, lambda: "settle" in shared.calls)
    else:  # the pool was closed meanwhile, as uninstall() does
        rig.pool.state.close()
        assert await anext(relay) == 2
        await relay.aclose()
    assert await rig.acall() == "answer"
    used = shared.inner.snapshot(rig.selector.keys.values())["a"].used
    asked = {"failed": 1, "rejected": 1, "broken": 1, "undone": 1}
    assert sum(one.requests_minute for one in used) == asked.get(end, 2)
    assert threading.get_ident() not in shared.threads


# Streams that are left -------------------------------------------------------------------------


@pytest.mark.parametrize("read", [0, 1, 3])
async def test_a_stream_that_is_dropped_is_settled(rig: Rig, read: int) -> None:
    """Unread, half way, or at its end, where dropping it changes nothing."""
    relay = await open_stream(rig, Chunks(1, 2, 3))
    for _ in range(read):
        await anext(relay)
    if read == 3:
        assert [chunk async for chunk in aiter(relay)] == []
        await relay.aclose()
    del relay
    gc.collect()
    await ticks()
    assert kinds(rig) == [SUCCESS if read == 3 else ABANDONED]


@pytest.mark.parametrize("end", ["close", "drop", "drop half way", "interrupt"])
def test_a_sync_stream_that_is_left_is_settled_once(rig: Rig, end: str) -> None:
    """Closed, dropped, or left by Ctrl-C, which is raised as it is; with the usage so far."""

    class Interrupted(Chunks):
        def __iter__(self) -> Any:
            self.given += 1
            yield 1
            raise KeyboardInterrupt

    chunks = Interrupted() if end == "interrupt" else Chunks(1, 2, 3)
    rig.will("a", chunks)
    relay = rig.open()
    if end != "drop":
        assert next(relay) == 1
    if end == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            next(relay)
    elif end == "close":
        relay.close()
        assert chunks.closed == 1
    if not end.startswith("drop"):
        assert list(relay) == []
    del relay
    gc.collect()
    assert kinds(rig) == [ABANDONED]
    assert end == "drop" or tokens(rig) == 4


def test_a_stream_that_is_being_read_cannot_be_read_beside(rig: Rig) -> None:
    """A second reader gets an error, as with a generator, and the first one goes on."""

    class Nosy(Chunks):
        def __iter__(self) -> Any:
            with pytest.raises(ValueError, match="is being read"):
                relay.__next__()
            yield 1

    rig.will("a", Nosy())
    relay = rig.open()
    assert list(relay) == [1]
    assert kinds(rig) == [SUCCESS]


def test_a_stream_that_is_closed_while_it_is_read_is_left_by_its_reader(rig: Rig) -> None:
    """Its connection goes at once, the reader gets the end, and the lease is abandoned once."""

    class Closing(Chunks):
        def __iter__(self) -> Any:
            yield 1
            relay.close()
            meanwhile.append((self.closed, len(rig.pool.abandoned)))
            yield 2

    meanwhile: list[tuple[int, int]] = []
    rig.will("a", Closing())
    relay = rig.open()
    assert (list(relay), meanwhile) == ([1, 2], [(1, 0)])
    assert kinds(rig) == [ABANDONED]


def test_a_stream_that_breaks_since_it_was_closed_is_no_failure(rig: Rig) -> None:
    """The reader gets the error of its connection, which another thread closed; it is abandoned."""

    class Closing(Chunks):
        def __iter__(self) -> Any:
            yield 1
            relay.close()
            yield from super().__iter__()

    broken = minute()
    rig.will("a", Closing(failed=broken))
    relay = rig.open()
    assert next(relay) == 1
    with pytest.raises(type(broken.error)):
        next(relay)
    assert kinds(rig) == [ABANDONED]


# Exceptions, and Ctrl-C at any moment ----------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError])
def test_any_exception_of_a_send_is_raised_and_settled(rig, error) -> None:
    """Only an SDK failure is a value; anything else is raised to the caller unchanged."""

    def send(_: Lease) -> Any:
        raise error

    rig.send = send  # type: ignore[method-assign]
    with pytest.raises(error):
        rig.call()
    assert kinds(rig) == [ABANDONED]


def cooled() -> Rig:
    """Make a pool of one key whose cooldown has just ended, with `max_concurrency` 1."""
    one = key("a", Limits(max_concurrency=1))
    rig = Rig(one, max_wait_s=0.0)
    lease = Lease("a", one.project, one.billing_account, "", "", 0, 0, at=0.0, record=one.record)
    verdict = Verdict("capacity", 503, Scope.KEY, rig.clock.time() - 1)
    rig.state.settle(lease, Outcome(FAILURE, verdict))
    return rig


@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("info", [INFO, STREAMED], ids=["whole", "stream"])
def test_ctrl_c_at_any_moment_loses_no_key(info: Any) -> None:
    """The key is available again, at once or within a minute."""
    number, was_raised = 0, True
    while was_raised:
        number += 1
        rig, ctrl_c = cooled(), CtrlC(number)
        if info is STREAMED:
            rig.will("a", Chunks(1, 2, 3))
        with suppress(KeyboardInterrupt), ctrl_c:
            assert rig.call(info) in ("answer", [1, 2, 3])
        was_raised = ctrl_c.left == 0
        rig.ledger.clear()
        rig.script.clear()
        rig.clock.advance(60)
        with suppress(KeyboardInterrupt):
            assert rig.call() == "answer", number
    assert number > 50
