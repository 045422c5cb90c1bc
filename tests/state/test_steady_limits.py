"""Limits that the headers of a success name: they refill all the time, as a bucket does."""

from random import Random

import pytest
from support.pool import INFO, key
from support.states import URIS, acquire, open_at

from keyrot_middleware.core.model import (
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Reported,
    Unavailable,
    Usage,
)
from keyrot_middleware.testing import FakeClock

ONE, LIMIT, TOKENS = key("a"), 60, 600


class Bucket:
    """A service that refuses what does not fit, and refills steadily."""

    def __init__(self, clock: FakeClock, used: float = 0.0) -> None:
        self.clock, self.used, self.at = clock, used, clock.time()

    def answer(self) -> Reported:
        """Take a request; say what is left."""
        now = self.clock.time()
        self.used = max(self.used - (now - self.at) * LIMIT / 60, 0.0) + 1
        self.at = now
        assert self.used <= LIMIT + 1e-6, "a 429"
        return Reported("rpm", LIMIT, int(LIMIT - self.used))


@pytest.mark.parametrize("uri", URIS)
@pytest.mark.parametrize("seed", range(3))
def test_no_request_is_refused_at_twice_the_limit(uri: str, seed: int) -> None:
    """From the first answer on, wherever in a minute that comes, and whatever others have used."""
    draw, clock = Random(seed), FakeClock()
    clock.advance(draw.uniform(0, 60))
    state, server = open_at(uri, clock.time), Bucket(clock, used=draw.choice([0, 20, 50]))
    begin, sent = clock.time(), 0
    while clock.time() < begin + 180:
        lease = acquire(state, ONE)
        if isinstance(lease, Unavailable):
            block = lease.blocks["a"]
            assert (block.reason, block.waitable) == ("rpm", True)
            clock.advance(max(block.until - clock.time(), 0.001))
            continue
        reported = server.answer()
        state.settle(lease, Outcome(LeaseOutcome.SUCCESS, None, Usage(1), [reported]))
        sent += 1
        clock.advance(draw.expovariate(2.0))
    assert sent > 2 * LIMIT  # of three minutes, the first of which fills the bucket's place


@pytest.mark.parametrize("uri", URIS)
def test_what_is_used_of_tokens_drains(uri: str) -> None:
    """A key waits for as many as a request needs, not for the end of a minute."""
    clock = FakeClock()
    clock.advance(60 - clock.time() % 60 + 2)
    state = open_at(uri, clock.time)
    info = INFO._replace(tokens=500)
    first = acquire(state, ONE, info=info)
    assert isinstance(first, Lease)
    found = [Reported("tpm", TOKENS, 100)]
    state.settle(first, Outcome(LeaseOutcome.SUCCESS, None, Usage(500), found))
    assert state.snapshot([ONE])["a"].used[0].limits == Limits(tpm=TOKENS)
    assert isinstance(acquire(state, ONE, info=INFO._replace(tokens=100)), Lease)
    clock.advance(60)
    reply = acquire(state, ONE, info=info)
    assert isinstance(reply, Unavailable)
    assert reply.blocks["a"].until - clock.time() == pytest.approx(50 - 1, abs=1.1)
    clock.advance(reply.blocks["a"].until - clock.time())
    assert isinstance(acquire(state, ONE, info=info), Lease)
