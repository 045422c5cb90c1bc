"""The end of a day: a 429 of the day before does not block a key on the new day."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google import genai
from support.modes import MODES, ask, calls

import keyrot_middleware
from keyrot_middleware.testing import FakeClock, Reply

MIDNIGHT = datetime(2026, 11, 25, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()


@pytest.fixture
def clock() -> FakeClock:
    """Start a second before midnight Pacific time."""
    return FakeClock(MIDNIGHT - 1.0)


@pytest.mark.parametrize("reply", [Reply.QUOTA_DAY_FREE, Reply.QUOTA_DAY_PAID])
@pytest.mark.parametrize("mode", MODES)
def test_keys_refused_just_after_midnight_are_available_again_soon(
    mode, reply, gemini, pool, connect, clock
) -> None:
    """Our clock is ahead, or Google's reset is late: the keys are tried again soon."""
    pool("A", "B", "C")
    client = connect()
    clock.advance(1.05)
    gemini.always_any(reply)
    (error,) = calls(mode, client, 1)
    assert isinstance(error, genai.errors.ClientError)
    assert gemini.count() == 3
    gemini.clear_scripts()
    clock.advance(31.0)
    assert ask(mode, client).startswith("ok from")


def test_a_late_reset_is_retried_less_and_less_often(gemini, pool, connect, clock) -> None:
    """After 30, 60, 120, 240 seconds; after ten minutes the day counts as exhausted."""
    pool("A")
    client = connect()
    clock.advance(1.05)
    gemini.always_any(Reply.QUOTA_DAY_FREE)
    sent = []
    while clock.time() < MIDNIGHT + 3_600:
        before = gemini.count()
        calls("sync", client, 1)
        if gemini.count() > before:
            sent.append(round(clock.time() - MIDNIGHT))
        clock.advance(10.0)
    assert len(sent) <= 6
    assert sent[:4] == [0, 30, 90, 210]
    until = keyrot_middleware.status()["keys"]["A"]["cooldown_until"]
    assert datetime.fromisoformat(until).timestamp() == MIDNIGHT + 86_400


def test_a_request_of_the_old_day_counts_for_that_day(gemini, pool, connect, clock) -> None:
    """It was sent at 23:59:59 and is refused after midnight."""
    pool("A")
    client = connect()

    def late(request: Any) -> Any:
        clock.advance(2.0)
        return Reply.QUOTA_DAY_PAID.body(request)

    gemini.script("A", Reply.custom(429, late))
    assert isinstance(calls("sync", client, 1)[0], genai.errors.ClientError)
    clock.advance(31.0)
    assert ask("sync", client) == "ok from A"


def test_a_day_that_is_exhausted_later_ends_at_midnight(gemini, pool, connect, clock) -> None:
    """Eleven minutes into the day the refusal is not a clock error."""
    pool("A")
    clock.advance(1.0 + 660.0)
    gemini.always_any(Reply.QUOTA_DAY_FREE)
    calls("sync", connect(), 1)
    until = keyrot_middleware.status()["keys"]["A"]["cooldown_until"]
    assert datetime.fromisoformat(until).timestamp() == MIDNIGHT + 86_400
