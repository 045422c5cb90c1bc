"""The defaults suit limits per minute: no call fails that the next minute can serve."""

from __future__ import annotations

from support.pool import Rig, key

from keyrot_middleware.core.model import Limits


def test_by_default_a_call_waits_for_the_end_of_any_minute() -> None:
    """A minute that was full at its first second lasts 60 s more, and its guard."""
    rig = Rig(key("a", Limits(rpm=1)))
    rig.clock.advance(31.0)
    rig.call()
    assert rig.call() == "answer"
    assert sum(rig.slept) >= 59.0
