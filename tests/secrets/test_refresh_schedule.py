"""When a store is read again: by the clock, spread over processes, and sooner while it fails."""

from __future__ import annotations

import random
from itertools import pairwise
from math import inf

import pytest

from keyrot_middleware.secrets.refresh import FIRST_RETRY_S, RefreshSchedule


def test_processes_that_start_together_do_not_refresh_together() -> None:
    """The first refreshes of forty processes lie in the second half of the time, all apart."""
    draws = [number / 40 for number in range(40)]
    turns = sorted(RefreshSchedule(300.0, lambda d=draw: d, now=0.0).next_full for draw in draws)
    assert turns[0] >= 150
    assert turns[-1] <= 300
    assert all(later - sooner > 1 for sooner, later in pairwise(turns))


def test_all_keys_are_due_within_the_time_each_time() -> None:
    """No pause is longer than configured, and none much shorter."""
    schedule, now = RefreshSchedule(100.0, random.Random(7).random, now=0.0), 0.0
    pauses = []
    for _ in range(50):
        pauses.append(schedule.next_due - now)
        now = schedule.next_due
        assert schedule.started(now)
        schedule.finished(now, failing=False)
    assert max(pauses) <= 100
    assert min(pauses[1:]) >= 90


def test_a_failing_store_is_retried_soon_then_less_and_less_often() -> None:
    """A few seconds after the first failure, twice as long each time, up to the configured time."""
    schedule, now = RefreshSchedule(60.0, lambda: 1.0, now=0.0), 0.0
    schedule.next_full = inf
    pauses = []
    for _ in range(8):
        schedule.finished(now, failing=True)
        pauses.append(schedule.next_due - now)
        now = schedule.next_due
        assert not schedule.started(now), "only those without a value are looked up"
    assert pauses == [FIRST_RETRY_S, 4, 8, 16, 32, 60, 60, 60]
    schedule.finished(now, failing=False)
    assert schedule.next_retry == inf
    schedule.finished(now, failing=True)
    assert schedule.next_due == now + FIRST_RETRY_S


def test_two_answers_that_fail_are_one_failure() -> None:
    """A look-up for a call does not postpone the next retry."""
    schedule = RefreshSchedule(60.0, lambda: 1.0, now=0.0)
    schedule.finished(0.0, failing=True)
    schedule.finished(1.0, failing=True)
    assert schedule.next_retry == FIRST_RETRY_S


@pytest.mark.parametrize("times", [2_000])
def test_a_store_that_always_fails_overflows_nothing(times: int) -> None:
    """The doubling has an end."""
    schedule, now = RefreshSchedule(300.0, lambda: 0.5, now=0.0), 0.0
    for _ in range(times):
        schedule.finished(now, failing=True)
        now = schedule.next_due
        schedule.started(now)
    assert schedule.next_full - now <= 300
