"""The main job: whatever fails, a call that an available key can serve is served by it."""

import pytest
from support.http_modes import OPENAI, RAW

CALLS = RAW | OPENAI


@pytest.mark.parametrize("mode", CALLS)
def test_sixty_calls_meet_each_bad_key_once(mode, gemini, one_good, clock) -> None:
    """An exhausted and an invalid key cost one request each, none of 60 calls fails or waits."""
    one_good()
    began = clock.time()
    assert set(CALLS[mode](gemini.url, "keyrot-pool", 60)) == {"ok from C"}
    assert (gemini.sent("A"), gemini.sent("B"), gemini.sent("C")) == (1, 1, 60)
    assert clock.time() == began
