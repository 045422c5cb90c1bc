"""What other keys got decides: over a pool, call by call."""

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pool import INFO, Rig, key
from support.replies import OK, GoogleError

from keyrot_middleware.core.chains import fallback_call
from keyrot_middleware.core.commands import Failed
from keyrot_middleware.core.evidence import (
    FAILING_REQUESTS,
    FRESH_S,
    MOST_ASKED,
    MOST_ASKED_AT_WORK,
    MOST_WORDS,
    TIMES,
    TIMES_LIMITED,
    Evidence,
)
from keyrot_middleware.core.failures import FailureFacts
from keyrot_middleware.core.model import CallInfo, Candidate, Lease, Verdict
from keyrot_middleware.core.windows import DAY_S

CALL = INFO._replace(platform="openai")
PAGE = "<title>403 Forbidden</title>"


def refusal(code: int, body: Any, **headers: str) -> Failed:
    facts = FailureFacts(code, body, headers.get("retry_after"), headers=headers)
    return Failed(facts, GoogleError(f"{code} {body}"))


def pool(ids: str = "abc", **more: Any) -> Rig:
    policy = {"strategy": "fill", "max_wait_s": 0} | more
    return Rig(*(key(one, platform="openai") for one in ids), **policy)


def always(rig: Rig, key_id: str, reply: Any) -> None:
    rig.script[key_id].clear()
    rig.will(key_id, *[reply] * 1_000)


def well(rig: Rig) -> None:
    for replies in rig.script.values():
        replies.clear()


def outcome(rig: Rig, info: CallInfo = CALL) -> str:
    try:
        return str(rig.call(info))
    except GoogleError as error:
        return str(error)[:3]


def use_all(rig: Rig) -> None:
    """Let each key answer a call."""
    for key_id in rig.selector.keys:
        call = rig.make(CALL)
        call.excluded = dict.fromkeys(rig.selector.keys.keys() - {key_id}, inf)
        assert rig.run(call) == "answer"
    assert set(rig.sent) == rig.selector.keys.keys()


def out(rig: Rig) -> str:
    """Return the keys that a call would not get now."""
    keys = list(rig.selector.keys.values())
    return "".join(sorted(rig.pool.state.get_blocks(CALL, keys)))


# Which keys a call asks --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404])
@pytest.mark.parametrize("is_warm", [False, True])
def test_no_call_is_lost_where_two_keys_of_one_account_have_ended(code: int, is_warm: bool) -> None:
    """Also if they worked a minute before; both are set aside, and the third one is used."""
    rig = pool()
    if is_warm:
        use_all(rig)
    for one in "ab":
        always(rig, one, refusal(code, {"message": "The plan of this account has ended"}))
    assert [outcome(rig) for _ in range(8)] == ["answer"] * 8
    assert out(rig) == "ab"
    assert rig.sent.count("a") <= 9 and rig.sent.count("b") <= 9


def test_a_call_asks_five_keys_and_three_where_one_of_them_works() -> None:
    """All are refused in other words, which say nothing of each other; a next call goes on."""
    ids = "abcdefgh"
    rig = pool(ids)
    for one in ids:
        always(rig, one, refusal(401, f"{one * 5} is no good"))
    assert outcome(rig) == "401"
    assert "".join(rig.sent) == "abcde"
    assert outcome(rig) == "401"
    assert "".join(rig.sent[5:]) == "afghb"
    rig = pool(ids)
    assert outcome(rig) == "answer"
    for one in ids:
        always(rig, one, refusal(403, f"{one * 5} is no good"))
    rig.sent.clear()
    assert outcome(rig) == "403"
    assert len(rig.sent) == MOST_ASKED_AT_WORK < MOST_ASKED


def test_words_that_are_known_to_be_nobodys_end_a_call_at_the_second_key() -> None:
    """A key has answered that was refused so before: the request is at fault, or a gateway."""
    rig = pool("abcd")
    assert outcome(rig) == "answer"
    rig.will("a", refusal(403, PAGE))
    assert [outcome(rig), outcome(rig)] == ["answer"] * 2  # of b, and of a
    rig.sent.clear()
    for one in "abcd":
        rig.will(one, refusal(403, PAGE))
    assert outcome(rig) == "403"
    assert "".join(rig.sent) == "ab"


def test_a_key_that_was_refused_a_minute_ago_is_asked_when_no_other_is_left() -> None:
    """Calls must not fail beside keys that work again: a gateway's page came to all of them."""
    rig = pool()
    for one in "abc":
        rig.will(one, refusal(403, PAGE))
    assert outcome(rig) == "403"
    always(rig, "a", refusal(403, PAGE))
    rig.clock.advance(61)
    assert outcome(rig) == "answer"
    assert "".join(rig.sent) == "abcab"


def test_a_key_that_was_refused_for_one_model_is_asked_for_another() -> None:
    """A 403 may be about the model, and a key is out for that model alone."""
    rig = pool("ab")
    rig.will("a", refusal(403, "No access."))
    assert [outcome(rig), outcome(rig)] == ["answer"] * 2
    assert outcome(rig, CALL._replace(model="other")) == "answer"
    assert "".join(rig.sent) == "abba"


@pytest.mark.parametrize(("said", "sent"), [("no such model for you", "aba"), ("no.", "abb")])
def test_a_401_that_names_a_model_is_about_that_model(said: str, sent: str) -> None:
    """Another model is still asked for with the key."""
    rig = pool("ab")
    rig.will("a", refusal(401, said))
    assert outcome(rig) == "answer"
    assert outcome(rig, CALL._replace(model="other")) == "answer"
    assert "".join(rig.sent) == sent


# Which keys are set aside ------------------------------------------------------------------------


def test_a_key_that_works_is_set_aside_when_it_was_refused_three_times_in_a_row() -> None:
    """An answer in between shows that the words are nobody's, and ends the row."""
    rig = pool("ab")
    assert outcome(rig) == "answer"
    for _ in range(TIMES - 1):
        rig.will("a", refusal(403, PAGE))
        assert outcome(rig) == "answer"
        assert out(rig) == ""
    rig.will("a", refusal(403, PAGE))
    assert outcome(rig) == "answer"
    assert out(rig) == "a"
    rig.clock.advance(61)
    assert outcome(rig) == "answer"  # of a: the words are nobody's now
    always(rig, "a", refusal(403, PAGE))
    assert [outcome(rig) for _ in range(9)] == ["answer"] * 9
    assert out(rig) == ""


def test_an_answer_to_a_request_of_before_shows_nothing() -> None:
    """A stream that began before its account ended is read to its end."""
    rig = pool("ab")
    evidence, lease = rig.pool.evidence, _lease("a")
    verdict = Verdict("unknown_refusal", 401, message="No.")
    refused = evidence.refused(CALL, lease, verdict, 100.0)
    evidence.answered(CALL, "a", 99.0, 101.0)
    assert evidence.blames(refused._replace(lease=lease._replace(probe=True)), 102.0)
    evidence.answered(CALL, "a", 100.0, 103.0)
    assert not evidence.blames(refused, 104.0)


def test_a_reset_key_and_a_replaced_one_are_not_remembered() -> None:
    """What was seen of a key is about its value, and an operator knows more."""
    rig = pool("ab")
    rig.will("a", refusal(401, "No."))
    assert outcome(rig) == "answer"
    rig.pool.reset("a")
    assert outcome(rig) == "answer"
    assert "".join(rig.sent) == "aba"
    assert rig.pool.evidence.refused_lately(
        rig.pool.evidence.refused(CALL, _lease("b"), Verdict("x", 401, message="No."), 0).words, 0
    ) == ({"b"}, set())


# Limits ------------------------------------------------------------------------------------------


def test_a_429_of_two_keys_that_work_is_no_keys() -> None:
    """It is the limit of a gateway, by address: the call slows down, and no key cools down."""
    rig = pool("abcd")
    use_all(rig)
    rig.will("a", refusal(429, PAGE))
    assert outcome(rig) == "answer"
    assert (out(rig), rig.slept) == ("a", [])
    for one in "bc":
        rig.will(one, refusal(429, PAGE))
    assert outcome(rig) == "answer"
    assert (out(rig), len(rig.slept)) == ("a", 2)


def test_a_key_that_gets_such_a_429_again_and_again_has_a_limit_of_its_own() -> None:
    """It cools down, and no call is lost meanwhile: those that got it are asked last."""
    rig = pool("abcd")
    use_all(rig)
    rig.sent.clear()
    for one in "ab":
        always(rig, one, refusal(429, "Slow down."))
    assert [outcome(rig) for _ in range(TIMES_LIMITED + 3)] == ["answer"] * (TIMES_LIMITED + 3)
    assert out(rig) == "ab"
    assert rig.sent.count("b") == TIMES_LIMITED + 1


def test_an_answer_ends_the_row_of_such_429s() -> None:
    """A key that gets them and answers in between has no limit of its own."""
    rig = pool("abc")
    use_all(rig)
    rig.will("a", refusal(429, PAGE))
    for _ in range(2 * TIMES_LIMITED):  # more than it takes without an answer
        rig.will("b", refusal(429, PAGE))
        assert [outcome(rig), outcome(rig)] == ["answer"] * 2
    assert out(rig) == "a"


def test_a_429_with_a_time_is_the_keys() -> None:
    """As before: it names its end."""
    rig = pool("abc")
    assert outcome(rig) == "answer"
    for one in "ab":
        rig.will(one, refusal(429, PAGE, retry_after="20"))
    assert outcome(rig) == "answer"
    assert out(rig) == "ab"


# Models ------------------------------------------------------------------------------------------


def test_a_model_is_failing_after_three_overloaded_requests_in_a_row() -> None:
    """Until it answers, or for a quarter of an hour."""
    evidence, busy = Evidence(), Verdict("overloaded", 503)
    for _ in range(FAILING_REQUESTS):
        assert not evidence.is_failing(CALL, 10.0)
        evidence.failed(CALL, busy, 10.0)
    evidence.failed(CALL._replace(model="y"), Verdict("server_error", 500), 10.0)
    assert evidence.is_failing(CALL, 10.0)
    assert not evidence.is_failing(CALL._replace(model="y"), 10.0)
    assert not evidence.is_failing(CALL, 11.0 + FRESH_S)
    evidence.answered(CALL, "a", 10.0, 12.0)
    assert not evidence.is_failing(CALL, 12.0)


def test_a_failing_model_is_asked_once_where_another_one_can_serve() -> None:
    """The call goes to the next model at once; that one is retried as ever."""
    rig = pool("ab", max_retries=2)
    rig.default = refusal(503, "busy")
    call = rig.make(CALL)
    call.retries_model = False
    with pytest.raises(GoogleError):
        rig.run(call)
    assert (rig.sent, rig.slept) == (["a"], [])
    following = fallback_call(call, "y")
    assert following.retries_model
    assert following.evidence is rig.pool.evidence


# Bounds ------------------------------------------------------------------------------------------


def _lease(key_id: str) -> Lease:
    return Candidate(key_id, key_id, key_id, platform="openai").lease(CALL, "m", 0.0)


def test_what_is_kept_is_bounded() -> None:
    """Of words that no one has seen twice, models that are called once, and clients' own keys."""
    evidence, lease = Evidence(), _lease("a")
    for number in range(3 * MOST_WORDS):
        word = "".join(chr(97 + int(digit)) for digit in str(number))
        said = Verdict("unknown_refusal", 401, message=word)
        evidence.refused(CALL, lease, said, float(number))
        evidence.failed(CALL._replace(model=word), Verdict("overloaded", 503), 0.0)
        evidence.answered(CALL, f"home:{word}", 0.0, 0.0)
        home = lease._replace(key_id=f"home:{word}")
        own = evidence.refused(CALL, home, said, 0.0)
        assert not own.worked and not evidence.blames(own, 0.0)
        assert not evidence.is_shared_limit(CALL, home, Verdict("unknown_limit", 429), 0.0)
    assert len(evidence._words) <= MOST_WORDS
    assert len(evidence._failing) <= MOST_WORDS
    assert not evidence._answers
    later = 3 * MOST_WORDS + DAY_S
    evidence.refused(CALL, lease, Verdict("unknown_refusal", 401, message="new"), later)
    assert len(evidence._words) == 1
    evidence.answered(CALL, "b", later + DAY_S + 1, later + DAY_S + 1)
    assert not evidence._words


# Any world ---------------------------------------------------------------------------------------

WORKS, LIMIT, TIMED = "works", "limit", "timed"
_OF_ONE = st.sampled_from([WORKS, LIMIT, TIMED, *"xyz"])
"""What a key is: it works, has used up its limit, or is of an account that has ended."""
_OF_POOL = st.lists(_OF_ONE, min_size=10, max_size=10).filter(lambda keys: WORKS in keys)
_CODES = st.sampled_from([400, 401, 402, 403])
IDS = "abcdefghij"


def _answer_of(kind: str, code: int) -> Any:
    if kind == WORKS:
        return OK
    if kind in (LIMIT, TIMED):
        return refusal(429, "Too much.", **({"retry_after": "30"} if kind == TIMED else {}))
    return refusal(code, {"message": f"The account of {kind * 4} has ended"})


def _server(rig: Rig, keys: list[str], code: int) -> Callable[[], bool]:
    """Script the pool's upstream; return a switch for a page that a gateway sends instead."""
    page = {"on": False}

    def reply(kind: str) -> Any:
        return lambda: refusal(403, PAGE) if page["on"] else _answer_of(kind, code)

    for one, kind in zip(IDS, keys, strict=True):
        always(rig, one, reply(kind))

    def switch() -> bool:
        page["on"] = not page["on"]
        return page["on"]

    return switch


@settings(max_examples=120)
@given(
    keys=_OF_POOL,
    code=_CODES,
    strategy=st.sampled_from(["fill", "spread"]),
    pages=st.lists(st.booleans(), min_size=20, max_size=40),
    gap_s=st.sampled_from([1.0, 7.0, 70.0]),
)
def test_no_call_fails_beside_a_working_key_whatever_the_others_and_a_gateway_say(
    keys: list[str], code: int, strategy: str, pages: list[bool], gap_s: float
) -> None:
    """Unless as many keys were asked as a call asks; and a working key comes back."""
    rig = pool(IDS, strategy=strategy, max_retries=2)
    switch = _server(rig, keys, code)
    good = {one for one, kind in zip(IDS, keys, strict=True) if kind == WORKS}
    for is_page in pages:
        rig.clock.advance(gap_s)
        rig.sent.clear()
        if is_page:
            switch()
            assert outcome(rig) in ("403", "402", "401", "400", "429")
            switch()
        elif outcome(rig) != "answer":
            asked = [keys[IDS.index(one)] for one in rig.sent]
            refused = [kind for kind in asked if kind not in (WORKS, LIMIT, TIMED)]
            assert len(refused) >= MOST_ASKED_AT_WORK
        assert len(rig.sent) <= 2 * len(IDS)
    for _ in range(70):  # an hour in which the gateway is well
        rig.clock.advance(60)
        outcome(rig)
    assert good.isdisjoint(out(rig))
    assert outcome(rig) == "answer"
    rig.check()
