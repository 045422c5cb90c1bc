"""Calls that wait for one another, in threads and in tasks, by the machine's clock."""

import asyncio
import threading
import time
from typing import Any

import pytest
from support.pool import INFO, LeaseLog, Rig, key
from support.replies import OK, lost, minute
from support.servers import wait_for

from keyrot_middleware.core import flow, waiting
from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import Block, CallInfo, Lease, LeaseOutcome, Limits, Outcome
from keyrot_middleware.runtime.pool import SystemClock
from keyrot_middleware.state import MemoryState

SUCCESS = Outcome(LeaseOutcome.SUCCESS)


class Running(SystemClock):
    def __init__(self) -> None:
        self._offset = 1_767_270_630.0 - time.monotonic()

    def time(self) -> float:  # type: ignore[override]  # a function in its class
        return self._offset + time.monotonic()


def real(*keys: Any, **policy: Any) -> Rig:
    rig, clock = Rig(*keys, **policy), Running()
    rig.state = rig.pool.state = MemoryState(rig.policy, clock.time)
    rig.ledger = LeaseLog(rig.state, rig.pool)
    rig.pool.clock = clock
    return rig


class Callers:
    """Calls in flight, begun one after the other, and the order in which they were served."""

    def __init__(self, rig: Rig, way: str) -> None:
        self.rig, self.way = rig, way
        self.served: list[str] = []
        self.failed: list[str] = []
        self.threads: list[threading.Thread] = []

    def begin(self, name: str, info: CallInfo = INFO, *, waits: bool = True) -> None:
        before = self.waiting
        self.threads.append(threading.Thread(target=self._call, args=(name, info)))
        self.threads[-1].start()
        if waits:  # or it has ended meanwhile, on a busy machine
            wait_for(lambda: self.waiting > before or name in self.served + self.failed)

    @property
    def waiting(self) -> int:
        return len(self.rig.pool.waiting_lines.tickets)

    def end(self) -> None:
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def _call(self, name: str, info: CallInfo) -> None:
        try:
            _ = self.rig.call(info) if self.way == "sync" else asyncio.run(self.rig.acall(info))
        except Exhausted:
            self.failed.append(name)
        else:
            self.served.append(name)


@pytest.fixture(params=["sync", "async"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give a way to call; a busy machine may let the first in a queue sleep for a while."""
    late(monkeypatch, 60.0)
    return str(request.param)


def late(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for module in (flow, waiting):
        monkeypatch.setattr(module, "LATE_S", seconds)


def held(rig: Rig, info: CallInfo = INFO) -> Lease:
    """Lease the pool's first key, like a request in flight."""
    (first, *_) = rig.selector.keys.values()
    lease = rig.state.acquire(info, ((0, first),), strategy="fill")
    assert isinstance(lease, Lease)
    return lease


def test_a_call_that_ends_wakes_the_first_waiting_call(way: str) -> None:
    rig = real(key("a", Limits(max_concurrency=1)), max_wait_s=30.0)
    callers, release = Callers(rig, way), threading.Event()

    def hold() -> Any:
        assert release.wait(30)
        return OK

    rig.will("a", hold)
    callers.begin("holder", waits=False)
    wait_for(lambda: rig.sent == ["a"])
    for number in range(4):
        callers.begin(f"{number}", INFO._replace(tokens=number))
    release.set()
    callers.end()
    assert [lease.tokens for lease in rig.ledger.leases] == [INFO.tokens, 0, 1, 2, 3]


def test_an_unused_reservation_serves_the_first_waiting_call(way: str) -> None:
    """A minute is full until a request turns out not to have been sent."""
    rig = real(key("a", Limits(rpm=1)), max_wait_s=65.0, max_retries=0)
    callers, release = Callers(rig, way), threading.Event()

    def unsent() -> Any:
        assert release.wait(30)
        return lost("connect")

    rig.will("a", unsent)
    thread = threading.Thread(target=rig.failing)
    thread.start()
    wait_for(lambda: rig.sent == ["a"])
    callers.begin("p")
    release.set()
    thread.join(30)
    callers.end()
    assert callers.served == ["p"]
    assert rig.pool.clock.time() < 1_767_270_660.0, "the minute is not over"


def test_a_budget_ends_in_the_queue_too(way: str) -> None:
    """A call in the queue fails when its own budget is over."""
    rig = real(key("a", Limits(max_concurrency=1)), max_wait_s=0.4)
    lease, callers = held(rig), Callers(rig, way)
    callers.begin("p")
    callers.begin("q", waits=False)
    callers.end()
    rig.state.settle(lease, SUCCESS)
    assert sorted(callers.failed) == ["p", "q"]
    assert callers.waiting == 0


def test_those_behind_let_the_front_go_first(way, monkeypatch) -> None:
    """A call that wakes up by itself does not look before the front is late."""
    late(monkeypatch, 0.1)
    rig = real(key("a", Limits(max_concurrency=1)), max_wait_s=30.0)
    lease, lines, now = held(rig), rig.pool.waiting_lines, rig.pool.clock.time()
    full = {"b": Block("rpm", now + 1.0, waitable=True)}
    lines.join(waiting.Ticket(INFO), full, now + 1.0, lines.version)
    callers = Callers(rig, way)
    callers.begin("p")
    rig.state.settle(lease, SUCCESS)
    callers.end()
    assert callers.served == ["p"]
    assert rig.pool.clock.time() >= now + 1.1


def test_a_reset_key_and_a_new_one_serve_waiting_calls(way: str) -> None:
    """Also those that it has failed, at once; one that is taken out meanwhile is used no more."""
    rig = real(key("a"), key("b"), max_wait_s=65.0)
    pool = rig.pool
    pool.configured = [key("a")]
    pool.on_secrets_changed(frozenset())
    rig.will("a", minute("50s"), minute("50s"))
    callers = Callers(rig, way)
    callers.begin("p")
    pool.reset("a")
    wait_for(lambda: rig.sent == ["a", "a"] and callers.waiting)
    callers.begin("q")
    pool.configured = [key("b")]
    pool.on_secrets_changed(frozenset())
    callers.end()
    assert sorted(callers.served) == ["p", "q"]
    assert rig.sent == ["a", "a", "b", "b"]


@pytest.mark.parametrize("end", ["close", "cancel"])
async def test_a_waiting_call_that_ends_leaves_the_queue(end: str) -> None:
    """Its coroutine is closed, as the garbage collector does, or its task is cancelled."""
    rig = real(key("a", Limits(max_concurrency=1)))
    held(rig)
    call = rig.acall()
    if end == "close":
        call.send(None)
        assert rig.pool.waiting_lines.tickets
        call.close()
    else:
        task = asyncio.create_task(call)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert rig.pool.waiting_lines.tickets == {}
