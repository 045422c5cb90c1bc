"""A shared state that fails: what this process knew of its keys by then goes on to hold."""

from __future__ import annotations

from math import inf

import pytest
from doors import failed
from outage import Both, C
from support.pool import INFO

from keyrot_middleware.core.model import Lease, Limits, Scope


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
