"""Learned limits: what ends them before their day is over."""

from __future__ import annotations

import pytest
from support.moments import NOON

from keyrot_middleware.core.model import NO_LIMITS, Limits
from keyrot_middleware.core.windows import QuotaWindows


def _learned(limits: Limits) -> QuotaWindows:
    quota = QuotaWindows()
    quota.advance(NOON)
    quota.learn(limits, NOON)
    return quota


@pytest.mark.parametrize(
    ("requests", "tokens", "left"),
    [
        (1, 100, Limits(2, 100, 3)),
        (3, 100, Limits(None, 100, 3)),
        (1, 101, Limits(2, None, 3)),
        (4, 500, NO_LIMITS),
    ],
)
def test_a_request_that_was_served_ends_the_limits_that_it_exceeds(
    requests: int, tokens: int, left: Limits
) -> None:
    """A single request: the sum of several is no evidence."""
    quota = _learned(Limits(2, 100, 3))
    quota.drop_exceeded_limits(requests, tokens)
    assert quota.learned == left
    assert (quota.learned is NO_LIMITS) == (left == NO_LIMITS)


def test_dropped_limits_leave_the_configured_ones() -> None:
    """A reset, or a change of keys.json, ends all that was learned; counts stay."""
    quota = _learned(Limits(2))
    quota.reserve(1, 10, near_boundary=False)
    quota.forget_learned()
    assert quota.limits(Limits(9)) == Limits(9)
    assert quota.requests == 1
