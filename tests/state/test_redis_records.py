"""Records in Redis: one slot per pool, always expiring, nothing secret, and small."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import count
from math import inf
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from support.pool import INFO, MODEL, key
from support.redis_state import accept_loss
from support.servers import Server, server
from support.sync_async import OK, UNSENT, failed, used

from keyrot_middleware.core.model import Candidate, Lease, Limits, RetryPolicy, Scope, Unavailable
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.state.base import DataLostError
from keyrot_middleware.state.redis import RedisState, connections
from keyrot_middleware.testing import FakeClock

pytestmark = pytest.mark.usefixtures("within_a_minute")

_pools = count()


@pytest.fixture
def shared() -> Server:
    """Return the shared server, emptied."""
    one = server("valkey")
    one.execute("FLUSHALL")
    return one


@pytest.fixture
def state(shared: Server) -> Iterator[RedisState]:
    """Open a pool on the server's own clock."""
    state = RedisState(shared.url, RetryPolicy(), pool=f"records-{next(_pools)}")
    yield state
    state.close()


def acquire_lease(state: RedisState, one: Candidate, **info: Any) -> Lease:
    """Acquire one key."""
    lease = state.acquire(INFO._replace(**info), ((0, one),), spread=False)
    assert isinstance(lease, Lease), lease
    return lease


def everything(state: RedisState) -> None:
    """Write a record of every kind."""
    one = key("a", Limits(rpm=50, max_concurrency=5), project="p", billing_account="acc")
    acquire_lease(state, one)
    state.settle(
        acquire_lease(state, one), used(12), ["files/secret-name", "continuation:" + "x" * 500]
    )
    for scope in (Scope.KEY, Scope.KEY_VERB, Scope.PROJECT, Scope.BILLING):
        state.settle(acquire_lease(state, one), failed(scope, None, learned=Limits(rpm=9)))
        state.reset(one)
    state.settle(acquire_lease(state, one), failed(Scope.PROJECT_MODEL, bucket="family"))
    state.settle(acquire_lease(state, key("b")), failed(Scope.KEY, inf))


def test_every_record_has_the_pools_tag_and_an_end(state: RedisState, shared: Server) -> None:
    """All names have the same prefix and hash tag; each record expires, within 30 days."""
    everything(state)
    names = shared.names()
    kinds = {name.split(":")[3] for name in names}
    assert kinds == {
        "bucket",
        "buckets",
        "cooldown",
        "cooling",
        "epoch",
        "health",
        "lease",
        "owner",
        "quota",
        "replies",
    }
    (tag,) = {name.split(":")[2] for name in names}
    assert tag.startswith("{records-")
    ends = {name: shared.execute("TTL", name) for name in names}
    assert all(0 < seconds <= 30 * DAY_S for seconds in ends.values()), ends


def test_names_of_stored_things_are_digests(state: RedisState, shared: Server) -> None:
    """Neither a file's name nor a continuation token is stored on the server."""
    everything(state)
    for name in shared.names():
        if shared.execute("TYPE", name) == b"string":
            assert b"secret-name" not in shared.execute("GET", name)
        assert "secret-name" not in name
        assert "xxx" not in name
    assert state.get_owner(["files/other", "files/secret-name"]) == ("a", "p")


def test_a_refusal_writes_nothing(state: RedisState, shared: Server) -> None:
    """An acquire that is refused leaves every record and its expiry as they were."""
    keys = [key("a", Limits(rpm=1)), key("b", Limits(max_concurrency=1)), key("c"), key("d")]
    for one in keys[:2]:
        acquire_lease(state, one)
    state.settle(acquire_lease(state, keys[2]), failed(Scope.KEY_MODEL))
    state.settle(acquire_lease(state, keys[3]), failed(Scope.PROJECT, inf))
    before = {
        name: (shared.execute("DUMP", name), shared.execute("PEXPIRETIME", name))
        for name in shared.names()
    }
    for spread in (False, True):
        offer = tuple((0, one) for one in keys)
        assert isinstance(state.acquire(INFO, offer, spread=spread), Unavailable)
    after = {
        name: (shared.execute("DUMP", name), shared.execute("PEXPIRETIME", name))
        for name in shared.names()
    }
    assert after == before


def test_a_call_costs_two_commands_and_no_search(state: RedisState, shared: Server) -> None:
    """One EVALSHA to acquire among eight keys, one to settle; no KEYS, no SCAN."""
    offer = tuple((0, key(f"k{n}", Limits(rpm=100, max_concurrency=9))) for n in range(8))
    state.settle(acquire_lease(state, offer[0][1]), OK)
    acquire_lease(state, offer[0][1])
    shared.execute("CONFIG", "RESETSTAT")
    for _ in range(10):
        lease = state.acquire(INFO, offer, spread=True)
        assert isinstance(lease, Lease)
        state.settle(lease, used(11))
    stats = commands(shared)
    assert stats["evalsha"] == 20
    assert not {"eval", "keys", "scan", "hscan", "sscan", "zscan"} & set(stats)


def test_a_call_without_max_concurrency_costs_one_script(
    state: RedisState, shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script that acquires settles what has succeeded before, also with cooldowns about."""
    monkeypatch.setattr(connections, "FLUSH_S", 60.0)
    offer = tuple((0, key(f"k{n}", Limits(rpm=100))) for n in range(8))
    acquire_lease(state, offer[0][1])
    state.settle(acquire_lease(state, key("other")), failed(Scope.KEY))
    shared.execute("CONFIG", "RESETSTAT")
    for _ in range(10):
        lease = state.acquire(INFO, offer, spread=True)
        assert isinstance(lease, Lease)
        state.settle(lease, used(11))
    assert commands(shared)["evalsha"] == 10
    known = state.snapshot([one for _, one in offer])
    assert sum(health.success_count for health in known.values()) == 10


def commands(shared: Server) -> dict[str, int]:
    """Count how often each command was run since the last reset."""
    rows = shared.execute("INFO", "commandstats")
    return {name.removeprefix("cmdstat_"): row["calls"] for name, row in rows.items()}


def test_a_key_and_model_in_use_take_at_most_a_kilobyte(state: RedisState, shared: Server) -> None:
    """Two thousand keys, each used with limits and a slot in max_concurrency: bytes of memory."""
    keys = [
        key(f"key_{n:05}", Limits(rpm=9, tpm=999, rpd=99, max_concurrency=2)) for n in range(2_000)
    ]
    acquire_lease(state, key("first"))
    before = memory(shared)
    for one in keys:
        acquire_lease(state, one)
    each = (memory(shared) - before) / len(keys)
    assert each <= 1024, each


def memory(shared: Server) -> int:
    """Return how much memory the server uses."""
    return int(shared.execute("INFO", "memory")["used_memory"])


def test_pools_of_two_names_share_nothing(shared: Server) -> None:
    """Two pools on one server have a limit of their own each."""
    one = key("a", Limits(rpm=1))
    states = [RedisState(shared.url, RetryPolicy(), pool=name) for name in ("x", "y")]
    for state in states:
        acquire_lease(state, one)
    for state in states:
        assert isinstance(state.acquire(INFO, ((0, one),), spread=False), Unavailable)
        state.close()


def test_unusual_names_do_not_collide(state: RedisState) -> None:
    """A project `a:b` with model `c` and a project `a` with model `b:c` have a window each."""
    first, second = key("k1", Limits(rpm=1), project="a:b"), key("k2", Limits(rpm=1), project="a")
    acquire_lease(state, first, model="c")
    acquire_lease(state, second, model="b:c")
    used_of = {k: v.used for k, v in state.snapshot([first, second]).items()}
    assert [used.bucket for used in used_of["k1"] if used.requests_day] == ["c"]
    assert [used.bucket for used in used_of["k2"] if used.requests_day] == ["b:c"]


def test_a_lone_surrogate_in_a_model_is_no_error(state: RedisState) -> None:
    """A string that UTF-8 cannot hold is sent anyway: Google decides about it."""
    assert acquire_lease(state, key("a"), model="m\ud800").key_id == "a"


def test_the_servers_clock_decides(shared: Server) -> None:
    """A host whose clock is five minutes behind cools a key down as long as the others."""
    late, right = FakeClock(_now(shared) - 300), FakeClock(_now(shared))
    behind = RedisState(shared.url, RetryPolicy(), late.time, pool="clocks")
    other = RedisState(shared.url, RetryPolicy(), right.time, pool="clocks")
    one = key("a")
    lease = acquire_lease(behind, one)
    assert lease.at == pytest.approx(late.time(), abs=5)
    until = behind.settle(lease, failed(Scope.KEY, late.time() + 60, has_known_end=True))
    assert until == pytest.approx(late.time() + 60, abs=5)
    for state, clock in ((behind, late), (other, right)):
        refusal = state.acquire(INFO, ((0, one),), spread=False)
        assert isinstance(refusal, Unavailable)
        assert refusal.retry_at == pytest.approx(clock.time() + 60, abs=5)
        seen = state.snapshot([one])["a"]
        assert seen.cooldown_until == pytest.approx(clock.time() + 60, abs=5)
        state.close()


def _now(shared: Server) -> float:
    seconds, micros = shared.execute("TIME")
    return int(seconds) + int(micros) / 1e6


@pytest.mark.parametrize("days", [-30, -1.5, 0, 1.5, 30])
def test_a_hosts_wrong_date_does_not_move_the_pacific_day(
    days: float, shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The day ends at the midnight after the server's time, for hosts that are off by days."""
    moment = datetime(2026, 3, 8, 12, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()
    state = RedisState(shared.url, RetryPolicy(), pool=f"date{days}", test_clock=lambda: moment)
    monkeypatch.setattr(state, "_midnights", _elsewhen(state, days))
    one = key("a", Limits(rpd=1))
    acquire_lease(state, one)
    refusal = state.acquire(INFO, ((0, one),), spread=False)
    assert isinstance(refusal, Unavailable)
    state.close()
    right = datetime(2026, 3, 9, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()
    if abs(days) <= 2:
        assert refusal.retry_at == right
    elif days < 0:
        assert abs(refusal.retry_at - right) <= 3_600


def _elsewhen(state: RedisState, days: float) -> Any:
    midnights = state._midnights
    return lambda now: midnights(now + days * DAY_S)


def test_a_reset_ends_every_cooldown_of_a_key(state: RedisState) -> None:
    """A reset by hand ends cooldowns of the key, of its project and of its account."""
    one = key("a", project="p", billing_account="acc")
    for scope, until in ((Scope.KEY, inf), (Scope.PROJECT_MODEL, None), (Scope.BILLING, inf)):
        state.settle(acquire_lease(state, one), failed(scope, until))
        assert isinstance(state.acquire(INFO, ((0, one),), spread=False), Unavailable)
        state.reset(one)
        state.settle(acquire_lease(state, one), OK)


def test_the_probe_of_a_dead_worker_expires(shared: Server, clock: FakeClock) -> None:
    """A probe that never returns is followed by another after the lease."""
    state = RedisState(shared.url, RetryPolicy(), pool="probe", lease_s=40.0, test_clock=clock.time)
    one = key("a")
    state.settle(acquire_lease(state, one), failed(Scope.KEY))
    clock.advance(30)
    assert acquire_lease(state, one).probe
    refusal = state.acquire(INFO, ((0, one),), spread=False)
    assert isinstance(refusal, Unavailable)
    assert refusal.blocks["a"].reason == "probe"
    clock.advance(40)
    assert acquire_lease(state, one).probe
    state.close()


def test_a_settle_after_a_data_loss_leaves_no_negative_count(
    state: RedisState, shared: Server
) -> None:
    """Flushed between acquire and settle: the released usage makes no count negative."""
    one = key("a", Limits(rpm=10, max_concurrency=3))
    lease = acquire_lease(state, one)
    shared.execute("FLUSHALL")
    with pytest.raises(DataLostError):
        acquire_lease(state, one)
    accept_loss(state)
    acquire_lease(state, one)
    state.settle(lease, UNSENT)
    state.settle(lease, UNSENT)
    (known,) = [used for used in state.snapshot([one])["a"].used if used.bucket == MODEL]
    assert (known.requests_minute, known.tokens_minute, known.requests_day) == (0, 0, 0)
