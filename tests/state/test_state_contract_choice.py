"""The contract of a state: which candidate is leased, who owns a resource, what is reported."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from support.pool import INFO, key
from support.sync_async import OK, UNSENT, StateClient, failed, used

from keyrot_middleware.core.ledger import KeyHealth, Used
from keyrot_middleware.core.model import NO_LIMITS, Lease, Limits, Scope, Unavailable
from keyrot_middleware.testing import FakeClock

A, B, C = (key(name, Limits(rpm=10)) for name in "abc")


async def test_the_first_candidate_with_room_is_leased(client: StateClient) -> None:
    """Without spreading the order of the candidates is the order of use."""
    small = key("small", Limits(rpm=2))
    leased = [(await client.acquire_lease(small, B, C)).key_id for _ in range(4)]
    assert leased == ["small", "small", "b", "b"]
    free = key("free"), key("second")
    assert [(await client.acquire_lease(*free)).key_id for _ in range(4)] == ["free"] * 4


async def test_spreading_leases_the_least_utilized_key(client: StateClient) -> None:
    """Within a group the used fraction of the limit counts, not the number of requests."""
    large = key("large", Limits(rpm=30))
    leased = [(await client.acquire_lease(A, large, spread=True)).key_id for _ in range(20)]
    assert (leased.count("a"), leased.count("large")) == (5, 15)
    equal = [(await client.acquire_lease(B, C, spread=True)).key_id for _ in range(4)]
    assert equal == ["b", "c", "b", "c"]


async def test_spreading_without_limits_goes_by_weight(client: StateClient) -> None:
    """Where no limit is known a key of weight 3 takes three times as many."""
    heavy, light = key("heavy", weight=3.0), key("light")
    leased = [(await client.acquire_lease(light, heavy, spread=True)).key_id for _ in range(40)]
    assert leased.count("heavy") == 30


async def test_a_lower_group_goes_first_however_used(client: StateClient) -> None:
    """A priority is never traded for a better share."""
    leased = [(await client.acquire_lease((0, A), (1, B), spread=True)).key_id for _ in range(12)]
    assert leased == ["a"] * 10 + ["b"] * 2


async def test_a_refusal_has_every_keys_reason_and_the_soonest_time(
    client: StateClient, clock: FakeClock
) -> None:
    """No key is available: the reason of each key, and when the first is available again."""
    await client.fails(A, failed(Scope.KEY, clock.time() + 5, has_known_end=True))
    await client.fails(B, failed(Scope.KEY, inf))
    reply = await client.acquire(A, B)
    assert isinstance(reply, Unavailable)
    assert (reply.at, reply.retry_at) == (clock.time(), clock.time() + 5)
    assert (await client.acquire_lease(A, B, C)).key_id == "c"
    empty = await client.acquire()
    assert isinstance(empty, Unavailable)
    assert empty.retry_at == inf


async def test_a_lease_has_its_key_reservation_and_tier(
    client: StateClient, clock: FakeClock
) -> None:
    """Its key, reservation, time and tier: for sending and for telemetry."""
    one = replace(A, tier="paid")
    lease = await client.acquire_lease(one, info=INFO._replace(tokens=77, requests=2))
    assert lease._replace(reservation=None, degraded=False) == Lease(
        key_id="a",
        project="a",
        billing_account="a",
        bucket=INFO.model,
        verb=INFO.verb,
        tokens=77,
        requests=2,
        at=clock.time(),
        tier="paid",
        record="a",
    )


async def test_the_owner_of_a_stored_resource_is_known(client: StateClient) -> None:
    """The first known of several names decides; the newest owner counts."""
    assert await client.get_owner("files/x") is None
    await client.settle(
        await client.acquire_lease(key("a", project="p")), OK, ("files/x", "files/y")
    )
    assert await client.get_owner("files/none", "files/y") == ("a", "p")
    await client.settle(await client.acquire_lease(B), OK, ("files/y",))
    assert await client.get_owner("files/y", "files/x") == ("b", "b")
    assert await client.get_owner() is None


async def test_a_resource_name_may_be_recorded_after_the_settle(client: StateClient) -> None:
    """It is recorded like the others, and counts or releases nothing a second time."""
    most = key("a", Limits(max_concurrency=1), project="p")
    lease = await client.acquire_lease(most)
    await client.settle(lease)
    other = await client.acquire_lease(most)
    before = client.state.snapshot([most])
    await client.set_owner(lease, "files/late")
    assert await client.get_owner("files/late") == ("a", "p")
    assert client.state.snapshot([most]) == before
    assert await client.refused(most) == {"a": "concurrency"}
    await client.settle(other)


async def test_a_snapshot_has_what_is_known_of_each_key(
    client: StateClient, clock: FakeClock
) -> None:
    """Counts, the latest running cooldown, and the project's usage of each model."""
    now = clock.time()
    await client.settle(await client.acquire_lease(A, info=INFO._replace(tokens=50)), used(40))
    await client.fails(A, failed(Scope.KEY_MODEL, now + 5))
    clock.advance(5)
    until = clock.time() + 60
    await client.fails(A, failed(Scope.PROJECT, until, learned=Limits(rpm=5)))
    snapshot = client.state.snapshot([A, B])
    assert snapshot["a"] == KeyHealth(
        last_used=clock.time(),
        success_count=1,
        error_count=2,
        cooldown_until=until,
        cooldown_reason="failure",
        cooldown_scope="project",
        last_error="failure",
        used=[Used(INFO.model, 3, 60, 3, Limits(rpm=5))],
    )
    assert snapshot["b"] == KeyHealth()


async def test_a_snapshot_sees_the_widest_and_latest_cooldown(
    client: StateClient, clock: FakeClock
) -> None:
    """A billing account's cooldown is that of each of its keys; a shorter one does not hide it."""
    one = key("a", project="p", billing_account="x")
    two = key("b", project="q", billing_account="x")
    leases = [await client.acquire_lease(one) for _ in range(2)]
    await client.settle(leases[0], failed(Scope.BILLING, clock.time() + 90))
    await client.settle(leases[1], failed(Scope.KEY, clock.time() + 20))
    snapshot = client.state.snapshot([one, two, C])
    assert {key_id: known.cooldown_scope for key_id, known in snapshot.items()} == {
        "a": "billing",
        "b": "billing",
        "c": None,
    }


async def test_a_snapshot_is_of_now(client: StateClient, clock: FakeClock) -> None:
    """Past windows count nothing, and what was learned for a day expires."""
    await client.fails(A, failed(Scope.NONE, learned=Limits(rpm=5)))
    clock.advance(3 * 86_400)
    assert client.state.snapshot([A])["a"].used == [Used(INFO.model, 0, 0, 0, NO_LIMITS)]


async def test_a_report_on_a_key_without_a_lease_is_recorded(
    client: StateClient, clock: FakeClock
) -> None:
    """A failure reported by hand cools its key down, and releases no reservation."""
    by_hand = Lease("a", "a", "a", INFO.model, INFO.verb, 0, 0, at=clock.time())
    busy = key("a", Limits(max_concurrency=1))
    lease = await client.acquire_lease(busy)
    outcome = failed(Scope.KEY_MODEL, clock.time() + 20, bucket="gemini-3-flash")
    assert await client.settle(by_hand, outcome) == clock.time() + 20
    assert await client.refused(busy, info=INFO._replace(model="gemini-3-flash")) == {
        "a": "failure"
    }
    await client.settle(by_hand, OK)
    await client.settle(by_hand, UNSENT)
    assert await client.refused(busy, info=INFO._replace(model="x")) == {"a": "concurrency"}
    await client.settle(lease)
    assert client.state.snapshot([busy])["a"].success_count == 2
