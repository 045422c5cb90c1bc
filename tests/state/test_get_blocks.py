"""What `blocked` reports is what `acquire` does, in every backend."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pool import INFO, key
from support.sync_async import ABANDONED, OK, UNSENT, URIS, failed, open_at

from keyrot_middleware.core.model import Lease, Limits, RetryPolicy, Scope, Unavailable
from keyrot_middleware.testing import FakeClock

LIMITS = Limits(rpm=3, tpm=60, rpd=9, max_concurrency=2)
KEYS = (key("a", LIMITS, project="p"), key("b", project="p"), key("c", LIMITS), key("d"))
SCOPES = (Scope.KEY, Scope.KEY_MODEL, Scope.KEY_VERB, Scope.PROJECT, Scope.PROJECT_MODEL)

STEP = st.one_of(
    st.tuples(st.just("acquire"), st.integers(0, 3), st.sampled_from([1, 20, 60])),
    st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from([OK, UNSENT, ABANDONED])),
    st.tuples(st.just("fail"), st.integers(0, 9), st.sampled_from(SCOPES)),
    st.tuples(st.just("pass"), st.sampled_from([0.4, 1.0, 28.6, 61.0, 900.0]), st.none()),
)


@pytest.mark.parametrize("uri", URIS)
@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEP, max_size=40))
def test_blocked_keys_are_those_that_acquire_refuses(uri: str, steps: list[Any]) -> None:
    """On random histories a key is reported as blocked exactly while no call would get it."""
    clock, open_leases = FakeClock(), []
    state = open_at(uri, RetryPolicy(), clock.time)
    for what, one, more in steps:
        if what == "pass":
            clock.advance(one)
        elif what == "acquire":
            info, wanted = INFO._replace(tokens=more), KEYS[one]
            blocked = state.get_blocks(info, KEYS)
            reply = state.acquire(info, ((0, wanted),), spread=False)
            assert isinstance(reply, Lease) == (wanted.key_id not in blocked)
            if isinstance(reply, Lease):
                open_leases.append(reply)
            else:
                assert reply.blocks[wanted.key_id] == blocked[wanted.key_id]
        elif open_leases:
            lease = open_leases.pop(one % len(open_leases))
            state.settle(lease, failed(more) if what == "fail" else more)


@pytest.mark.parametrize("uri", URIS)
def test_reading_the_blocks_reserves_nothing(uri: str) -> None:
    """However often the blocks are read, the one request that a key has left is left."""
    one = key("a", Limits(max_concurrency=1))
    state = open_at(uri, RetryPolicy(), FakeClock().time)
    assert [state.get_blocks(INFO, [one]) for _ in range(5)] == [{}] * 5
    lease = state.acquire(INFO, ((0, one),), spread=False)
    assert isinstance(lease, Lease)
    assert isinstance(state.acquire(INFO, ((0, one),), spread=False), Unavailable)
    assert state.get_blocks(INFO, [one])["a"].reason == "concurrency"
