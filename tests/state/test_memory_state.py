"""Properties of the memory state alone: sweeping, bounded tables, a lock that survives a fork."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from support.faulty_state import warnings_of
from support.pool import INFO, key
from support.sync_async import OK, failed, used

from keyrot_middleware import forks
from keyrot_middleware.core.model import Candidate, Lease, Limits, RetryPolicy, Scope
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.state import MemoryState, memory, open_state
from keyrot_middleware.testing import FakeClock


@pytest.fixture
def state(clock: FakeClock) -> MemoryState:
    """Open one."""
    return MemoryState(RetryPolicy(), clock.time)


def acquire_lease(state: MemoryState, one: Candidate, **info: Any) -> Lease:
    """Acquire one key."""
    lease = state.acquire(INFO._replace(**info), ((0, one),), spread=False)
    assert isinstance(lease, Lease)
    return lease


def lines_of(work: Callable[[], object]) -> int:
    """Count the executed lines: a measure of cost that no other process disturbs."""
    lines = 0

    def count(_frame: Any, event: str, _arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    traced = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(traced)
    return lines


def test_an_unknown_scheme_is_an_error_that_names_the_allowed_ones(clock: FakeClock) -> None:
    """A wrong KEYROT_STATE_URL names the variable, the scheme and the allowed ones."""
    with pytest.raises(ConfigError, match=r"KEYROT_STATE_URL.*'mongo'.*memory://"):
        open_state("mongo://localhost", RetryPolicy(), clock.time)


def test_expired_records_are_swept(state: MemoryState, clock: FakeClock) -> None:
    """Windows and cooldowns of the past do not accumulate, however many models a program uses."""
    one = key("a", Limits(rpm=100))
    for day in range(30):
        for number in range(100):
            lease = acquire_lease(state, one, model=f"tuned-{day}-{number}")
            state.settle(lease, failed(Scope.KEY_MODEL) if number % 2 else OK)
        clock.advance(DAY_S)
    assert len(state._records.quotas) <= 2 * memory.SWEEP_AT
    assert sum(map(len, state._records.cooldowns.values())) <= 2 * memory.SWEEP_AT


def test_sweeping_keeps_what_still_counts(state: MemoryState, clock: FakeClock) -> None:
    """Learned limits, windows in use and rejected keys outlive any number of other models."""
    one = key("a")
    state.settle(acquire_lease(state, one), failed(Scope.NONE, learned=Limits(rpm=2)))
    state.settle(acquire_lease(state, key("dead")), failed(Scope.KEY, inf))
    for number in range(5 * memory.SWEEP_AT):
        state.settle(acquire_lease(state, key("other"), model=f"tuned-{number}"), OK)
    acquire_lease(state, one)
    assert not isinstance(state.acquire(INFO, ((0, one),), spread=False), Lease)
    assert not isinstance(state.acquire(INFO, ((0, key("dead")),), spread=False), Lease)


def test_owners_are_bounded(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of too many stored resources is dropped, not the newest."""
    monkeypatch.setattr(memory, "MAX_OWNERS", 3)
    state = MemoryState(RetryPolicy(), clock.time)
    for number in range(5):
        name, bucket = f"files/{number}", f"bucket-{number}"
        lease = acquire_lease(state, key("a"), model=f"m{number}")
        state.settle(lease, failed(Scope.NONE, bucket=bucket), (name, "files/0"))
    known = [name for name in (f"files/{n}" for n in range(5)) if state.get_owner([name])]
    assert known == ["files/0", "files/3", "files/4"]


def test_a_lease_that_is_dropped_is_not_in_flight(state: MemoryState) -> None:
    """A call that an interrupt has ended before it was settled holds no slot."""
    one = key("a", Limits(max_concurrency=1))
    lease = acquire_lease(state, one)
    assert not isinstance(state.acquire(INFO, ((0, one),), spread=False), Lease)
    del lease
    acquire_lease(state, one)


def test_10_000_calls_leave_no_growth(state: MemoryState) -> None:
    """Memory grows per key and model, not per call."""
    one = key("a")

    def size() -> list[int]:
        return [len(getattr(state._records, name)) for name in state._records.__slots__]

    state.settle(acquire_lease(state, one), OK, ("files/x",))
    before = size()
    for _ in range(10_000):
        state.settle(acquire_lease(state, one), used(1), ("files/x",))
    assert size() == before


def test_acquire_reads_only_the_candidates(state: MemoryState) -> None:
    """Ten thousand known keys do not slow down a choice among eight."""
    for number in range(10_000):
        state.settle(acquire_lease(state, key(f"k{number}")), failed(Scope.KEY, inf))
    assert 0 < lines_of(lambda: acquire_lease(state, key("good"))) < 300


def test_a_snapshot_of_many_cooling_keys_is_one_pass(state: MemoryState) -> None:
    """status() must not hold the lock for the square of the number of keys."""
    keys = [key(f"k{number}") for number in range(1_000)]
    for one in keys:
        state.settle(acquire_lease(state, one), failed(Scope.KEY, inf))
    assert {known.cooldown_until for known in state.snapshot(keys).values()} == {inf}
    assert lines_of(lambda: state.snapshot(keys)) < 100 * len(keys)


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="forks are of POSIX")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_lock_of_its_own(state: MemoryState) -> None:
    """A fork while another thread holds the lock must not leave the child waiting forever."""
    with state._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if not state._lock.locked() and acquire_lease(state, key("a")) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="forks are of POSIX")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_says_once_that_it_counts_by_itself(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """With what to set; neither its parent nor the fallback of a shared state says so."""
    pool, fallback = (
        open_state("memory://", RetryPolicy(), clock.time, pool="mine"),
        MemoryState(RetryPolicy(), clock.time),
    )
    child = os.fork()
    if child == 0:
        for _ in range(2):
            for state in (pool, fallback):
                state.acquire(INFO, ((0, key("a")),), spread=False)
        (text,) = warnings_of(caplog)
        os._exit(0 if "pool mine" in text and "KEYROT_STATE_URL=sqlite" in text else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    pool.acquire(INFO, ((0, key("a")),), spread=False)
    assert warnings_of(caplog) == []


def test_without_forks_nothing_is_registered(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    """Windows has no fork."""
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    assert acquire_lease(MemoryState(RetryPolicy(), clock.time), key("a"))


def test_a_collected_state_needs_no_lock(clock: FakeClock) -> None:
    """The fork handler keeps no state alive, and a fork after its end does no harm."""
    gone = MemoryState(RetryPolicy(), clock.time)
    before = gone._lock
    forks._in_child()
    assert gone._lock is not before
    watched = weakref.ref(gone)
    del gone
    gc.collect()
    assert watched() is None
    forks._in_child()
