"""The report behind pages and commands: keys, calls, and which key a call would get."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pool import INFO, Rig, key
from support.replies import MODEL, OK, day, exhausted, expired, failure, invalid, minute

from keyrot_middleware.core.commands import Done
from keyrot_middleware.core.judgement import AVAILABLE, JudgedReplies, Judgement
from keyrot_middleware.core.model import (
    Block,
    CallInfo,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Usage,
    Verdict,
)
from keyrot_middleware.core.outcomes import Run, Runs
from keyrot_middleware.errors import KeyrotError
from keyrot_middleware.monitoring.report import PoolReport, pool_health, pool_rows, source_of
from keyrot_middleware.monitoring.view import (
    Look,
    headline,
    iso,
    lines_of,
    lines_of_replies,
    sentence_of,
)
from keyrot_middleware.runtime.call_settings import VERB
from keyrot_middleware.settings import Workload, terms_of

LIMITS = Limits(rpm=2, rpd=10)


def report(rig: Rig) -> PoolReport:
    return source_of(rig.pool)


def row(rig: Rig, key_id: str) -> dict[str, Any]:
    found = report(rig).status()["keys"]
    return next(one for one in found if one["key_id"] == key_id)


def test_calls_show_in_counts_history_and_attempts() -> None:
    """A 429 on one key and a success on the next: one call, two requests, one failure."""
    rig = Rig(key("a", LIMITS), key("b", LIMITS), strategy="fill")
    rig.will("a", minute("20s"))
    rig.will("b", Done("ok", Usage(input_tokens=12, output_tokens=3, cached_tokens=4)))
    rig.call()
    found = report(rig).status()
    counts = {"calls": 1, "failed_calls": 0, "requests": 2, "failures": 1, "waits": 0}
    assert found["summary"]["last_hour"] == counts
    assert found["summary"]["today"]["input_tokens"] == 12
    assert row(rig, "a")["history"]["failures"][-1] == 1
    assert row(rig, "b")["tokens_today"] == {"input": 12, "output": 3, "cached": 4}
    (call,) = report(rig).attempts()["calls"]
    assert (call["model"], call["outcome"]) == (MODEL, "ok")
    assert [(a["key_id"], a["code"], a["failure"]) for a in call["attempts"]] == [
        ("a", 429, "quota_minute"),
        ("b", None, None),
    ]
    assert report(rig).attempts(key="c")["calls"] == []
    assert report(rig).attempts(limit=0)["calls"] == []


def test_a_call_that_waits_for_a_key_is_counted_as_a_wait() -> None:
    """Once, however often it sleeps."""
    rig = Rig(key("a", LIMITS))
    for _ in range(3):
        rig.call()
    assert report(rig).status()["summary"]["last_hour"]["waits"] == 1


@pytest.mark.parametrize(
    ("reply", "state", "sentence"),
    [
        (minute("20s"), "cooling_down", "cooling down after quota_minute"),
        (invalid(), "rejected", "Gemini rejects the key (key_invalid: "),
    ],
)
def test_a_sentence_explains_why_a_key_is_not_available(reply, state, sentence) -> None:
    """With the time at which it is tried again."""
    rig = Rig(key("a"), max_wait_s=0)
    rig.will("a", reply)
    rig.failing()
    found = row(rig, "a")
    assert (found["state"], found["available"]) == (state, False)
    assert found["sentence"].startswith(sentence)


def test_limits_are_shown_as_far_as_they_are_the_pools() -> None:
    """Configured and learned ones, in the page, `status()` and sentences, with the part."""
    rig = Rig(key("a", Limits(rpm=4, max_concurrency=3), use=0.5), max_wait_s=0)
    learned = Verdict("quota_day", 429, learned=Limits(rpd=9))
    for outcome in (Outcome(LeaseOutcome.FAILURE, learned), Outcome(LeaseOutcome.SUCCESS)):
        lease = rig.pool.state.acquire(INFO, ((0, rig.pool.configured[0]),), strategy="fill")
        assert isinstance(lease, Lease)
        rig.pool.state.settle(lease, outcome)
    found, known = row(rig, "a"), pool_health(rig.pool)[0]["a"]
    assert found["used"][MODEL]["rpm"] == {"used": 2, "limit": 2, "source": "configured"}
    assert found["used"][MODEL]["rpd"] == {"used": 2, "limit": 4, "source": "learned"}
    assert found["sentence"] == "RPM is used up"
    assert (found["use"], known["use"]) == (0.5, 0.5)
    assert known["limits"] == {"rpm": 2, "tpm": None, "rpd": None, "max_concurrency": 3}
    assert known["used"][MODEL]["learned"] == {"rpd": 4}


def test_a_pool_without_an_available_key_says_when_the_first_one_is() -> None:
    """Of all keys, whichever page of them is shown; of each model too."""
    rig = Rig(key("a"), key("b"), max_wait_s=0)
    rig.will("a", minute("50s"))
    rig.will("b", minute("20s"))
    rig.failing()
    found = report(rig).status(limit=1, query="a")["summary"]
    assert found["available"] == 0
    (calls,) = found["calls"]
    assert (calls["model"], calls["answer"], calls["available"], calls["keys"]) == (
        MODEL,
        "no",
        0,
        2,
    )
    assert calls["available_at"] == row(rig, "b")["available_at"]


def test_a_model_counts_every_key_that_could_serve_it() -> None:
    """Also those that were not used for it yet; not those without a value, nor switched off."""
    keys = [key(name, LIMITS) for name in "abc"]
    rig = Rig(*keys, strategy="fill", max_wait_s=0)
    rig.pool.configured = (*keys, key("unresolved"), replace(key("off"), disabled="active=false"))
    rig.call(INFO._replace(model="z-model"))
    rig.call()
    rig.will("b", invalid())
    for _ in range(2):
        rig.call()
    calls = {one["model"]: one for one in report(rig).status()["summary"]["calls"]}
    assert (calls[MODEL]["available"], calls[MODEL]["keys"]) == (1, 3)
    assert (calls["z-model"]["available"], calls["z-model"]["keys"]) == (2, 3)


def test_only_what_is_allowed_is_offered() -> None:
    """A key that keys.json switches off is not enabled here; one without a value not disabled."""
    rig = Rig(key("a"), key("b"))
    off = replace(key("off"), disabled="active=false")
    rig.pool.configured = (key("a"), key("b"), key("unresolved"), off)
    found = source_of(rig.pool)
    found.set_active("b", False)
    allowed = {one["key_id"]: one["allowed_actions"] for one in found.status()["keys"]}
    assert allowed == {
        "a": ["reset", "disable"],
        "b": ["enable"],
        "unresolved": ["reset"],
        "off": [],
    }


@pytest.mark.parametrize("strategy", ["spread", "fill"])
def test_explain_names_the_key_that_a_call_then_gets(strategy: str) -> None:
    """By priority, limits and use; nothing is sent, and nothing reserved."""
    rig = Rig(key("a", LIMITS), key("b", LIMITS), key("last", priority=9), strategy=strategy)
    for _ in range(5):
        found = report(rig).explain(MODEL)["key_id"]
        assert report(rig).explain(MODEL)["key_id"] == found
        rig.call()
        assert rig.sent[-1] == found
    assert rig.sent[-1] == "last"


def test_explain_has_the_reason_why_each_other_key_is_not_used() -> None:
    """And when the first of them is available again, if none is."""
    rig = Rig(key("a", LIMITS), key("b"), strategy="fill", max_wait_s=0)
    rig.will("a", minute("20s"))
    rig.will("b", invalid())
    rig.failing()
    found = report(rig).explain(f"models/{MODEL}", 5)
    assert (found["key_id"], found["model"]) == (None, MODEL)
    assert f"would get no key now. {MODEL}: no key until 12:30:50 UTC" in found["sentence"]
    assert [(k["key_id"], k["position"], k["reason"]) for k in found["keys"]] == [
        ("a", 1, "quota_minute"),
        ("b", 1, "key_invalid"),
    ]
    with pytest.raises(KeyrotError, match="whole numbers"):
        report(rig).explain(MODEL, -1)


def test_what_is_held_back_for_a_workload_is_said() -> None:
    """By explain; a share and a budget of a workload too."""
    rig = Rig(key("a", Limits(rpm=60, rpd=1_000)))
    rig.pool.terms = terms_of({"chat": Workload(first=True), "night": Workload(share=0.05)})
    chat, other = (INFO._replace(terms=rig.pool.terms[name]) for name in ("chat", None))
    rig.clock.advance(31)
    for _ in range(12):
        for _ in range(9):
            rig.call(chat)
        rig.clock.advance(60)
    for _ in range(42):
        rig.call(other)
    note = "held back for chat: 18 of 60 a minute"
    found = report(rig).explain(MODEL)
    assert found["keys"][0]["sentence"] == note
    assert report(rig).explain(MODEL, 0, "chat")["key_id"] == "a"
    for _ in range(3):
        rig.call(INFO._replace(terms=rig.pool.terms["night"]._replace(behind="")))
    found = report(rig).explain(MODEL, 0, "night")["keys"][0]["sentence"]
    assert found == "share of night: 3 of 60 a minute"


# One rule for all outputs -----------------------------------------------------------------------

OTHER = "gemini-3.1-pro-preview"


def would_get(rig: Rig, key_id: str, model: str) -> bool:
    offer = ((0, rig.selector.keys[key_id]),)
    reply = rig.pool.state.acquire(CallInfo(model, VERB, tokens=1), offer, strategy="fill")
    if isinstance(reply, Lease):
        rig.pool.state.settle(reply, Outcome(LeaseOutcome.UNSENT))
    return isinstance(reply, Lease)


MODELS = st.sampled_from([MODEL, OTHER])
STEP = st.one_of(
    st.tuples(st.just("call"), MODELS, st.none()),
    st.tuples(st.just("fail"), MODELS, st.sampled_from([minute("20s"), invalid()])),
    st.tuples(st.just("pass"), st.sampled_from([1.0, 25.0, 61.0, 4000.0]), st.none()),
)


@given(steps=st.lists(STEP, max_size=25))
def test_available_keys_are_those_that_a_call_gets(steps: list[Any]) -> None:
    """On random histories, for one of the models in use; but not one that Google has rejected."""
    limits = Limits(rpm=2, rpd=6)
    rig = Rig(key("a", limits), key("b", limits, model=OTHER), key("c"), max_wait_s=0)
    for what, one, reply in steps:
        if what == "pass":
            rig.clock.advance(one)
        else:
            rig.default = reply or OK
            with suppress(Exception):  # the results of the calls are tested elsewhere
                rig.call(INFO._replace(model=one))
        for found in pool_rows(rig.pool):
            gets = {model: would_get(rig, found.key.key_id, model) for model in found.models}
            if found.overall.state == "rejected":
                assert found.known.rejection == "key_invalid"
                continue
            assert {model: one == AVAILABLE for model, one in found.models.items()} == gets
            assert (found.overall == AVAILABLE) == (any(gets.values()) or not gets)


def lines(rig: Rig) -> list[str]:
    return pool_health(rig.pool)[1]


def test_a_rejected_key_is_rejected_until_a_request_succeeds() -> None:
    """When its probe is due nothing has shown that it works again."""
    rig = Rig(key("bad"), key("good"), strategy="fill")
    rig.will("bad", expired())
    rig.call()
    for ends_at in (rig.time() + 900, None):
        found = row(rig, "bad")
        assert (found["state"], found["reason"]) == ("rejected", "key_expired")
        assert (found["ends_by"], found["available_at"]) == ("person", iso(ends_at))
        assert lines(rig)[0] == "All calls are served. 1 of 2 keys is available."
        assert report(rig).explain(MODEL)["key_id"] == "good"
        rig.clock.advance(3_600)
    assert found["sentence"] == (
        'Gemini rejects the key (key_expired: "API key expired. Please renew the API key."); '
        "replace its value"
    )
    rig.call()
    assert rig.sent[-1] == "bad"
    assert row(rig, "bad")["state"] == "available"


def test_when_again_leaves_rejected_keys_out() -> None:
    """Every good key is out until midnight; an expired one is tried in 15 minutes."""
    rig = Rig(key("bad"), key("good"), strategy="fill", max_wait_s=0)
    rig.will("bad", expired())
    rig.will("good", day())
    rig.failing()
    assert lines(rig)[0] == (
        f"{MODEL}: no key until 2026-01-02 08:00 UTC (quota_day). 0 of 2 keys are available."
    )
    rejected = Rig(key("bad"), max_wait_s=0)
    rejected.will("bad", expired())
    rejected.failing()
    assert lines(rejected)[0].startswith(f"{MODEL}: no key; tried again at 12:45:30 UTC (key_exp")
    rejected.clock.advance(3_600)
    assert "only bad is left, which was refused; the next call tries it" in lines(rejected)[0]


def test_what_is_said_first_is_the_worst_and_at_most_three() -> None:
    """A model that fails, one that has no key, one that waits; each with its reason."""
    rig = Rig(key("a"), max_wait_s=60)
    assert lines(rig)[0] == "No call was made today. 1 of 1 key is available."
    for model in ("m-1", "m-2", "m-3"):
        rig.will("a", exhausted("PerDay", "2s", model=model))
        rig.failing(INFO._replace(model=model))
    rig.will("a", minute("50s", model="m-4"))
    with suppress(Exception):
        rig.call(INFO._replace(model="m-4"))
    rig.default = failure(503)
    for _ in range(3):
        with suppress(Exception):
            rig.call(INFO._replace(model="m-5"))
    rig.default = OK
    rig.call(INFO._replace(model="m-6"))
    found = lines(rig)
    assert found[0].startswith("m-1: no key until 2026-01-02 08:00 UTC (quota_day).")
    assert [found[1][:12], found[2][:12]] == ["m-2: no key ", "m-3: no key "]
    assert found[3] == "and 1 more"
    failing = report(rig).status()["summary"]["calls"][3]["sentence"]
    assert failing.startswith("m-5: the last 3 calls failed since 12:")
    said = {one["model"]: one for one in report(rig).status()["summary"]["calls"]}
    assert [one["answer"] for one in said.values()] == [
        "no",
        "no",
        "no",
        "failing",
        "served",
        "served",
    ]
    rig.clock.advance(86_400)
    assert not [one for one in report(rig).status()["summary"]["calls"] if one["answer"] == "no"]


def test_a_workload_whose_own_keys_are_out_is_said() -> None:
    """With how its calls are served, and until when; other calls are not in trouble."""
    rig = Rig(key("own", workload="night", project="p"), key("b", priority=1), max_wait_s=0)
    rig.will("own", day())
    rig.call(INFO._replace(workload="night"))
    rig.call()
    assert lines(rig)[0] == (
        f"night: none of its own keys for {MODEL} until 2026-01-02 08:00 UTC (quota_day); it uses "
        "those of others. 1 of 2 keys is available."
    )


DOWN = Runs(Run("failed", "overloaded", 503, "", since=0, calls=3, failed=3, last=60))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"runs": DOWN}, "m: the last 3 calls failed since 00:00:00 UTC: 503; calls go on to n."),
        (
            {"able": 0, "block": Block("rpd", 3_600)},
            "m: no key until 01:00:00 UTC (rpd); calls go on to n.",
        ),
        (
            {"able": 0, "block": Block("rpd", 3_600), "answer": "due", "key_id": "a"},
            "m: no key until 01:00:00 UTC (rpd); calls go on to n.",
        ),
        (
            {"able": 0, "block": Block("rpd", 3_600), "answer": "waits"},
            "m: no key until 01:00:00 UTC (rpd); calls go on to n.",
        ),
    ],
)
def test_a_model_whose_calls_go_on_to_the_next_one_says_why(more: Any, said: str) -> None:
    """What ails it, and to which: how the next one is, is said of that one."""
    one = Judgement("m", None, "served", 1, 1, ends_by="time", is_spare=True, next_model="n")
    one = one._replace(**more)
    assert sentence_of(one, now=600) == said


@pytest.mark.parametrize(
    ("others", "end"),
    [(0, "503."), (1, "503; the last one did not."), (9, "503; the last 9 calls did not.")],
)
def test_how_many_calls_were_good_since_a_fault_is_said(others: int, end: str) -> None:
    run = Run("failed", "overloaded", 503, "", since=0, calls=20, failed=9, last=300)
    runs = Runs(run._replace(is_on=False, others=others))
    text = sentence_of(Judgement("m", None, "served", 1, 1, runs=runs), now=600)
    assert text == f"m: 9 of 20 calls failed from 00:00:00 UTC to 00:05:00 UTC: {end}"


def test_a_call_that_is_older_than_those_that_are_counted_is_said_without_a_count() -> None:
    """Not "0 of 0 calls"."""
    run = Run("no_key", "quota_day", None, "", since=0, calls=0, failed=0, last=0, is_on=False)
    runs = Runs(None, None, run._replace(others=10))
    text = sentence_of(Judgement("m", None, "served", 1, 1, runs=runs), now=600)
    assert text.startswith("m: a call got no key at 00:00:00 UTC: ")
    assert text.endswith("; the last 10 calls did not.")


HOUR = {"calls": 0, "failed_calls": 0, "requests": 0, "failures": 0, "waits": 0}


@pytest.mark.parametrize(
    ("hour", "said"),
    [
        ({"calls": 1, "requests": 1}, "0 of 1 calls failed. 0 of 1 requests failed."),
        ({"calls": 2, "failed_calls": 2}, "2 of 2 calls failed. 0 of 0 requests failed."),
        (
            {"calls": 9, "requests": 9, "failures": 2},
            "0 of 9 calls failed. 2 of 9 requests failed; a call goes on with another key.",
        ),
        (
            {"calls": 9, "failed_calls": 1, "requests": 9, "failures": 2},
            "1 of 9 calls failed. 2 of 9 requests failed.",
        ),
        ({"calls": 9, "waits": 3}, "0 of 9 calls failed; 3 waited for a key"),
        ({}, "Last hour: No call was made."),
    ],
)
def test_the_last_hour_in_words(hour: dict[str, Any], said: str) -> None:
    """Failed calls before failed requests."""
    seen = Look(0.0, [], [])
    assert said in lines_of(headline(seen, HOUR | hour, degraded=False))[-1]


def test_keys_of_several_accounts_that_are_set_aside_for_the_same_are_one_line() -> None:
    """It names three keys at most, and of one key its account."""
    own = JudgedReplies("openai", "401 Ended.", ("k0",), 2, 2, False, True, "billing account b")
    other = own._replace(keys=("k1", "k2"), owner="project p", model="")
    more = own._replace(keys=("k3",), owner="", model="")
    of_model = own._replace(model="m", is_due=True)

    def said(*judged: JudgedReplies) -> list[str]:
        return lines_of_replies(judged, {("openai", "401 Ended."): 9}, {"openai"})

    end = "set aside: 401 Ended; not known here, other keys are used."
    assert said(own) == [f"Key k0 (billing account b) is {end}"]
    assert said(own, other) == [f"Keys k0, k1 and k2 are {end}"]
    assert said(own, other, more, more) == [f"Keys k0, k1 and 3 more are {end}"]
    due = "was set aside for m: 401 Ended; not known here, calls try it again."
    assert said(of_model) == [f"Key k0 (billing account b) {due}"]
    both = "were set aside for m: 401 Ended; not known here, calls try them again."
    assert said(of_model, of_model._replace(keys=("k1",))) == [f"Keys k0 and k1 {both}"]


DEPLETED = "Your prepayment credits are depleted. Please go to https://ai.studio/projects."


def test_what_one_key_of_an_account_was_answered_is_said_of_all_of_them() -> None:
    """The words are those of the last refusal, of whichever key; another account has its own."""
    keys = [key(name, project=name, billing_account="co") for name in "abc"]
    rig = Rig(*keys, key("d", billing_account="project:d"), strategy="fill", max_wait_s=0)
    rig.will("a", failure(429, DEPLETED))
    rig.will("d", failure(429, DEPLETED.replace("projects", "d")))
    rig.failing()
    said = {row(rig, name)["sentence"] for name in "abc"}
    assert said == {f'Gemini refuses billing account co (credit_depleted: "{DEPLETED}")'}
    assert row(rig, "d")["sentence"].endswith('https://ai.studio/d.")')
    assert row(rig, "d")["sentence"].startswith("Gemini refuses project d (")
    rig.clock.advance(3_601)
    rig.will("a", failure(429, f"{DEPLETED} Really."))
    rig.will("d", OK)
    rig.call()
    assert f'{DEPLETED} Really.")' in row(rig, "b")["sentence"]


def test_a_model_that_is_not_offered_is_said_of_that_model_alone() -> None:
    """Its words stand at the model; the key serves others."""
    gone = "This model models/m-1 is no longer available to new users. Use m-2."
    rig = Rig(key("a", project="key:a"), max_wait_s=0)
    rig.will("a", failure(404, gone))
    rig.failing(INFO._replace(model="m-1"))
    rig.call(INFO._replace(model="m-2"))
    found = row(rig, "a")
    assert found["sentence"] == "available now"
    assert found["used"]["m-2"]["sentence"] is None
    expected = f'Gemini does not offer model m-1 to the key (model_withdrawn: "{gone}")'
    assert found["used"]["m-1"]["sentence"] == expected
    (why,) = report(rig).explain("m-1")["keys"]
    assert why["sentence"] == expected
