"""The part of each limit that is the pool's, in every backend: the rest is other programs'."""

import pytest
from support.pool import INFO, key
from support.states import failed, granted, refusal, settle

from keyrot_middleware.core.model import Limits, Scope
from keyrot_middleware.state import State

LEARNED = failed(Scope.NONE, learned=Limits(rpm=10, tpm=500, rpd=100))


@pytest.mark.parametrize(("use", "most"), [(1, 10), (0.9, 9), (0.55, 5), (0.01, 1)])
def test_of_a_configured_limit_a_part_is_the_pools(state: State, use: float, most: int) -> None:
    """At least one request of it."""
    assert granted(state, key("a", Limits(rpm=10, max_concurrency=10), use=use)) == most


@pytest.mark.parametrize("limit", ["rpm", "tpm", "rpd"])
@pytest.mark.parametrize("own", [None, 4, 1_000])
def test_of_a_learned_limit_a_part_is_the_pools(state: State, limit: str, own: int | None) -> None:
    """The smaller of both holds, and a part of that."""
    learned = {"rpm": 10, "tpm": 10 * INFO.tokens, "rpd": 10}[limit]
    configured = None if own is None else own * learned // 10
    one = key("a", Limits(**{limit: configured}), use=0.5)
    settle(state, one, failed(Scope.NONE, learned=Limits(**{limit: learned})))
    assert granted(state, one, 50) == (2 if own == 4 else 5) - 1
    assert refusal(state, one).blocks["a"].reason == limit


def test_a_key_without_limits_has_none_for_its_part(state: State) -> None:
    assert granted(state, key("a", use=0.1), 50) == 50
