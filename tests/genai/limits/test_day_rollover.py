"""The end of a day: a 429 of the day before does not block a key on the new day."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from google import genai
from support.modes import MODES, ask, calls, spread

from keyrot_middleware.testing import FakeClock, Reply

MIDNIGHT = datetime(2026, 11, 25, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()


@pytest.fixture
def clock() -> FakeClock:
    """Start a second before midnight Pacific time."""
    return FakeClock(MIDNIGHT - 1.0)


@pytest.mark.parametrize(
    ("reply", "mode"), spread([Reply.QUOTA_DAY_FREE, Reply.QUOTA_DAY_PAID], MODES)
)
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
