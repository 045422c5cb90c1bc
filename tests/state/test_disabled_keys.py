"""A key that an operator disables for some time, in every state."""

import time

import pytest
from support.states import A as PLAIN
from support.states import failed, granted, refusal, settle

from keyrot_middleware.core.model import Scope
from keyrot_middleware.core.selection import Selector
from keyrot_middleware.monitoring.report import PoolReport
from keyrot_middleware.monitoring.view import look
from keyrot_middleware.runtime.activity_recorder import ActivityRecorder
from keyrot_middleware.state import State
from keyrot_middleware.testing import FakeClock

H = 3_600.0
A = PLAIN.with_value("f")
"""A key whose value a process has."""


@pytest.fixture
def report(state: State, clock: FakeClock) -> PoolReport:
    return PoolReport(
        name="p",
        state=state,
        state_url="",
        rows=lambda: look(state, [A]),
        activity=ActivityRecorder(state, time.time),
        selector=lambda: Selector([A]),
        now=clock.time,
    )


def test_a_key_is_disabled_for_a_time(state: State, report: PoolReport, clock: FakeClock) -> None:
    """It ends by itself; the second time counts, also if it is shorter; a call does not wait."""
    assert "until 2026-01-31 12:30 UTC" in report.set_active("a", False)
    assert "until 18:30:30 UTC" in report.set_active("a", False, 6 * H)
    clock.advance(6 * H - 60)
    blocks = refusal(state, A).blocks.values()
    assert [(one.reason, one.waitable) for one in blocks] == [("disabled", False)]
    clock.advance(61)
    assert look(state, [A])[0].overall.state == "available"
    settle(state, A)
    assert granted(state, A, most=2) == 2


def test_a_longer_block_of_the_key_stays(
    state: State, report: PoolReport, clock: FakeClock
) -> None:
    """The sentence names the time at which the key is used again, not the one that was asked."""
    settle(state, A, failed(Scope.KEY, clock.time() + 5 * H, has_known_end=True))
    assert "until 17:30:30 UTC" in report.set_active("a", False, H)
    clock.advance(2 * H)
    refusal(state, A)
