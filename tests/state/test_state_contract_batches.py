"""Pending batches, for every backend: counted for all, never more than allowed, for a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.fallback import A, FallbackSetup
from support.servers import Server, server
from support.sync_async import OpenBackend, StateClient

from keyrot_middleware.core.batches import PENDING_S, RESERVED_S
from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.state.memory import MAX_BATCHES
from keyrot_middleware.state.redis import RedisState
from keyrot_middleware.testing import FakeClock


async def test_batches_count_until_they_end(client: StateClient) -> None:
    """Each once, however often it is seen, and by project."""
    assert await client.count_batches("p", "q") == {"p": 0, "q": 0}
    await client.update_batches("p", one=PENDING_S, two=PENDING_S)
    await client.update_batches("p", one=PENDING_S)
    assert await client.count_batches("p", "q") == {"p": 2, "q": 0}
    await client.update_batches("p", one=0, unknown=0)
    assert await client.count_batches("p") == {"p": 1}
    assert await client.count_batches() == {}


async def test_places_are_reserved_up_to_the_limit(client: StateClient) -> None:
    """A token holds a place until the name of the batch takes it."""
    assert await client.reserve_batch("p", 2, "token-1")
    assert await client.reserve_batch("p", 2, "token-2")
    assert not await client.reserve_batch("p", 2, "token-3")
    await client.update_batches("p", **{"batches/1": PENDING_S, "token-1": 0})
    assert not await client.reserve_batch("p", 2, "token-3")
    await client.update_batches("p", **{"batches/1": 0})
    assert await client.reserve_batch("p", 2, "token-3")
    assert await client.reserve_batch("q", 1, "token-4")


async def test_what_nobody_looks_at_stops_counting(client: StateClient, clock: FakeClock) -> None:
    """A reserved place after ten minutes, a batch after two days."""
    await client.update_batches("p", batch=PENDING_S)
    assert await client.reserve_batch("p", 5, "token")
    clock.sleep(RESERVED_S + 1)
    assert await client.count_batches("p") == {"p": 1}
    clock.sleep(PENDING_S)
    assert await client.count_batches("p") == {"p": 0}
    assert await client.reserve_batch("p", 1, "token")


async def test_the_batches_kept_are_bounded(client: StateClient) -> None:
    """However many a project lists."""
    await client.update_batches("p", **{f"b{n}": PENDING_S for n in range(MAX_BATCHES + 5)})
    assert await client.count_batches("p") == {"p": MAX_BATCHES}


def test_many_threads_reserve_no_more_than_allowed(open_backend: OpenBackend) -> None:
    """At one moment, from as many threads."""
    state = open_backend()
    with ThreadPoolExecutor(8) as threads:
        granted = threads.map(lambda n: state.reserve_batch("p", 5, f"t{n}"), range(40))
        assert sum(granted) == 5


class TestShared:
    """What processes that share a server see of each other."""

    @pytest.fixture
    def at(self) -> Server:
        """Give the server that tests share, emptied."""
        one = server("valkey")
        one.execute("FLUSHALL")
        return one

    @pytest.fixture
    def two(self, at: Server) -> Iterator[tuple[RedisState, RedisState]]:
        """Open a pool twice."""
        states = RedisState(at.url, RetryPolicy()), RedisState(at.url, RetryPolicy())
        yield states
        for state in states:
            state.close()

    def test_a_place_taken_by_one_is_taken_for_all(
        self, two: tuple[RedisState, RedisState]
    ) -> None:
        """And free for all when one of them has seen the end of the batch."""
        one, other = two
        assert one.reserve_batch("p", 1, "token")
        one.update_batches("p", {"token": 0.0, "batches/b": PENDING_S})
        assert not other.reserve_batch("p", 1, "token")
        other.update_batches("p", {"batches/b": 0.0})
        assert one.count_batches(["p"]) == {"p": 0}

    def test_the_record_has_an_end_and_no_names(
        self, two: tuple[RedisState, RedisState], at: Server
    ) -> None:
        """It goes after two days, and shows digests."""
        two[0].update_batches("p", {"batches/secret": PENDING_S})
        (name,) = [name for name in at.names() if ":batches:" in name]
        assert 0 < at.execute("TTL", name) <= PENDING_S
        assert b"secret" not in at.execute("ZRANGE", name, 0, -1)[0]

    @pytest.mark.parametrize("garbage", [("SET", "text"), ("HSET", "a", "b"), ("RPUSH", "a")])
    def test_a_record_that_cannot_be_read_is_dropped(
        self, garbage: tuple[str, ...], two: tuple[RedisState, RedisState], at: Server
    ) -> None:
        """The next one writes it anew."""
        state, command, *values = two[0], *garbage
        at.execute(command, "keyrot:v1:{default}:batches:p", *values)
        assert state.count_batches(["p"]) == {"p": 0}
        at.execute("DEL", "keyrot:v1:{default}:batches:p")
        at.execute(command, "keyrot:v1:{default}:batches:p", *values)
        assert state.reserve_batch("p", 1, "token")
        assert state.count_batches(["p"]) == {"p": 1}


class TestFallback:
    """A shared state that is away."""

    async def test_this_process_goes_on_by_what_it_knows(self, setup: FallbackSetup) -> None:
        """It knows the batches that it has made, and reports those that it makes meanwhile."""
        client, other = setup.client, setup.other
        assert await client.reserve_batch("p", 2, "token")
        await client.update_batches("p", **{"token": 0, "batches/1": PENDING_S})
        setup.shared.cut()
        assert await client.count_batches("p") == {"p": 1}
        assert await client.reserve_batch("p", 2, "token")
        await client.update_batches("p", **{"token": 0, "batches/2": PENDING_S})
        assert not await client.reserve_batch("p", 2, "token")
        setup.restore()
        await client.acquire_lease(A)
        assert await other.count_batches("p") == {"p": 2}

    async def test_meanwhile_it_uses_its_share_of_the_limit(
        self, kind: type[StateClient], clock: FakeClock
    ) -> None:
        """And at least one place."""
        setup = FallbackSetup(kind, clock, share=0.5)
        setup.shared.cut()
        granted = [await setup.client.reserve_batch("p", 4, f"t{n}") for n in range(4)]
        assert granted == [True, True, False, False]
        assert await setup.client.reserve_batch("q", 1, "token")
