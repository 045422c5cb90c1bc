"""What a process remembers between calls is a guess; wrong or full, it does no harm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from doors import OK, failed
from rig import INFO, key
from servers import server

from keyrot_middleware.core.model import Lease, Limits, Scope, Unavailable
from keyrot_middleware.core.policy import RetryPolicy
from keyrot_middleware.state.redis import RedisState
from keyrot_middleware.state.redis.memo import Epochs

pytestmark = pytest.mark.usefixtures("within_a_minute")

_pools = count()
ONE = key("a", Limits(rpm=3), project="p")


@pytest.fixture
def two() -> Iterator[tuple[RedisState, RedisState]]:
    """Open a pool twice, as two processes do."""
    url, pool = server("valkey").url, f"memo-{next(_pools)}"
    mine, yours = (RedisState(url, RetryPolicy(), pool=pool) for _ in range(2))
    yield mine, yours
    mine.close()
    yours.close()


def lend(state: RedisState, model: str) -> Lease:
    """Borrow the key."""
    lease = state.acquire(INFO._replace(model=model), ((0, ONE),), spread=False)
    assert isinstance(lease, Lease), lease
    return lease


def test_a_bucket_that_another_process_learned_is_used_at_once(
    two: tuple[RedisState, RedisState],
) -> None:
    """Who still believes in the model's own bucket is lent, and refused, in the right one."""
    mine, yours = two
    yours.settle(lend(yours, "model-001"), OK)
    mine.settle(lend(mine, "model-001"), failed(Scope.NONE, bucket="family"))
    for state in (yours, mine, yours):
        assert lend(state, "model-001").bucket == "family"
    refusal = mine.acquire(INFO._replace(model="model-001"), ((0, ONE),), spread=False)
    assert isinstance(refusal, Unavailable)
    used = {u.bucket: u.requests_day for u in mine.snapshot([ONE])["a"].used}
    assert used == {"model-001": 2, "family": 3}


def test_memories_that_are_full_begin_anew(
    two: tuple[RedisState, RedisState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one model and one key: three models in a family are counted as before."""
    monkeypatch.setattr("keyrot_middleware.state.redis.memo.MODELS_KEPT", 1)
    monkeypatch.setattr("keyrot_middleware.state.redis.offers.MADE_KEPT", 1)
    mine, _ = two
    for model in ("m1", "m2", "m3"):
        mine.settle(lend(mine, model), failed(Scope.NONE, bucket=f"{model}-family"))
    for model in ("m1", "m2", "m3", "m1"):
        assert lend(mine, model).bucket == f"{model}-family"


def test_groups_of_any_number_go_in_order(two: tuple[RedisState, RedisState]) -> None:
    """The first group that can serve does, whatever it is called."""
    mine, _ = two
    offer = ((-3, key("low", Limits(rpm=1))), (9, key("high")), (9, key("other")))
    lent = [mine.acquire(INFO, offer, spread=True) for _ in range(3)]
    assert [lease.key_id for lease in lent if isinstance(lease, Lease)] == ["low", "high", "other"]


def test_an_old_epoch_that_comes_late_is_no_loss() -> None:
    """The first is none, a second is one, and an answer from before changes nothing."""
    epochs = Epochs()
    for epoch, losses in ((b"1", 0), (b"1", 0), (b"2", 1), (b"1", 1), (b"2", 1), (b"3", 2)):
        epochs.note(epoch)
        assert epochs.losses == losses
