"""When a store is asked again: by the clock, spread over processes, and sooner while it fails."""

from __future__ import annotations

import random
from itertools import pairwise
from math import inf

import pytest

from keyrot_middleware.secrets.refresh import FIRST_S, RefreshSchedule


def test_processes_that_start_together_do_not_ask_together() -> None:
    """The first turns of forty lie in the second half of the time, no two in one second."""
    draws = [number / 40 for number in range(40)]
    turns = sorted(RefreshSchedule(300.0, lambda d=draw: d, now=0.0).whole_at for draw in draws)
    assert turns[0] >= 150
    assert turns[-1] <= 300
    assert all(later - sooner > 1 for sooner, later in pairwise(turns))


def test_all_keys_are_due_within_the_time_each_time() -> None:
    """No pause is longer than was asked for, and none much shorter."""
    rota, now = RefreshSchedule(100.0, random.Random(7).random, now=0.0), 0.0
    pauses = []
    for _ in range(50):
        pauses.append(rota.due_at - now)
        now = rota.due_at
        assert rota.asked(now)
        rota.answered(now, failing=False)
    assert max(pauses) <= 100
    assert min(pauses[1:]) >= 90


def test_a_store_that_fails_is_asked_sooner_then_less_and_less_often() -> None:
    """A few seconds after the first failure, twice as long each time, up to the time set."""
    rota, now = RefreshSchedule(60.0, lambda: 1.0, now=0.0), 0.0
    rota.whole_at = inf
    pauses = []
    for _ in range(8):
        rota.answered(now, failing=True)
        pauses.append(rota.due_at - now)
        now = rota.due_at
        assert not rota.asked(now), "only those without a value are asked for"
    assert pauses == [FIRST_S, 4, 8, 16, 32, 60, 60, 60]
    rota.answered(now, failing=False)
    assert rota.rest_at == inf
    rota.answered(now, failing=True)
    assert rota.due_at == now + FIRST_S


def test_two_answers_that_fail_are_one_failure() -> None:
    """A look-up that a call asked for does not push the next try away."""
    rota = RefreshSchedule(60.0, lambda: 1.0, now=0.0)
    rota.answered(0.0, failing=True)
    rota.answered(1.0, failing=True)
    assert rota.rest_at == FIRST_S


@pytest.mark.parametrize("times", [2_000])
def test_a_store_that_fails_for_ever_overflows_nothing(times: int) -> None:
    """Doubling stops."""
    rota, now = RefreshSchedule(300.0, lambda: 0.5, now=0.0), 0.0
    for _ in range(times):
        rota.answered(now, failing=True)
        now = rota.due_at
        rota.asked(now)
    assert rota.whole_at - now <= 300
