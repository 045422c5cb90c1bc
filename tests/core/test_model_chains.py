"""Which model a request goes on to, and when; and how many names of models are counted."""

from typing import Any

import pytest
from support.pool import INFO, STREAMED, Rig, key
from support.replies import Chunks, bad, capacity, day, failure, invalid, lost, minute, overloaded

from keyrot_middleware.core.chains import (
    fallback_call,
    is_missing,
    may_fall_back,
    stay_note,
    tried_note,
)
from keyrot_middleware.core.counting import IDLE_S, MAX_LENGTH, MAX_NAMES, OTHER, ModelNames
from keyrot_middleware.core.flow import CallState
from keyrot_middleware.core.model import CallInfo, Limits
from keyrot_middleware.errors import ConfigError
from keyrot_middleware.settings import MAX_MODELS, load, next_models


def ended(rig: Rig, info: CallInfo = INFO) -> CallState:
    call = rig.make(info)
    with pytest.raises(Exception):  # noqa: B017 - whatever it is
        rig.run(call)
    return call


def two(*replies: Any, **policy: Any) -> Rig:
    """Make a pool of two keys; each answers with one of *replies*, or with the only one."""
    rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=0, **policy)
    for key_id, reply in zip("ab", replies * (3 - len(replies)), strict=True):
        rig.will(key_id, *[reply] * 9)
    return rig


def test_each_model_has_the_one_after_it() -> None:
    """Chains may share their last models; blanks and `models/` do not matter."""
    chains = ["a > models/b>c", "x>b>c", "y>c"]
    assert next_models(chains) == {"a": "b", "b": "c", "x": "b", "y": "c"}
    assert next_models([]) == {}


@pytest.mark.parametrize(
    ("chains", "found"),
    [
        (["a"], 'found "a". Allowed: chains of up to 8 models'),
        (["a>"], 'found "a>". Allowed: chains'),
        (["a>tunedModels/b"], 'found "a>tunedModels/b". Allowed'),
        (["a>b c"], 'found "a>b c". Allowed'),
        (["a>a"], 'a circle, or over 8 models, from "a"'),
        (["a>b>a"], 'a circle, or over 8 models, from "a"'),
        (["a>b", "b>c", "c>a"], 'a circle, or over 8 models, from "a"'),
        (["a>b", "a>c"], '"a" with two models after it'),
        ([">".join(f"m{n}" for n in range(MAX_MODELS + 1))], "Allowed: chains of up to 8"),
        (["a>b>c>d>e", "e>f>g>h>i"], "over 8 models"),
    ],
)
def test_what_is_wrong_in_chains_is_found(chains: list[str], found: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(fallback_models=chains)
    assert found in str(refused.value)


WITHDRAWN = failure(404, "This model models/m is no longer available to new users.")
MISSING = failure(404, "models/m is not found for API version v1beta, or is not")


@pytest.mark.parametrize(
    ("replies", "may"),
    [
        ([minute()], True),
        ([day()], True),
        ([capacity()], True),
        ([overloaded()], True),
        ([bad()], False),
        ([invalid()], False),
        ([failure(500)], False),
        ([lost("reset")], False),
        ([failure(404)], False),
        ([MISSING], True),
        ([WITHDRAWN, minute()], True),
        ([minute(), bad()], False),  # the request itself is wrong
        ([minute(), invalid()], True),  # the first one may serve another model
    ],
)
def test_a_call_goes_on_only_where_another_model_may_help(replies: list[Any], may: bool) -> None:
    """Keys are limited for the model, it is overloaded for all, or Google has no such model."""
    call = ended(two(*replies))
    assert may_fall_back(call) == may
    assert is_missing(call) == (replies == [MISSING])


def test_a_call_of_which_nothing_was_sent() -> None:
    """Limits of our own count are limits too; rejected keys are no reason."""
    rig = Rig(key("a", Limits(rpm=1)), max_wait_s=0)
    rig.call()
    assert may_fall_back(ended(rig))
    rejected = two(invalid())
    ended(rejected)
    assert not may_fall_back(ended(rejected))
    assert not may_fall_back(ended(Rig(max_wait_s=0)))
    assert not is_missing(rig.make())


def test_a_stream_only_before_its_first_chunk() -> None:
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
def test_a_request_that_stays_with_its_model(info: CallInfo) -> None:
    assert not may_fall_back(Rig(key("a"), max_wait_s=0).make(info, key("a")))


def test_the_next_call_has_what_is_left_of_the_waiting() -> None:
    """One budget for all models; a key that was rejected is not tried again; notes name models."""
    rig = Rig(key("a"), key("b"), strategy="fill", max_wait_s=40)
    rig.will("a", minute("30s"), minute("30s"))
    rig.will("b", invalid())
    call = ended(rig)
    assert call.waited_s == pytest.approx(30, abs=1)
    other = fallback_call(call, "gemini-x")
    assert (other.info.model, other.info.models_tried) == ("gemini-x", (INFO.model,))
    assert other.budget_s == pytest.approx(40 - call.waited_s)
    assert set(other.excluded) == {"b"}
    assert fallback_call(other, "gemini-y").info.models_tried == (INFO.model, "gemini-x")
    assert tried_note(["a", "b"]).endswith("tried: a, b")
    assert stay_note("a").startswith("keyrot: this request stays with a, since its contents carry")


# Names of models -------------------------------------------------------------------------------


def counted(names: ModelNames, model: str, now: float = 0.0) -> str:
    return names.bounded(INFO._replace(model=model), now).model


def test_names_beyond_the_most_are_counted_together() -> None:
    """The first ones keep their own count, until they are not used for an hour."""
    names, new = ModelNames(), INFO._replace(model="new")
    assert names.preview(new, 0.0).model == "new", "a call that is not made takes no name"
    every = [f"m{n}" for n in range(MAX_NAMES)]
    assert [counted(names, name) for name in every] == every
    assert {counted(names, f"junk{n}") for n in range(1_000)} == {OTHER}
    assert names.preview(new, 0.0).model == OTHER
    assert counted(names, "m0", IDLE_S) == names.preview(INFO._replace(model="m0"), 0.0).model
    assert counted(names, "new", IDLE_S) == "new"
    assert counted(names, "m1", IDLE_S / 2) == OTHER
    assert counted(names, "m0", IDLE_S) == "m0"


def test_a_long_name_is_none_and_no_name_stays_so() -> None:
    """A prompt in place of a model is not stored; a call without a model has no count."""
    names = ModelNames()
    assert counted(names, "x" * (MAX_LENGTH + 1)) == OTHER
    assert counted(names, "") == ""
