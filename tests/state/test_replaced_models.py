"""A model that another one answers: both names count in one limit, in every backend."""

import pytest
from support.pool import INFO, key
from support.states import UNSENT, failed, granted, lease_of, refused, settle, used

from keyrot_middleware.core.model import Limits, Scope, Terms
from keyrot_middleware.state import State
from keyrot_middleware.testing import FakeClock

OLD = INFO._replace(model="gemini-2.5-flash", replaced_by="gemini-3.5-flash-lite")
NEW = INFO._replace(model="gemini-3.5-flash-lite")
FIVE = key("five", Limits(rpm=5))


def counts(state: State, one: object = FIVE) -> dict[str, int]:
    (health,) = state.snapshot([one]).values()  # type: ignore[list-item]
    return {used.bucket: used.requests_minute for used in health.used}


def test_two_names_of_a_model_have_one_limit(state: State) -> None:
    """Of a limit of five, five requests are sent, whichever name each has."""
    for info in (OLD, NEW, OLD, NEW, OLD):
        lease_of(state, FIVE, info=info)
    for info in (OLD, NEW):
        assert refused(state, FIVE, info=info) == {"five": "rpm"}
        assert set(state.get_blocks(info, [FIVE])) == {"five"}
    assert counts(state) == {"gemini-3.5-flash-lite": 5, "gemini-2.5-flash": 3}


def test_a_version_that_does_not_know_of_it_sees_each_request_of_the_old_name(
    state: State,
) -> None:
    """It counts them under the old name alone, and both together keep the limit of that name."""
    unaware = OLD._replace(replaced_by="")
    assert granted(state, FIVE, 3, info=unaware) == 3
    assert granted(state, FIVE, info=OLD) == 2
    assert refused(state, FIVE, info=unaware) == {"five": "rpm"}


def test_what_a_request_has_used_is_corrected_under_both_names(state: State) -> None:
    """Also that nothing was sent."""
    few = key("few", Limits(tpm=100))
    settle(state, few, used(30), info=OLD._replace(tokens=90))
    settle(state, few, UNSENT, info=OLD._replace(tokens=60))
    (health,) = state.snapshot([few]).values()
    assert {one.bucket: one.tokens_minute for one in health.used} == {
        "gemini-3.5-flash-lite": 30,
        "gemini-2.5-flash": 30,
    }


@pytest.mark.parametrize("named", ["gemini-2.5-flash", "gemini-3.5-flash-lite"])
def test_a_429_of_either_name_is_that_of_both(state: State, clock: FakeClock, named: str) -> None:
    """Its limit and its cooldown too, under whichever name the provider reports it."""
    until = clock.time() + 20
    learned = Limits(rpm=2)
    why = failed(Scope.PROJECT_MODEL, until, bucket=named, learned=learned)
    settle(state, FIVE, why, info=OLD)
    for info in (OLD, NEW):
        assert refused(state, FIVE, info=info) == {"five": "failure"}
    clock.advance(21)
    assert granted(state, FIVE, info=NEW) == 1
    assert refused(state, FIVE, info=OLD) == {"five": "rpm"}


def test_a_cooldown_of_the_old_name_holds(state: State, clock: FakeClock) -> None:
    """An older version has set it, or a 429 of an alias that names the old model."""
    unaware = OLD._replace(replaced_by="")
    settle(state, FIVE, failed(Scope.PROJECT_MODEL, clock.time() + 20), info=unaware)
    assert refused(state, FIVE, info=OLD) == {"five": "failure"}
    assert granted(state, FIVE, 1, info=NEW) == 1


def test_a_model_that_a_429_has_placed_elsewhere_counts_there(state: State) -> None:
    """The provider's word on a third bucket is kept for the model that answers."""
    settle(state, FIVE, failed(Scope.NONE, bucket="family"), info=NEW)
    assert granted(state, FIVE, info=OLD) == 5
    assert refused(state, FIVE, info=NEW) == {"five": "rpm"}
    assert counts(state)["family"] == 5


def test_a_share_of_a_workload_counts_both_names(state: State) -> None:
    """It is counted once, with the model that answers."""
    night = Terms("night", share=0.4)
    assert granted(state, FIVE, 1, info=OLD._replace(terms=night)) == 1
    assert granted(state, FIVE, info=NEW._replace(terms=night)) == 1
    assert granted(state, FIVE, info=OLD) == 3


def test_a_call_that_counts_in_no_quota_names_no_other_model(state: State) -> None:
    """Such as one that counts tokens."""
    free = OLD._replace(counts_in_quota=False)
    assert granted(state, key("one", Limits(rpm=1)), info=free) == 1
    assert counts(state, key("one", Limits(rpm=1))) == {"": 1}


def test_the_fullest_minute_of_a_day_is_kept(state: State, clock: FakeClock) -> None:
    """Until the day ends, whatever the minutes after it use."""
    wide = key("wide", Limits(rpm=100, tpm=10_000))
    for requests, tokens in ((3, 10), (1, 500), (2, 20)):
        for _ in range(requests):
            settle(state, wide, used(tokens), info=INFO._replace(tokens=tokens))
        clock.advance(60)
    (health,) = state.snapshot([wide]).values()
    assert [one.peaks for one in health.used] == [(3, 500)]
    settle(state, wide, used(1))
    clock.advance(86_400)
    settle(state, wide, used(1))
    (health,) = state.snapshot([wide]).values()
    assert [one.peaks for one in health.used] == [(1, 1)]
