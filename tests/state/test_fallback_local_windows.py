"""A shared state that fails: what this process knew of its keys still applies."""

from __future__ import annotations

from math import inf

import pytest
from support.fallback import C, FallbackSetup
from support.pool import INFO
from support.sync_async import failed

from keyrot_middleware.core.model import Lease, Limits, Scope


@pytest.mark.parametrize("until", [60.0, inf])
async def test_cooldowns_of_this_process_are_kept(setup: FallbackSetup, until: float) -> None:
    """A key that failed in this process is still cooling down, and is available when that ends."""
    until = setup.clock.time() + until
    assert await setup.client.fails(C, failed(Scope.KEY, until)) == until
    setup.shared.cut()
    assert await setup.client.refused(C) == {"c": "failure"}
    setup.clock.advance(60)
    reply = await setup.client.acquire(C)
    assert isinstance(reply, Lease) == (until < inf)


async def test_learned_limits_and_buckets_are_kept(setup: FallbackSetup) -> None:
    """A limit from a 429 applies here too, in the bucket that Google counts the model in."""
    latest = INFO._replace(model="gemini-flash-latest")
    outcome = failed(Scope.NONE, bucket=INFO.model, learned=Limits(rpm=3))
    await setup.client.fails(C, outcome, info=latest)
    setup.shared.cut()
    assert await setup.client.granted(C, info=latest) == 3
    assert await setup.client.refused(C) == {"c": "rpm"}


async def test_a_bucket_that_others_learned_is_kept(setup: FallbackSetup) -> None:
    """A lease names the bucket in which its model is counted."""
    latest = INFO._replace(model="gemini-flash-latest")
    await setup.other.fails(C, failed(Scope.NONE, bucket=INFO.model), info=latest)
    await setup.client.acquire_lease(C, info=latest)
    setup.shared.cut()
    assert (await setup.client.acquire_lease(C, info=latest)).bucket == INFO.model


async def test_a_snapshot_in_an_outage_is_this_process_own(setup: FallbackSetup) -> None:
    """While the shared state is down, a snapshot reports what this process knows."""
    await setup.client.settle(await setup.client.acquire_lease(C))
    setup.shared.cut()
    await setup.client.fails(C, failed(Scope.KEY, inf))
    health = setup.state.snapshot([C])["c"]
    assert (health.success_count, health.error_count, health.last_error) == (1, 1, "failure")
    assert health.cooldown_until == inf
    assert health.used[0].requests_minute == 2
