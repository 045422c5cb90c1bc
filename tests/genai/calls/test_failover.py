"""The main job: whatever fails, a call that an available key can serve is served by it."""

from __future__ import annotations

import pytest
from support.modes import MODES, calls, spread

from keyrot_middleware.testing import Reply


def one_exhausted_one_invalid(gemini, pool, **settings) -> None:
    """Let A always answer 429, B 400, and C succeed."""
    pool("A", "B", "C", **settings)
    gemini.always("A", Reply.QUOTA_MINUTE)
    gemini.always("B", Reply.KEY_INVALID)


def sent(gemini) -> tuple[int, int, int]:
    """Count the requests with each key."""
    return gemini.sent("A"), gemini.sent("B"), gemini.sent("C")


@pytest.mark.parametrize(("strategy", "mode"), spread(["spread", "fill", "sticky"], MODES))
def test_sixty_calls_meet_each_bad_key_once(mode, strategy, gemini, pool, connect, clock) -> None:
    """An exhausted and an invalid key cost one request each, none of 60 calls fails or waits."""
    one_exhausted_one_invalid(gemini, pool, strategy=strategy)
    began = clock.time()
    assert set(call_sixty_times(mode, connect(), strategy)) == {"ok from C"}
    assert sent(gemini) == (1, 1, 60)
    assert clock.time() == began


def call_sixty_times(mode, client, strategy) -> list:
    """Make 60 calls; under `sticky` in 60 conversations, or they might never use A and B."""
    if strategy != "sticky":
        return calls(mode, client, 60)
    return [calls(mode, client, 1, contents=f"conversation {n}")[0] for n in range(60)]


@pytest.mark.parametrize("mode", MODES)
def test_sixty_calls_from_32_callers_at_once(mode, gemini, pool, connect, clock) -> None:
    """No caller uses a bad key after one has failed with it, except those already in flight."""
    one_exhausted_one_invalid(gemini, pool)
    gemini.delay(0.01)
    began = clock.time()
    texts = calls(mode, connect(), 60, at_once=32)
    assert texts == ["ok from C"] * 60
    a, b, c = sent(gemini)
    assert 1 <= a <= 32
    assert 1 <= b <= 32
    assert c == 60
    assert clock.time() == began
