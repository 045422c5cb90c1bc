"""Waiting: only while no key is available, only for a known time, within the budget."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google import genai
from support.modes import MODES, ask, calls

import keyrot_middleware
from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import FakeClock, Reply


@pytest.fixture
def clock() -> FakeClock:
    """Start twenty seconds before a full minute."""
    return FakeClock(datetime(2026, 1, 1, 12, 30, 40, tzinfo=UTC))


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_of_one_waits_out_the_time_that_google_named(
    mode, gemini, pool, connect, clock
) -> None:
    """Two requests a minute: the third is refused, waits for the next minute, and is served."""
    gemini.add_key("A", rpm=2)
    pool("A")
    client, began = connect(), clock.time()
    assert calls(mode, client, 3) == ["ok from A"] * 3
    assert [request.status for request in gemini.log] == [200, 200, 429, 200]
    assert 19 <= clock.time() - began <= 22


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_of_one_waits_before_it_exceeds_its_limit(
    mode, gemini, pool, connect, clock
) -> None:
    """With a configured limit the third request is only sent when the minute is over."""
    gemini.add_key("A", rpm=2)
    pool({"key_id": "A", "rpm": 2})
    began = clock.time()
    assert calls(mode, connect(), 3) == ["ok from A"] * 3
    assert [request.status for request in gemini.log] == [200] * 3
    assert 20 <= clock.time() - began <= 22


@pytest.mark.parametrize("mode", MODES)
def test_a_time_beyond_the_budget_is_not_waited_for(mode, gemini, pool, connect, clock) -> None:
    """The pool is exhausted at once, by the SDK's own 429; the next call sends nothing."""
    gemini.add_key("A", rpm=1)
    pool("A", max_wait_s=10)
    client, began = connect(), clock.time()
    assert calls(mode, client, 1) == ["ok from A"]
    (error,) = calls(mode, client, 1)
    assert type(error) is keyrot_middleware.KeyPoolExhausted
    assert type(error.__cause__) is genai.errors.ClientError
    assert (error.code, error.__cause__.code, gemini.count()) == (429, 429, 2)
    (error,) = calls(mode, client, 1)
    assert isinstance(error, keyrot_middleware.KeyPoolExhausted)
    assert (gemini.count(), clock.time()) == (2, began)


def test_the_budget_is_for_the_whole_call(gemini, pool, connect, clock) -> None:
    """A key that keeps failing is not waited for again and again."""
    pool("A")
    gemini.always("A", Reply.QUOTA_MINUTE)
    began = clock.time()
    (error,) = calls("sync", connect(), 1)
    assert isinstance(error, genai.errors.ClientError)
    assert clock.time() - began <= 31
    assert gemini.count() == 2


@pytest.mark.parametrize("reply", [Reply.QUOTA_DAY, Reply.LIMIT_ZERO, Reply.SPEND_CAP_PROJECT])
def test_a_day_is_never_waited_for(reply, gemini, pool, connect, clock) -> None:
    """However long a program would wait."""
    pool("A", max_wait_s=1_000_000)
    gemini.always("A", reply)
    began = clock.time()
    assert isinstance(calls("sync", connect(), 1)[0], genai.errors.ClientError)
    assert isinstance(calls("sync", connect(), 1)[0], keyrot_middleware.KeyPoolExhausted)
    assert (gemini.count(), clock.time()) == (1, began)


@pytest.mark.parametrize("mode", MODES)
def test_an_available_key_is_used_at_once(mode, gemini, pool, connect, clock) -> None:
    """No call waits for a key while another is available."""
    pool("A", "B", "C", strategy="fill")
    gemini.always("A", Reply.QUOTA_MINUTE)
    gemini.always("B", Reply.EXHAUSTED)
    began = clock.time()
    assert calls(mode, connect(), 20, at_once=4) == ["ok from C"] * 20
    assert clock.time() == began


@pytest.mark.parametrize("reply", [Reply.EXHAUSTED, Reply.CAPACITY, Reply.HELP_ONLY])
def test_a_guess_is_not_waited_for(reply, gemini, pool, connect, clock) -> None:
    """A 429 without a time cools the key down for 30 s, and is raised at once."""
    pool("A")
    gemini.always("A", reply)
    began = clock.time()
    assert isinstance(calls("sync", connect(), 1)[0], genai.errors.ClientError)
    assert clock.time() == began


def test_the_soonest_key_is_waited_for(gemini, pool, connect, clock) -> None:
    """Of two that cool down, the one that is available first."""
    in_nine = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "9s"}
    body = {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED"}
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.QUOTA_MINUTE)
    gemini.script("B", Reply.custom(429, {"error": {**body, "details": [in_nine]}}))
    began = clock.time()
    assert ask("sync", connect()) == "ok from B"
    assert [request.key for request in gemini.log] == ["A", "B", "B"]
    assert 9 <= clock.time() - began <= 9.5


def test_cooldowns_without_a_time_double_and_start_again_after_a_success(
    gemini, pool, connect, clock
) -> None:
    """30, 60, 120 s, up to 900, and 30 again once the key has served."""
    pool("A")
    client = connect()

    def cooldown_s() -> float:
        gemini.script("A", Reply.EXHAUSTED)
        assert isinstance(calls("sync", client, 1)[0], genai.errors.ClientError)
        until = keyrot_middleware.status()["keys"]["A"]["cooldown_until"]
        return datetime.fromisoformat(until).timestamp() - clock.time()

    lengths = []
    for _ in range(7):
        lengths.append(round(cooldown_s()))
        clock.advance(lengths[-1])
    assert lengths == [30, 60, 120, 240, 480, 900, 900]
    assert ask("sync", client) == "ok from A"
    assert round(cooldown_s()) == 30


def test_one_probe_goes_first_when_a_cooldown_ends(gemini, pool, connect, clock) -> None:
    """Sixteen callers after the cooldown: while the probe is in flight no other uses the key."""
    pool("A", "B", strategy="fill")
    client = connect()
    gemini.script("A", Reply.EXHAUSTED)
    assert ask("sync", client) == "ok from B"
    clock.advance(31)
    gemini.reset_log()
    gemini.always("A", Reply.EXHAUSTED.delayed(0.05))
    assert calls("sync", client, 16, at_once=16) == ["ok from B"] * 16
    assert gemini.sent("A") == 1


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


@pytest.mark.parametrize(("reply", "sends"), [(Reply.DEADLINE, 2), (Reply.BAD_GATEWAY, 3)])
def test_each_5xx_has_its_number_of_retries(reply, sends, gemini, pool, connect) -> None:
    """A 504 has taken its time already: it is retried once."""
    pool("A")
    gemini.always("A", reply)
    assert isinstance(calls("sync", connect(), 1)[0], genai.errors.ServerError)
    assert gemini.count() == sends


def test_zero_retries_send_once(gemini, pool, connect, clock) -> None:
    """KEYROT_MAX_RETRIES=0 raises a 5xx at once."""
    pool("A", max_retries=0)
    gemini.always("A", Reply.OVERLOADED)
    began = clock.time()
    assert isinstance(calls("sync", connect(), 1)[0], genai.errors.ServerError)
    assert (gemini.count(), clock.time()) == (1, began)
