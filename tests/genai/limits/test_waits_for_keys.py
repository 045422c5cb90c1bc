"""Waiting: only while no key is available, only for a known time, within the budget."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from google import genai
from support.modes import MODES, ask, calls, spread

import keyrot_middleware
from keyrot_middleware.core.model import LeaseOutcome
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


@pytest.mark.parametrize("mode", MODES)
def test_5xx_are_retried_within_their_budget(mode, gemini, pool, connect, clock) -> None:
    """Two retries with backoff, then the SDK's ServerError; no key is penalized."""
    pool("A", "B")
    client = connect()
    gemini.script_any(Reply.OVERLOADED, Reply.INTERNAL)
    assert ask(mode, client).startswith("ok from")
    assert gemini.count() == 3
    gemini.reset_log()
    gemini.always_any(Reply.OVERLOADED)
    (error,) = calls(mode, client, 1)
    assert type(error) is genai.errors.ServerError
    assert (error.code, gemini.count()) == (503, 3)
    assert len(error.__notes__) == 3
    assert not any(key["in_cooldown"] for key in keyrot_middleware.status()["keys"].values())
    assert LeaseOutcome.UNSENT not in pool.ledger.kinds


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}


def busy(code: int, seconds: str | None = None, *details: object) -> object:
    """Make the reply of an overloaded service."""
    status = {503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}[code]
    error = {"code": code, "message": "Busy.", "status": status, "details": list(details)}
    headers = {"Retry-After": seconds} if seconds else None
    return Reply.custom(code, {"error": error}, headers=headers)


@pytest.mark.parametrize(
    ("mode", "reply"), spread(MODES, [busy(503, "7"), busy(504, "7"), busy(503, None, RETRY_INFO)])
)
def test_a_named_time_is_waited_for(mode, reply, gemini, pool, connect, clock) -> None:
    """The request is sent again after it, not before."""
    pool("A")
    gemini.script_any(reply)
    began = clock.time()
    assert ask(mode, connect()) == "ok from A"
    assert 7.0 <= clock.time() - began <= 8.0
    assert gemini.count() == 2


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


MIDNIGHT = datetime(2026, 11, 25, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()


@pytest.mark.parametrize(
    ("reply", "mode"), spread([Reply.QUOTA_DAY_FREE, Reply.QUOTA_DAY_PAID], MODES)
)
def test_keys_refused_after_midnight_come_back(mode, reply, gemini, pool, connect, clock) -> None:
    """Our clock is ahead, or Google's reset is late: the keys are tried again soon."""
    clock.advance(MIDNIGHT + 0.05 - clock.time())
    pool("A", "B", "C")
    client = connect()
    gemini.always_any(reply)
    (error,) = calls(mode, client, 1)
    assert isinstance(error, genai.errors.ClientError)
    assert gemini.count() == 3
    gemini.clear_scripts()
    clock.advance(31.0)
    assert ask(mode, client).startswith("ok from")
