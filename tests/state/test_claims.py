"""Of all processes with one state, one claims a name, for a time."""

from __future__ import annotations

import threading
import time

import pytest
from support.fallback import FallbackSetup
from support.servers import server, wait_for
from support.sync_async import OpenBackend

from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.state import memory, open_shared
from keyrot_middleware.state.memory import MemoryState
from keyrot_middleware.testing import FakeClock


def test_a_name_is_claimed_once(open_backend: OpenBackend) -> None:
    """The second claim returns how long the name is taken; another name is available."""
    state = open_backend()
    assert state.claim("one", 600) == 0
    assert 590 < state.claim("one", 600) <= 600
    assert state.claim("other", 600) == 0


def test_one_of_many_threads_claims_a_name(open_backend: OpenBackend) -> None:
    """However they race, one of them gets it."""
    state, found = open_backend(), []
    start = threading.Barrier(16)

    def claim() -> None:
        start.wait()
        found.append(state.claim("raced", 600))

    threads = [threading.Thread(target=claim) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.count(0) == 1


def test_a_name_is_claimed_in_this_process_while_the_shared_state_is_down(
    setup: FallbackSetup,
) -> None:
    """A name claimed before stays claimed; a new claim holds in this process."""
    assert setup.state.claim("before", 600) == 0
    setup.shared.cut("claim")
    assert 0 < setup.state.claim("before", 600) <= 600
    assert setup.state.claim("meanwhile", 600) == 0
    assert 0 < setup.state.claim("meanwhile", 600) <= 600


def test_a_claim_in_memory_ends_when_its_time_is_over(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of names is bounded: of too many, the oldest are forgotten."""
    monkeypatch.setattr(memory, "MAX_CLAIMS", 3)
    state = MemoryState(RetryPolicy(), clock.time)
    assert state.claim("one", 600) == 0
    clock.sleep(599)
    assert state.claim("one", 600) == 1
    clock.sleep(1)
    assert state.claim("one", 600) == 0
    for number in range(5):
        state.claim(str(number), 600)
    assert len(state._records.claims) <= 3


def test_a_claim_in_redis_ends_when_its_time_is_over() -> None:
    """It ends by the server's clock, and for every process."""
    states = [open_shared(server("valkey").url, RetryPolicy(), time.time) for _ in range(2)]
    one, other = (state for state in states if state is not None)
    assert one.claim("short", 0.3) == 0
    assert 0 < other.claim("short", 0.3) <= 0.3
    wait_for(lambda: other.claim("short", 60) == 0)
    for state in (one, other):
        state.close()
