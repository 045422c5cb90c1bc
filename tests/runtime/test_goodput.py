"""Three minutes of callers without pause, against servers that count minutes in three ways."""

from __future__ import annotations

import pytest
from support.simulation import simulate

from keyrot_middleware.testing.quota import Limits, Window

BARS: dict[Window, float] = {"minute": 1.0, "sliding": 0.95, "bucket": 0.85}
REFUSALS: dict[Window, int] = {"minute": 0, "sliding": 60, "bucket": 60}
"""How many 429s a pool of five keys that knows its limits may get."""


@pytest.mark.parametrize("known", [True, False], ids=["configured", "learned"])
@pytest.mark.parametrize("limits", [Limits(rpm=10), Limits(tpm=1_000)], ids=["rpm", "tpm"])
@pytest.mark.parametrize("window", BARS)
def test_the_pool_gets_what_the_server_allows(window: Window, limits: Limits, known: bool) -> None:
    """Nearly all possible requests are served, no call fails, and few requests are refused."""
    found = simulate(window, limits, known=known, callers=8, start_s=10.0)
    assert found.share >= BARS[window]
    assert found.failed == 0
    # To learn a limit costs a 429 for each call that is in flight then.
    assert sum(found.refused.values()) <= REFUSALS[window] + (0 if known else 3 * 5)


@pytest.mark.parametrize("start_s", [0.0, 5.0, 20.0, 28.0, 40.0, 50.0])
def test_a_sliding_window_fails_no_call_at_any_second_of_a_minute(start_s: float) -> None:
    """Whenever the first burst is, the calls that a full window refuses are served later."""
    found = simulate("sliding", Limits(rpm=10), start_s=start_s, callers=8)
    assert (found.failed, found.share >= 0.95) == (0, True)
    assert sum(found.refused.values()) <= REFUSALS["sliding"]


def test_many_callers_fail_no_call() -> None:
    """Sixteen of them on fifty requests a minute."""
    for window in BARS:
        found = simulate(window, Limits(rpm=10), callers=16)
        assert (found.failed, found.share >= 0.85) == (0, True)
        assert found.longest_s < 65
