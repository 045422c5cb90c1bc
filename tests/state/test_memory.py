"""Properties of the memory state alone: sweeping, bounded tables, forks."""

import os
from math import inf

import pytest
from support.pool import INFO, key
from support.states import (
    OK,
    UNSENT,
    A,
    failed,
    granted,
    lease_of,
    refused,
    settle,
    warnings_of,
)

from keyrot_middleware.core.affinity import owner_lifetime
from keyrot_middleware.core.model import Limits, RetryPolicy, Scope
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.state import MemoryState, memory, open_state
from keyrot_middleware.testing import FakeClock

FORKS = pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="forks are of POSIX")
IN_THREADS = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded")


@pytest.fixture
def state(clock: FakeClock) -> MemoryState:
    return MemoryState(RetryPolicy(), clock.time)


def test_an_unknown_scheme_is_an_error_that_names_the_allowed_ones(clock: FakeClock) -> None:
    with pytest.raises(ConfigError, match=r"KEYROT_STATE_URL.*'mongo'.*memory://"):
        open_state("mongo://localhost", RetryPolicy(), clock.time)


def test_expired_records_are_swept(state: MemoryState, clock: FakeClock) -> None:
    """Windows and cooldowns of the past do not accumulate, however many models a program uses."""
    one = key("a", Limits(rpm=100))
    late = lease_of(state, one, info=INFO._replace(model="late"))
    for day in range(30):
        for number in range(100):
            outcome = failed(Scope.KEY_MODEL) if number % 2 else OK
            settle(state, one, outcome, info=INFO._replace(model=f"tuned-{day}-{number}"))
        clock.advance(DAY_S)
    assert len(state._records.quotas) <= 2 * memory.SWEEP_AT
    assert sum(map(len, state._records.cooldowns.values())) <= 2 * memory.SWEEP_AT
    settle(state, late, UNSENT)
    assert len(state._records.quotas) <= 2 * memory.SWEEP_AT, "of a window that is gone"


def test_sweeping_keeps_what_still_counts(state: MemoryState) -> None:
    """Learned limits, windows in use and rejected keys outlive any number of other models."""
    settle(state, A, failed(Scope.NONE, learned=Limits(rpm=2)))
    settle(state, key("dead"), failed(Scope.KEY, inf))
    for number in range(5 * memory.SWEEP_AT):
        settle(state, key("other"), info=INFO._replace(model=f"tuned-{number}"))
    lease_of(state, A)
    assert refused(state, A, key("dead")) == {"a": "rpm", "dead": "failure"}


def test_owners_are_bounded(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of too many stored resources is dropped, not the newest."""
    monkeypatch.setattr(memory, "MAX_OWNERS", 3)
    state = MemoryState(RetryPolicy(), clock.time)
    for number in range(5):
        bucket, info = f"bucket-{number}", INFO._replace(model=f"m{number}")
        outcome = failed(Scope.NONE, bucket=bucket)
        settle(state, A, outcome, f"files/{number}", "files/0", info=info)
    known = [name for name in (f"files/{n}" for n in range(5)) if state.get_owner([name])]
    assert known == ["files/0", "files/3", "files/4"]


@pytest.mark.parametrize(
    ("name", "days", "renewed"),
    [
        ("files/a", 49 / 24, False),
        ("page:t", 1, False),
        ("continuation:t", 1, False),
        ("batches/b", 60, True),
        ("models/veo/operations/o", 60, True),
        ("interactions/i", 60, True),
        ("fileSearchStores/s", 60, True),
    ],
)
def test_the_owner_is_remembered_as_long_as_the_resource(
    state: MemoryState, clock: FakeClock, name: str, days: float, renewed: bool
) -> None:
    """A file's for its 48 hours; others for longer than an interaction, and from each use on."""
    lifetime = owner_lifetime(name)
    assert (lifetime.seconds / DAY_S, lifetime.renewed) == (days, renewed)
    settle(state, A, OK, name)
    for _ in range(2):
        clock.sleep(0.9 * days * DAY_S)
        assert state.get_owner([name]) == ("a", "a")
        if not renewed:
            break
    clock.sleep(days * DAY_S)
    assert state.get_owner([name]) is None


def test_a_lease_that_is_dropped_is_not_in_flight(state: MemoryState) -> None:
    """A call that an interrupt has ended before it was settled holds no slot."""
    one = key("a", Limits(max_concurrency=1))
    lease = lease_of(state, one)
    assert refused(state, one) == {"a": "concurrency"}
    del lease
    lease_of(state, one)


@FORKS
@IN_THREADS
def test_a_forked_child_does_not_count_what_its_parent_has_in_flight(state: MemoryState) -> None:
    """The parent settles it, which the child never hears of."""
    one = key("a", Limits(max_concurrency=1))
    held = lease_of(state, one)
    child = os.fork()
    if child == 0:
        os._exit(granted(state, one))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    settle(state, held)


@FORKS
@IN_THREADS
def test_a_forked_child_says_once_that_it_counts_by_itself(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """With what to set; neither its parent nor the fallback of a shared state says so."""
    pool = open_state("memory://", RetryPolicy(), clock.time, pool="mine")
    fallback = MemoryState(RetryPolicy(), clock.time)
    child = os.fork()
    if child == 0:
        for state in (pool, fallback, pool, fallback):
            lease_of(state, A)
        (text,) = warnings_of(caplog)
        os._exit(0 if "pool mine" in text and "KEYROT_STATE_URL=sqlite" in text else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lease_of(pool, A)
    assert warnings_of(caplog) == []
