"""What calls lately came to: when they fail, since when, and when that is over."""

from __future__ import annotations

import random
from typing import Any

import pytest

from keyrot_middleware.core.outcomes import (
    ENDS_KEPT,
    FEW,
    End,
    Run,
    dump_end,
    find_failing,
    find_refused,
    find_runs,
    find_shortage,
    how,
    is_most,
    load_end,
)

NOW = 600_000.0
"""The begin of a minute."""
MINUTE = int(NOW // 60)
SIGNS = {"+": "good", "x": "failed", "r": "refused", "0": "no_key"}
LOOK = {"failed": ("overloaded", 503), "refused": ("bad_request", 400), "no_key": ("rpm", None)}


def ends(text: str, step: float = 1.0, now: float = NOW, process: str = "") -> list[End]:
    """Return ends, the latest first: one sign a call, the oldest first, *step* seconds apart."""
    found: list[Any] = []
    for age, sign in enumerate(reversed(text)):
        kind = SIGNS[sign]
        failure, code = LOOK.get(kind, ("", None))
        found.append(End(now - age * step, kind, failure, code, process=process))  # type: ignore[arg-type]
    return found[:ENDS_KEPT]


def minutes(*texts: str, now: float = NOW) -> dict[int, dict[Any, int]]:
    """Return how calls ended in each minute up to *now*, the oldest first; one sign a call."""
    last, found = int(now // 60), dict[int, dict[Any, int]]()
    for age, text in enumerate(reversed(texts)):
        if text:
            found[last - age] = {SIGNS[sign]: text.count(sign) for sign in text}
    return found


@pytest.mark.parametrize(
    ("text", "step", "expected"),
    [
        ("", 1, False),
        ("xx", 1, False),
        ("xxx", 1, True),
        ("+xxx", 1, True),  # three of four
        ("+++xxx", 1, False),  # three of six, and the good ones were in the same minute
        ("+++xxx", 61, True),
        ("+xxx", 900, True),  # a call every quarter of an hour
        ("++++xxxxxx", 1, True),
        ("+++++xxxxx", 1, False),
        ("x+x+x+xx+x", 1, True),
        ("xxxxxxxxx+", 1, True),  # one good one is chance
        ("xxxxxxxx++", 1, True),
        ("xxxxxxx+++", 1, False),
        ("xxxxxxxxx+", 900, False),  # the only one within ten minutes
        ("xxx+x", 900, False),
    ],
)
def test_calls_fail_where_most_of_the_last_ones_did(text: str, step: float, expected: bool) -> None:
    """Of ten within ten minutes; or the last three, with no good one in the minute before."""
    assert is_most(ends(text, step), "failed") == expected


def test_what_fails_is_said_since_when_and_how_often() -> None:
    """By the minutes of an hour; the last failure says in which way."""
    found = find_failing(ends("xxxxxxxxxx"), minutes("++", "xx", "x+x", "xxxxxxxx"), NOW + 5)
    since = (MINUTE - 2) * 60.0
    assert found == Run("failed", "overloaded", 503, "", since, 13, 12, NOW)
    long_ago = find_failing(ends("+xxx", 900), {}, NOW + 86_400)
    assert long_ago == Run("failed", "overloaded", 503, "", NOW - 1_800, 3, 3, NOW)
    short = find_failing(ends("x+xxxx"), minutes("+" * 90 + "xxxxx"), NOW)
    assert short == Run("failed", "overloaded", 503, "", NOW - 5, 6, 5, NOW)


@pytest.mark.parametrize(
    ("texts", "seconds", "is_over"),
    [
        (("xxx", "+++"), 30, False),  # it lasted for a minute
        (("xxx", "+++"), 60, True),
        (("xxx", "xxx", "xxx", "xxx", "xxx", "+++"), 240, False),
        (("xxx", "xxx", "xxx", "xxx", "xxx", "+++"), 300, True),
        ((*["xxx"] * 40, "+++"), 540, False),
        ((*["xxx"] * 40, "+++"), 600, True),
        ((*["xxx"] * 3, "x+", "+++"), 0, False),  # it comes and goes
        ((*["xxx"] * 3, "", "", "+++"), 180, True),  # in the minutes between nothing was called
        (("xxx", *["+++"] * 12, "x+", "+++"), 0, True),  # another one, and no majority
        (("x+", "+++"), 0, True),
        (("xx", "+++"), 0, True),  # two are chance
    ],
)
def test_a_fault_is_over_when_calls_are_good_for_as_long_as_it_lasted(
    texts: tuple[str, ...], seconds: int, is_over: bool
) -> None:
    """Or for ten minutes; half of the calls of a minute are not most."""
    found = find_failing(ends("xxxxxxx+++"), minutes(*texts), NOW + seconds)
    assert (found is None) == is_over
    assert found is None or (not found.is_on and found.failed > found.calls / 2)


def test_many_good_calls_do_not_hide_a_fault_that_has_just_ended() -> None:
    """The last failures are known beside the last ends, and the last good ones are counted."""
    lately, failed = ends("+" * 12), ends("xxx", now=NOW - 20)
    found = find_failing([*lately, *failed], minutes("xxxxx", "xxxxx", "+" * 12), NOW + 30)
    assert found is not None and (found.is_on, found.failed, found.others) == (False, 10, 10)
    assert find_failing([*lately, *failed], minutes("xxxxx", "xxxxx", "+" * 12), NOW + 130) is None


def test_a_fault_that_is_over_gives_nothing_to_the_next_one() -> None:
    """Neither its begin nor its counts."""
    before = minutes(*["00000"] * 5, *["+++"] * 30, "+++++++++0")
    found = find_shortage(ends("+++++++++0"), before, NOW)
    assert found is not None and (found.calls, found.failed) == (1, 1)
    before = minutes(*["xxxxx"] * 5, *["+++"] * 30, "++++xxxxxx")
    failing = find_failing(ends("++++xxxxxx"), before, NOW)
    assert failing is not None and (failing.calls, failing.failed) == (6, 6)


def test_three_failures_in_a_minute_that_fails_are_a_fault_that_goes_on() -> None:
    """Also where the calls of the minute before were good."""
    found = find_failing(ends("++++xxx"), minutes("++++", "xxx"), NOW)
    assert found is not None and found.is_on


def test_a_fault_that_was_not_followed_by_a_good_call_is_not_over() -> None:
    """Nothing is good without a call: not after an hour, and not after a day."""
    assert find_failing(ends("xxx"), minutes("xxx"), NOW + 3_000) is not None
    assert find_failing(ends("xxx"), {}, NOW + 90_000) is not None


def test_the_words_of_a_model_that_is_gone_are_those_of_the_call_that_was_sent() -> None:
    """Later calls send nothing while it is known."""
    sent = End(NOW - 9, "failed", "model_withdrawn", 404, "Use m-2.")
    later = [End(NOW - n, "failed", "model_withdrawn") for n in range(3)]
    found = find_failing([*later, sent], {}, NOW)
    assert found is not None and (found.code, found.said) == (404, "Use m-2.")
    assert how(found) == '404, the model is withdrawn "Use m-2"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rr", None),
        ("rrr", (3, 3)),
        ("+++rrrr", (4, 4)),
        ("+++rrrr+", None),
        ("rrrr+", (5, 4)),
        ("rrrr+++", None),
        ("r+rr+rr", (7, 5)),
        ("++++rrr", None),
        ("00rrr", (3, 3)),
    ],
)
def test_requests_that_are_refused_are_their_programs_own(
    text: str, expected: tuple[int, int] | None
) -> None:
    """Most of the last ones; they are no failure, and the provider has answered."""
    found = find_refused(ends(text))
    assert (found and (found.calls, found.failed)) == expected
    assert find_failing(ends(text), {}, NOW) is None
    assert find_failing(ends("xxxxrrr"), {}, NOW) is None


@pytest.mark.parametrize(
    ("text", "texts", "seconds", "expected"),
    [
        ("+++", ("+++",), 0, None),
        ("++0", ("++0",), 30, (True, 1, 1)),
        ("0++", ("++0",), 61, None),
        ("+++++00000", ("+++++00000",), 30, (True, 5, 5)),
        ("00000+++++", ("00000", "+++++"), 30, (False, 10, 5)),
        ("00000+++++", ("00000", "+++++"), 61, None),
        ("00", ("00",), 121, None),  # a time has ended it
    ],
)
def test_calls_that_got_no_key_are_short_of_them(
    text: str, texts: tuple[str, ...], seconds: int, expected: Any
) -> None:
    """Until that is as long ago as it lasted: a time ends it, whether or not somebody calls."""
    known = [end._replace(by_time=True) for end in ends(text)]
    found = find_shortage(known, minutes(*texts), NOW + seconds)
    assert (found and (found.kind == "no_key", found.calls, found.failed)) == (
        expected and (True, *expected[1:])
    )


def test_what_no_time_ends_is_over_with_a_call_that_got_a_key() -> None:
    """A guess of ours that is over is no answer of the provider."""
    assert find_shortage(ends("00"), {}, NOW + 90_000) is not None
    assert find_shortage(ends("00+", 100), minutes("0", "", "0", "", "+"), NOW + 600) is None


@pytest.mark.parametrize("short", [0, 10])
def test_calls_without_a_key_say_nothing_of_those_that_got_one(short: int) -> None:
    """However many there were since: what fails goes on, and what is over stays over."""
    since, now = ends("0" * short), NOW + 30
    failed = ends("xxx", now=NOW - 60)
    found = find_failing([*since, *failed], minutes("xxx", "0" * short), now)
    assert found is not None and found.is_on
    over = [*since, *ends("xxx+++++++", now=NOW - 60)]
    fault = minutes("xxx", "+++", "+++", "++++", "0" * short)
    assert (run := find_failing(over, fault, now)) is None or not run.is_on
    refused = find_refused([*since, *ends("rrr", now=NOW - 60)])
    assert refused is not None and refused.failed == 3


def test_a_shortage_is_one_processs_only_if_others_are_served_meanwhile() -> None:
    """Calls of others that were good before it began say nothing of them."""
    short, other = ends("000", 10, process="h:1"), ends("+", now=NOW - 90, process="h:2")
    found = find_shortage([*short, *other], minutes("000"), NOW + 1)
    assert found is not None and found.process == ""
    between = ends("+", now=NOW - 15, process="h:2")
    found = find_shortage(sorted([*short, *between], key=lambda end: -end.at), {}, NOW + 1)
    assert found is not None and found.process == "h:1"


def test_a_workload_that_has_not_called_since_shares_what_fails_for_others() -> None:
    """But not what fails for another workload while its own calls are good."""
    down, mine = (ends("xxxx"), minutes("xxxx")), (ends("+", now=NOW - 900), minutes("+"))
    failing = find_failing(*down, NOW)
    assert failing is not None
    assert find_runs(mine, [None, failing], NOW).failing == failing
    assert find_runs(([], {}), [failing], NOW).failing == failing
    assert find_runs((ends("+"), {}), [failing], NOW).failing is None
    assert find_runs(mine, [None], NOW).failing is None
    assert find_runs(down, [None], NOW).failing == failing


def test_the_process_is_named_whose_calls_alone_fail() -> None:
    """If calls of others are good; not where there is one process, or where all fail."""
    bad, good = ends("xxx", process="h:1"), ends("++", now=NOW - 90, process="h:2")
    found = find_failing([*bad, *good], {}, NOW)
    assert found is not None and found.process == "h:1"
    same = find_failing([*bad, *ends("++", now=NOW - 90, process="h:1")], {}, NOW)
    assert same is not None and same.process == ""


def test_an_end_is_read_as_it_was_written_and_from_a_newer_version() -> None:
    """What is none is refused; fields of a newer version are left out."""
    end = End(NOW, "failed", "gateway", 403, "Access Denied", "h:1")
    assert load_end(dump_end(end)) == end
    assert load_end(f'[{NOW}, "good", "", null, "", "", false, "new"]') == End(NOW, "good")
    for text in ("[1]", '[1, "odd"]', '["x", "good"]', "5"):
        with pytest.raises((ValueError, TypeError)):
            load_end(text)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (("overloaded", 503, "The model is overloaded."), '503 "The model is overloaded"'),
        (("server_error", 500, ""), "500"),
        (("timeout", None, ""), "the time-out of the program"),
        (("connect", None, "TLS failed"), 'no connection "TLS failed"'),
        (("gateway", 407, "Log in"), '407, a gateway or a proxy "Log in"'),
        (("no_answer", 200, ""), "200, something that is no answer"),
        (("forbidden", 403, ""), "403, forbidden"),
        (("my_own_class", None, ""), "my_own_class"),
    ],
)
def test_how_calls_fail_is_said_with_the_services_words(run: Any, expected: str) -> None:
    """Its status where that says it, else what it means."""
    failure, code, said = run
    assert how(Run("failed", failure, code, said, NOW, 3, 3, NOW)) == expected


def test_whatever_happens_the_counts_are_true_and_the_end_is_reached() -> None:
    """Of days drawn at random, against the calls themselves."""
    draw = random.Random(42)
    for _ in range(300):
        calls: list[End] = []
        now, rates = NOW, draw.choices((0.0, 0.1, 0.5, 0.9, 1.0), k=6)
        counts: dict[int, dict[Any, int]] = {}
        for rate in rates:
            for _ in range(draw.randrange(1, 30)):
                now += draw.choice((0.2, 5.0, 40.0, 200.0))
                kind: Any = "failed" if draw.random() < rate else "good"
                calls.insert(0, End(now, kind, "overloaded", 503))
                of = counts.setdefault(int(now // 60), {})
                of[kind] = of.get(kind, 0) + 1
        known = {minute: of for minute, of in counts.items() if minute > now // 60 - 60}
        found = find_failing(calls[:ENDS_KEPT], known, now)
        row = [end.kind for end in calls[:ENDS_KEPT]]
        if row == ["failed"] * ENDS_KEPT:
            assert found is not None and found.is_on
        if found is not None:
            since = [end for end in calls if end.at >= found.since]
            bad = sum(end.kind == "failed" for end in since)
            assert FEW <= found.failed <= bad and found.failed <= found.calls <= len(since)
        for _ in range(12):  # good calls end it, whatever it was
            now += 60
            calls.insert(0, End(now, "good"))
            known[int(now // 60)] = {"good": 1}
        assert find_failing(calls[:ENDS_KEPT], known, now) is None
