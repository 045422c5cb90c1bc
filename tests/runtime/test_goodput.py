"""Three minutes of callers without pause, against servers that count minutes in three ways."""

from __future__ import annotations

import pytest
from support.simulation import simulate

from keyrot_middleware.testing.quota import Limits, Window

BARS: dict[Window, float] = {"minute": 0.95, "sliding": 0.95, "bucket": 0.90}


@pytest.mark.parametrize("known", [True, False], ids=["configured", "learned"])
@pytest.mark.parametrize("limits", [Limits(rpm=10), Limits(tpm=1_000)], ids=["rpm", "tpm"])
@pytest.mark.parametrize("window", BARS)
def test_the_pool_gets_what_the_server_allows(window: Window, limits: Limits, known: bool) -> None:
    """Nearly all possible requests are served, no call fails, and few requests are refused."""
    found = simulate(window, limits, known=known, callers=8, start_s=10.0)
    assert found.share >= BARS[window]
    assert found.failed == 0
    refused = sum(found.refused.values())
    # Each call in flight when a window turns out to be full may be refused.
    assert refused <= (0 if window == "minute" and known else 3 * 5)


@pytest.mark.parametrize("start_s", [0.0, 5.0, 20.0, 28.0, 40.0, 50.0])
def test_a_sliding_window_is_recognized_at_any_second_of_a_minute(start_s: float) -> None:
    """Whenever the first burst is, the second minute's is not sent into a full window twice."""
    found = simulate("sliding", Limits(rpm=10), start_s=start_s, callers=8)
    assert (found.failed, found.share >= 0.95) == (0, True)
    assert sum(found.refused.values()) <= 3 * 5


def test_many_callers_fail_no_call() -> None:
    """Sixteen of them on fifty requests a minute."""
    for window, bar in BARS.items():
        found = simulate(window, Limits(rpm=10), callers=16)
        assert (found.failed, found.share >= bar) == (0, True)
        assert found.longest_s < 65
