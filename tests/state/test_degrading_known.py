"""A shared state that fails: what this process knew of its keys by then goes on to hold."""

from __future__ import annotations

from math import inf

import pytest
from doors import failed
from outage import A, B, Both, C
from rig import INFO, key

from keyrot_middleware.core.model import Lease, Limits, Scope, Unavailable


@pytest.mark.parametrize("until", [60.0, inf])
async def test_cooldowns_of_this_process_are_kept(both: Both, until: float) -> None:
    """A key that failed here rests on, and comes back when its time is over."""
    until = both.clock.time() + until
    assert await both.door.fails(C, failed(Scope.KEY, until)) == until
    both.shared.cut()
    assert await both.door.refused(C) == {"c": "failure"}
    both.clock.advance(60)
    reply = await both.door.acquire(C)
    assert isinstance(reply, Lease) == (until < inf)


@pytest.mark.parametrize(
    ("failure", "scope", "rests"),
    [
        ("key_invalid", Scope.KEY, "a"),
        ("quota_minute", Scope.PROJECT_MODEL, "ab"),
        ("project_denied", Scope.PROJECT, "ab"),
        ("capacity", Scope.KEY_MODEL, "a"),
        ("something_new", Scope.KEY_MODEL, "a"),
    ],
)
async def test_cooldowns_of_other_processes_are_kept(
    both: Both, failure: str, scope: Scope, rests: str
) -> None:
    """A refusal tells why, and so of whom: the key, or its project with the other keys of it."""
    outcome = failed(scope, both.clock.time() + 60)
    assert outcome.verdict is not None
    object.__setattr__(outcome.verdict, "failure", failure)
    await both.other.fails(A, outcome)
    assert await both.door.refused(A) == {"a": failure}
    both.shared.cut()
    found = [one.key_id for one in (A, B) if isinstance(await both.door.acquire(one), Unavailable)]
    assert "".join(found) == rests


async def test_a_day_that_others_spent_is_spent(both: Both) -> None:
    """The day's end is hours away: a refusal for it is kept, one for a minute is not."""
    day, minute = key("d", Limits(rpd=3)), key("m", Limits(rpm=3))
    for one in (day, minute):
        assert await both.other.granted(one) == 3
    assert await both.door.refused(day, minute) == {"d": "rpd", "m": "rpm"}
    both.shared.cut()
    assert await both.door.refused(day) == {"d": "rpd"}
    assert await both.door.granted(minute) == 3


async def test_what_was_brought_back_elsewhere_is_back_here(both: Both) -> None:
    """A key that the shared state lends again has no cooldown here either."""
    await both.door.fails(C, failed(Scope.KEY, inf))
    both.other.state.reset(C)
    await both.door.settle(await both.door.lend(C))
    both.shared.cut()
    await both.door.lend(C)


async def test_a_grant_from_before_a_failure_does_not_undo_it(both: Both) -> None:
    """A lease asked for before another one's 429 is no news about the cooldown."""
    first = await both.door.lend(C)
    local = both.state._local
    struck = local.struck
    granted = both.shared.inner.acquire(INFO, ((0, C),), spread=False)
    assert isinstance(granted, Lease)
    await both.door.settle(first, failed(Scope.KEY, inf))
    local.lent(granted, INFO.model, struck)
    both.shared.cut()
    assert await both.door.refused(C) == {"c": "failure"}


async def test_learned_limits_and_buckets_are_kept(both: Both) -> None:
    """What a 429 taught is in force here too, under the name that Google counts with."""
    latest = INFO._replace(model="gemini-flash-latest")
    told = failed(Scope.NONE, bucket=INFO.model, learned=Limits(rpm=3))
    await both.door.fails(C, told, info=latest)
    both.shared.cut()
    assert await both.door.granted(C, info=latest) == 3
    assert await both.door.refused(C) == {"c": "rpm"}


async def test_a_bucket_that_others_learned_is_kept(both: Both) -> None:
    """A lease tells by which name its model is counted."""
    latest = INFO._replace(model="gemini-flash-latest")
    await both.other.fails(C, failed(Scope.NONE, bucket=INFO.model), info=latest)
    await both.door.lend(C, info=latest)
    both.shared.cut()
    assert (await both.door.lend(C, info=latest)).bucket == INFO.model


async def test_health_is_told_from_here(both: Both) -> None:
    """While the shared state is away, a snapshot tells what this process knows."""
    await both.door.settle(await both.door.lend(C))
    both.shared.cut()
    await both.door.fails(C, failed(Scope.KEY, inf))
    health = both.state.snapshot([C])["c"]
    assert (health.success_count, health.error_count, health.last_error) == (1, 1, "failure")
    assert health.cooldown_until == inf
    assert health.used[0].requests_minute == 2
