"""Which model a request goes on to, and when."""

from __future__ import annotations

from typing import Any

import pytest
from support.pool import INFO, STREAMED, Rig, key
from support.replies import (
    Chunks,
    bad,
    capacity,
    day,
    failure,
    invalid,
    lost,
    minute,
    overloaded,
)

from keyrot_middleware.core.flow import CallState
from keyrot_middleware.core.model import CallInfo, Limits
from keyrot_middleware.core.model_fallback import (
    fallback_call,
    is_missing,
    may_fall_back,
    stay_note,
    tried_note,
)
from keyrot_middleware.settings import MAX_MODELS, next_models


def ended(rig: Rig, info: CallInfo = INFO) -> CallState:
    """Run a call to its error; give what it knows then."""
    call = rig.make(info)
    try:
        rig.run(call)
    except Exception:
        return call
    raise AssertionError("the call has not failed")


class TestChains:
    """What `KEYROT_FALLBACK_MODELS` means."""

    def test_each_model_has_the_one_after_it(self) -> None:
        """Chains may share their last models; blanks and `models/` do not matter."""
        chains = ["a > models/b>c", "x>b>c", "y>c"]
        assert next_models(chains) == {"a": "b", "b": "c", "x": "b", "y": "c"}
        assert next_models([]) == {}

    @pytest.mark.parametrize(
        ("chains", "found"),
        [
            (["a"], '"a", which names no model after'),
            (["a>"], '"" in "a>", which is no model'),
            (["a>tunedModels/b"], '"tunedModels/b" in'),
            (["a>b c"], '"b c" in'),
            (["a>a"], '"a" twice'),
            (["a>b>a"], '"a" twice'),
            (["a>b", "b>c", "c>a"], '"a" twice'),
            (["a>b", "a>c"], '"a" with two models after it'),
            ([">".join(f"m{n}" for n in range(MAX_MODELS + 1))], f"{MAX_MODELS + 1} models"),
        ],
    )
    def test_what_is_wrong_is_found(self, chains: list[str], found: str) -> None:
        """A cycle, a repeated model, no model, no end."""
        with pytest.raises(ValueError) as refused:
            next_models(chains)
        assert found in str(refused.value)


class TestWhen:
    """A call goes on only where another model may help."""

    @pytest.mark.parametrize("fault", [minute, day, capacity, overloaded])
    def test_limited_or_overloaded(self, fault: Any) -> None:
        """Every key is limited for the model, or the model is overloaded for all."""
        rig = Rig(key("a"), key("b"), max_wait_s=0)
        rig.default = fault()
        assert may_fall_back(ended(rig))

    @pytest.mark.parametrize(
        "fault", [bad, invalid, lambda: failure(500), lambda: lost("reset"), lambda: failure(404)]
    )
    def test_another_failure(self, fault: Any) -> None:
        """A bad request, rejected keys, a server error, a lost connection are raised."""
        rig = Rig(key("a"), key("b"), max_wait_s=0)
        rig.default = fault()
        assert not may_fall_back(ended(rig))

    def test_a_model_that_does_not_exist(self) -> None:
        """Google has no such model, so the next one may help; one that some keys have is there."""
        rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0)
        rig.default = failure(404, "models/m is not found for API version v1beta, or is not")
        call = ended(rig)
        assert may_fall_back(call)
        assert is_missing(call)
        other = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0)
        other.will("a", failure(404, "This model models/m is no longer available to new users."))
        other.will("b", minute())
        call = ended(other)
        assert may_fall_back(call)
        assert not is_missing(call)
        assert not is_missing(rig.make())

    def test_nothing_was_sent(self) -> None:
        """Limits of our own count are limits too; rejected keys are no reason."""
        rig = Rig(key("a", Limits(rpm=1)), max_wait_s=0)
        rig.call()
        assert may_fall_back(ended(rig))
        rejected = Rig(key("a"), max_wait_s=0)
        rejected.default = invalid()
        ended(rejected)
        assert not may_fall_back(ended(rejected))
        assert not may_fall_back(ended(Rig(max_wait_s=0)))

    def test_one_key_is_limited_and_the_last_one_rejected(self) -> None:
        """Whatever failed last, the first one may serve another model."""
        rig = Rig(key("a", Limits(rpm=1)), key("b"), strategy="fill", max_wait_s=0)
        rig.call()
        rig.will("b", invalid())
        assert may_fall_back(ended(rig))

    def test_a_bad_request_after_a_limit(self) -> None:
        """The request itself is wrong, so no model is asked again."""
        rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0)
        rig.will("a", minute())
        rig.will("b", bad())
        assert not may_fall_back(ended(rig))

    def test_a_stream_only_before_its_first_chunk(self) -> None:
        """What was delivered is not delivered again."""
        rig = Rig(key("a"), max_wait_s=0, max_retries=0)
        rig.will("a", overloaded(), Chunks(1, failed=overloaded()))
        assert may_fall_back(ended(rig, STREAMED))
        assert not may_fall_back(ended(rig, STREAMED))

    @pytest.mark.parametrize(
        "info",
        [
            INFO._replace(bound_to_owner=True, resources=("cachedContents/c",)),
            INFO._replace(verb="countTokens"),
            INFO._replace(verb="embedContent"),
        ],
    )
    def test_a_request_that_stays_with_its_model(self, info: CallInfo) -> None:
        """Stored resources, and methods other than generating."""
        rig = Rig(key("a"), max_wait_s=0)
        call = rig.make(info, key("a"))
        assert not may_fall_back(call)


def test_the_next_call_has_what_is_left_of_the_waiting() -> None:
    """One budget for all models; a key that was rejected is not tried again."""
    rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=40)
    rig.will("a", minute("30s"), minute("30s"))
    rig.will("b", invalid())
    call = ended(rig)
    assert call.waited_s == pytest.approx(30, abs=1)
    other = fallback_call(call, "gemini-x")
    assert other.info.model == "gemini-x"
    assert other.info.models_tried == (INFO.model,)
    assert other.budget_s == pytest.approx(40 - call.waited_s)
    assert set(other.excluded) == {"b"}
    assert fallback_call(other, "gemini-y").info.models_tried == (INFO.model, "gemini-x")


def test_the_note_names_the_models() -> None:
    """In the order in which they were tried."""
    assert tried_note(["a", "b"]).endswith("tried: a, b")


def test_the_note_says_why_a_request_stays() -> None:
    """With the model whose signatures it carries."""
    assert stay_note("a").startswith("keyrot: this request stays with a, since its contents carry")
