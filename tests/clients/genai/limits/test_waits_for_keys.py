"""Waiting: only while no key is available, only for a known time, within the budget."""

from datetime import UTC, datetime

import pytest
from google import genai
from support.modes import MODES, calls, spread

from keyrot_middleware.testing import FakeClock, Reply


@pytest.fixture
def clock() -> FakeClock:
    """Start twenty seconds before a full minute."""
    return FakeClock(datetime(2026, 1, 1, 12, 30, 40, tzinfo=UTC))


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_of_one_waits_out_googles_time(mode, gemini, pool, connect, clock) -> None:
    """Two requests a minute: the third is refused, waits for the next minute, and is served."""
    gemini.add_key("A", rpm=2)
    pool("A")
    client, began = connect(), clock.time()
    assert calls(mode, client, 3) == ["ok from A"] * 3
    assert [request.status for request in gemini.log] == [200, 200, 429, 200]
    assert 19 <= clock.time() - began <= 22


@pytest.mark.parametrize(("mode", "where"), spread(MODES, ["client", "request"]))
def test_a_timeout_bounds_the_waiting_too(mode, where, gemini, pool, connect, clock) -> None:
    """A program that gives a call five seconds does not wait twenty for a key."""
    pool("A")
    gemini.script("A", Reply.QUOTA_MINUTE)
    began = clock.time()
    of_client = {"timeout": 5_000} if where == "client" else {}
    of_request = {"config": {"http_options": {"timeout": 5_000}}} if where == "request" else {}
    (error,) = calls(mode, connect(**of_client), 1, **of_request)
    assert isinstance(error, genai.errors.ClientError)
    assert (clock.time(), gemini.count()) == (began, 1)
