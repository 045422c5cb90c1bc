"""Cooldowns: their duration, the keys they block, and how they end."""

from __future__ import annotations

import pytest
from support.moments import NOON
from support.pool import key

from keyrot_middleware.core.model import Block, Scope
from keyrot_middleware.core.windows import (
    DAY_S,
    Cooldown,
    exponential_cooldown,
    scope_key,
    scope_keys,
)


def test_the_backoff_doubles_up_to_the_maximum() -> None:
    """30, 60, 120 … 900 seconds, and no overflow after a thousand failures."""
    steps = [
        exponential_cooldown(failure_count, 30.0, 900.0)
        for failure_count in (1, 2, 3, 4, 5, 6, 7, 1_000)
    ]
    assert steps == [30, 60, 120, 240, 480, 900, 900, 900]


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        (Scope.KEY, ("cooldown:key:k", "key")),
        (Scope.KEY_VERB, ("cooldown:key:k", "key_verb:v")),
        (Scope.KEY_MODEL, ("cooldown:key:k", "key_model:m")),
        (Scope.PROJECT_MODEL, ("cooldown:project:p", "project_model:m")),
        (Scope.PROJECT, ("cooldown:project:p", "project")),
        (Scope.PROJECT_CACHE, ("cooldown:project:p", "project_cache")),
        (Scope.BILLING, ("cooldown:billing:b", "billing")),
    ],
)
def test_each_scope_has_a_name_that_blocks_the_key(scope: Scope, name: tuple[str, str]) -> None:
    """Selection checks every failure's cooldown; the cache's only for caches."""
    named = scope_key(scope, record="k", project="p", billing_account="b", bucket="m", verb="v")
    candidate = key("k", project="p", billing_account="b")
    assert named == name
    assert (named in scope_keys(candidate, "m", "v")) == (scope is not Scope.PROJECT_CACHE)
    assert ("cooldown:project:p", "project_cache") in scope_keys(candidate, "m", "cachedContents")


def test_a_burst_of_failures_is_one_step_of_the_backoff() -> None:
    """Requests granted before the cooldown that fail during it do not extend it again."""
    rest = Cooldown()
    for seconds in range(5):
        until = NOON + seconds + rest.escalate(NOON - 1, 30, 900)
        rest.extend("capacity", until, waitable=False)
    assert (rest.failure_count, rest.until) == (1, NOON + 34)
    assert rest.escalate(rest.until, 30, 900) == 60


def test_a_running_cooldown_never_ends_sooner() -> None:
    """A failure with an earlier end changes neither the end nor the reason."""
    rest = Cooldown()
    rest.extend("quota_day", NOON + DAY_S, waitable=False)
    rest.extend("quota_minute", NOON + 20, waitable=True)
    assert rest.blocked_by(NOON) == Block("quota_day", NOON + DAY_S, waitable=False)
    rest.extend("quota_day", NOON + 2 * DAY_S, waitable=False)
    assert rest.until == NOON + 2 * DAY_S


def test_one_probe_goes_first_when_a_cooldown_ends() -> None:
    """At its end the scope is available again, except while its probe is in flight."""
    rest = Cooldown()
    rest.extend("capacity", NOON + 30, waitable=False)
    assert rest.blocked_by(NOON + 29.9) == Block("capacity", NOON + 30)
    assert rest.blocked_by(NOON + 30) is None
    rest.begin_probe("1", NOON + 30)
    assert rest.blocked_by(NOON + 30) == Block("probe", NOON + 30.1, waitable=True)


def test_a_slow_probe_delays_others_for_two_seconds() -> None:
    """Every two seconds one more may be sent; the end of an earlier one changes nothing."""
    rest, first, second = Cooldown(), "1", "2"
    rest.extend("capacity", NOON, waitable=False)
    rest.begin_probe(first, NOON)
    assert rest.blocked_by(NOON + 1.95) == Block("probe", NOON + 2, waitable=True)
    assert rest.blocked_by(NOON + 2) is None
    rest.begin_probe(second, NOON + 2)
    rest.end_probe(first)
    assert rest.blocked_by(NOON + 3.99) is not None
    rest.end_probe(second)
    assert rest.blocked_by(NOON + 2) is None


def test_a_clock_that_is_set_back_makes_no_probe_longer() -> None:
    """A probe time far in the future is ignored."""
    rest = Cooldown()
    rest.begin_probe("1", NOON + 3_600)
    assert rest.blocked_by(NOON) is None
