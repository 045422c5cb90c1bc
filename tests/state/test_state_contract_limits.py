"""The contract of a state: limits are exact, and unused reservations are released."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from support.pool import INFO, key
from support.sync_async import ABANDONED, UNSENT, StateClient, failed, used

from keyrot_middleware.core.model import CallInfo, Limits, Scope, Unavailable
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.testing import FakeClock

PACIFIC = ZoneInfo("America/Los_Angeles")


async def test_requests_a_minute_are_exact(client: StateClient, clock: FakeClock) -> None:
    """RPM 20 leases 20 times in a minute, and 20 again when the guard after its edge is over."""
    one = key("a", Limits(rpm=20))
    assert await client.granted(one) == 20
    reply = await client.acquire(one)
    assert isinstance(reply, Unavailable)
    assert reply.retry_at == clock.time() + 31
    assert reply.blocks["a"].waitable
    clock.advance(30.9)
    assert await client.granted(one) == 0
    clock.advance(0.1)
    assert await client.granted(one) == 20


async def test_unmetered_calls_are_leased_and_not_counted(client: StateClient) -> None:
    """An exhausted minute does not stop countTokens, nor do a hundred of these exhaust one."""
    one, count = key("a", Limits(rpm=20, tpm=100)), INFO._replace(requests=0, tokens=0)
    count = count._replace(verb="countTokens", counts_in_quota=False)
    assert await client.granted(one, most=100, info=count) == 100
    assert await client.granted(one) == 10
    assert await client.granted(one, most=5, info=count) == 5


@pytest.mark.parametrize(("day", "hours"), [((2026, 3, 8), 23), ((2026, 11, 1), 25)])
async def test_requests_a_day_end_at_pacific_midnight(
    client: StateClient, clock: FakeClock, day: tuple[int, int, int], hours: int
) -> None:
    """RPD counts the Pacific day, on the short and the long one too; no call waits for it."""
    begin = datetime(*day, 0, 0, 30, tzinfo=PACIFIC).timestamp()
    clock.advance(begin - clock.time())
    one = key("a", Limits(rpd=3))
    assert await client.granted(one) == 3
    reply = await client.acquire(one)
    assert isinstance(reply, Unavailable)
    assert reply.retry_at == begin - 30 + hours * 3_600
    assert not reply.blocks["a"].waitable
    clock.advance(hours * 3_600 - 31)
    assert await client.granted(one) == 0
    clock.advance(1)
    assert await client.granted(one) == 3


async def test_concurrency_is_released_however_a_lease_ends(client: StateClient) -> None:
    """`max_concurrency` counts what is in flight, whatever its result."""
    one = key("a", Limits(max_concurrency=2))
    for outcome in (used(5), UNSENT, ABANDONED, failed(Scope.NONE)):
        leases = [await client.acquire_lease(one) for _ in range(2)]
        assert await client.refused(one) == {"a": "concurrency"}
        await client.settle(leases.pop(), outcome)
        leases.append(await client.acquire_lease(one))
        assert await client.refused(one) == {"a": "concurrency"}
        for lease in leases:
            await client.settle(lease, outcome)
    assert await client.granted(one, most=9) == 2


async def test_keys_of_one_project_share_one_budget(client: StateClient) -> None:
    """Two keys of a project are one quota; a key without a project has its own."""
    one, two = (key(name, Limits(rpm=5), project="p") for name in "ab")
    assert await client.granted(one, most=3) == 3
    assert await client.granted(two) == 2
    assert await client.refused(one, two) == {"a": "rpm", "b": "rpm"}
    assert await client.granted(key("c", Limits(rpm=5))) == 5


async def test_each_model_has_its_own_budget(client: StateClient) -> None:
    """An exhausted minute of one model is not another's."""
    one = key("a", Limits(rpm=5))
    assert await client.granted(one) == 5
    assert await client.granted(one, info=INFO._replace(model="gemini-2.5-pro")) == 5


async def test_a_smaller_learned_limit_holds_for_a_day(
    client: StateClient, clock: FakeClock
) -> None:
    """`quotaValue` applies to the whole project, and expires after a day."""
    one, two = (key(name, Limits(rpm=100), project="p") for name in "ab")
    outcome = failed(
        Scope.PROJECT_MODEL, clock.time() + 20, learned=Limits(rpm=5), has_known_end=True
    )
    await client.fails(one, outcome)
    clock.advance(60)
    probe = await client.acquire_lease(two)
    await client.settle(probe)
    assert await client.granted(two) == 4
    clock.advance(DAY_S)
    assert await client.granted(one) == 100


@pytest.mark.parametrize(
    ("own", "learned", "info"),
    [
        (Limits(rpm=2), Limits(rpm=5), INFO),
        (Limits(rpd=2), Limits(rpd=5), INFO),
        (Limits(tpm=20), Limits(tpm=50), INFO._replace(tokens=10)),
        (Limits(rpm=2, rpd=50), Limits(rpm=9, rpd=5), INFO),
    ],
)
async def test_a_configured_limit_is_a_cap(
    client: StateClient, own: Limits, learned: Limits, info: CallInfo
) -> None:
    """A larger limit that Google names lets nothing more through: somebody else may use it too."""
    await client.fails(key("a", own), failed(Scope.NONE, learned=learned), info=info)
    assert await client.granted(key("a", own), info=info) == 1


async def test_a_limit_is_learned_from_a_failure_without_a_scope(client: StateClient) -> None:
    """The error body has limits, whoever is to blame."""
    one = key("a")
    await client.fails(one, failed(Scope.NONE, learned=Limits(rpm=3)))
    assert await client.granted(one) == 2


async def test_a_bucket_is_learned(client: StateClient, clock: FakeClock) -> None:
    """When Google counts a name with another model, both names share one budget from then on."""
    one, latest = key("a", Limits(rpm=5)), INFO._replace(model="gemini-flash-latest")
    outcome = failed(Scope.PROJECT_MODEL, clock.time(), bucket=INFO.model)
    await client.fails(one, outcome, info=latest)
    await client.settle(await client.acquire_lease(one, info=latest))
    assert await client.granted(one, most=2, info=latest) == 2
    assert await client.granted(one) == 2


async def test_a_bucket_may_change(client: StateClient, clock: FakeClock) -> None:
    """A `-latest` name moves on to a newer model: the newest response counts, for that name."""
    one, latest = key("a"), INFO._replace(model="gemini-flash-latest")
    soon = clock.time()
    await client.fails(one, failed(Scope.PROJECT_MODEL, soon, bucket=INFO.model), info=latest)
    moved = failed(Scope.PROJECT_MODEL, soon + 20, bucket="gemini-3-flash")
    await client.fails(one, moved, info=latest)
    assert await client.refused(one, info=latest) == {"a": "failure"}
    assert (await client.acquire_lease(one)).bucket == INFO.model
