"""A clock that is set back or forward: no key stays full for longer than its window."""

from __future__ import annotations

from typing import Any

import pytest
from support.pool import Rig, key
from support.replies import MODEL, minute

from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import Limits


def full(**policy: Any) -> Rig:
    """Make a pool of two keys whose windows are full, and which are deferred until then."""
    limits = Limits(rpm=1)
    rig = Rig(key("a", limits), key("b", limits), max_wait_s=0, **policy)
    for _ in range(2):
        rig.call()
    assert isinstance(rig.failing(), Exhausted)
    return rig


@pytest.mark.parametrize("step", [-3_600, -86_400, 3_600, 86_400])
def test_full_windows_are_available_after_a_clock_step(step: float) -> None:
    """Suspend, NTP: the very next call gets a key, and only as many as the limits allow."""
    rig = full()
    rig.clock._now += step
    for _ in range(2):
        rig.call()
    assert isinstance(rig.failing(), Exhausted)
    assert sorted(rig.sent) == ["a", "a", "b", "b"]


def test_a_minutes_cooldown_ends_although_the_clock_stepped_back() -> None:
    """It lasts at most 20 s, not an hour and 20 s."""
    rig = Rig(key("a"), max_wait_s=0)
    rig.will("a", minute("20s", model=MODEL))
    rig.failing()
    assert isinstance(rig.failing(), Exhausted)
    rig.clock._now -= 3_600
    rig.call()
    assert rig.sent == ["a", "a"]
