"""How long the owner of a stored resource is remembered."""

from __future__ import annotations

import pytest
from support.pool import INFO, key
from support.servers import server
from support.sync_async import OK, SyncClient, open_at

from keyrot_middleware.core.affinity import owner_lifetime
from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.state.redis import RedisState
from keyrot_middleware.testing import FakeClock

HOUR_S = 3_600
DAY_S = 24 * HOUR_S


@pytest.mark.parametrize(
    ("name", "days", "renewed"),
    [
        ("files/a", 49 / 24, False),
        ("page:t", 1, False),
        ("continuation:t", 1, False),
        ("batches/b", 60, True),
        ("models/veo/operations/o", 60, True),
        ("interactions/i", 60, True),
        ("fileSearchStores/s", 60, True),
    ],
)
def test_the_owner_is_remembered_as_long_as_the_resource(
    name: str, days: float, renewed: bool
) -> None:
    """A file's for its 48 hours; others for longer than an interaction, and from each use on."""
    lifetime = owner_lifetime(name)
    assert (lifetime.seconds / DAY_S, lifetime.renewed) == (days, renewed)


async def test_memory_forgets_the_owner_of_what_is_over(clock: FakeClock) -> None:
    """A file's owner goes after 49 hours, whoever uses it; a batch's 60 days after its last use."""
    client = SyncClient(open_at("memory://", RetryPolicy(), clock.time))
    lease = await client.acquire_lease(key("a"))
    await client.settle(lease, OK, ["files/f", "batches/b", "caches/never-used"])
    clock.sleep(48 * HOUR_S)
    assert await client.get_owner("files/f") == ("a", "a")
    clock.sleep(2 * HOUR_S)
    assert await client.get_owner("files/f") is None
    clock.sleep(50 * DAY_S)
    assert await client.get_owner("batches/b") == ("a", "a")
    clock.sleep(50 * DAY_S)
    assert await client.get_owner("batches/b") == ("a", "a")
    clock.sleep(60 * DAY_S)
    assert await client.get_owner("batches/b") is None


def test_a_shared_record_is_renewed_when_it_is_used(clock: FakeClock) -> None:
    """The record of a batch lasts for another 60 days; that of a file keeps its end."""
    shared = server("valkey")
    state = RedisState(shared.url, RetryPolicy(), clock.time, pool="owners")
    try:
        lease = state.acquire(INFO, ((0, key("a")),), spread=False)
        state.settle(lease, OK, ["files/f", "batches/b"])
        names = [name for name in shared.names() if name.startswith("keyrot:v2:{owners}:owner:")]
        for name in names:
            shared.execute("EXPIRE", name, "100")
        assert state.get_owner(["none", "files/f"]) == ("a", "a")
        assert state.get_owner(["batches/b"]) == ("a", "a")
        left = sorted(shared.execute("TTL", name) for name in names)
        assert left[0] <= 100
        assert left[1] > 59 * DAY_S
    finally:
        state.close()
