"""The health of a key is `available` exactly when a call would get it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.pool import INFO, Rig, key
from support.replies import MODEL, OK, invalid, minute

from keyrot_middleware.core.model import CallInfo, Lease, LeaseOutcome, Limits, Outcome
from keyrot_middleware.monitoring.health import VERB, health

OTHER = "gemini-2.5-pro"
LIMITS = Limits(rpm=2, rpd=6)
FAILURES = [minute("20s"), invalid()]


def would_get(rig: Rig, key_id: str, model: str) -> bool:
    """Lease the key for the smallest request, and release it."""
    info = CallInfo(model, VERB, tokens=1)
    offer = ((0, rig.selector.keys[key_id]),)
    reply = rig.pool.state.acquire(info, offer, spread=False)
    if isinstance(reply, Lease):
        rig.pool.state.settle(reply, Outcome(LeaseOutcome.UNSENT))
    return isinstance(reply, Lease)


STEP = st.one_of(
    st.tuples(st.just("call"), st.sampled_from([MODEL, OTHER]), st.none()),
    st.tuples(st.just("fail"), st.sampled_from([MODEL, OTHER]), st.sampled_from(FAILURES)),
    st.tuples(st.just("pass"), st.sampled_from([1.0, 25.0, 61.0, 4000.0]), st.none()),
)


@given(steps=st.lists(STEP, max_size=25))
def test_available_keys_are_those_that_a_call_gets(steps: list[Any]) -> None:
    """On random histories: per model, and in all for any model that the key is used with."""
    rig = Rig(key("a", LIMITS), key("b", LIMITS, model=OTHER), key("c"), max_wait_s=0)
    for what, one, reply in steps:
        if what == "pass":
            rig.clock.advance(one)
        else:
            rig.default = reply or OK
            with suppress(Exception):  # the results of the calls are tested elsewhere
                rig.call(INFO._replace(model=one))
        for key_id, status in health(rig.pool).items():
            used, own = status["used"], status["model"]
            models = [*used, own] if own else [*used]
            gets = {model: would_get(rig, key_id, model) for model in models}
            assert all(usage["available"] == gets[model] for model, usage in used.items())
            today = {own, *(model for model, usage in used.items() if usage["requests_day"])}
            matter = [gets[model] for model in gets if model in today or not gets[model]]
            assert status["available"] == (any(matter) or not matter)
            assert status["available"] == (status["state"] == "available")


def test_a_key_with_a_full_window_is_limited_until_the_minute_ends() -> None:
    """It is not reported as available."""
    rig = Rig(key("a", Limits(rpm=1)), max_wait_s=0)
    assert health(rig.pool)["a"]["state"] == "available"
    rig.call()
    status = health(rig.pool)["a"]
    assert (status["state"], status["available"]) == ("limited", False)
    assert status["available_at"] == "2026-01-01T12:31:01Z"
    assert status["active"]
    assert not status["in_cooldown"]
    rig.clock.advance(31)
    status = health(rig.pool)["a"]
    assert (status["state"], status["available_at"]) == ("available", None)


def test_a_key_without_a_value_and_one_switched_off_are_reported() -> None:
    """Every key of keys.json is reported: unresolved and disabled ones too."""
    rig = Rig(key("a"))
    rig.pool.configured = (key("a"), key("b"), key("c", disabled="active=false"))
    found = health(rig.pool).items()
    assert {i: (one["state"], one["available"], one["active"]) for i, one in found} == {
        "a": ("available", True, True),
        "b": ("unresolved", False, False),
        "c": ("disabled", False, False),
    }


def test_health_reserves_nothing() -> None:
    """A key with one request left still has it afterwards."""
    rig = Rig(key("a", Limits(rpm=1)), max_wait_s=0)
    for _ in range(5):
        assert health(rig.pool)["a"]["available"]
    rig.call()
    assert rig.sent == ["a"]
