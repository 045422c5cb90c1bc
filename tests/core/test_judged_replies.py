"""Whose words are that no row knows: nobody's, those of an account, or of some keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from keyrot_middleware.core.judgement import JudgedReplies, UnknownReply, judge_replies
from keyrot_middleware.core.ledger import KeyHealth
from keyrot_middleware.core.model import Candidate

NOW = 100 * 60.0
SAID = "403 Forbidden"
KEYS = (
    *(Candidate(f"a{n}", "p/openai", "A", platform="openai") for n in range(2)),
    Candidate("a2", "q", "A", platform="openai"),
    *(Candidate(f"b{n}", "r", "project:r", platform="openai") for n in range(2)),
    *(Candidate(f"c{n}", f"key:c{n}", f"project:key:c{n}", platform="openai") for n in range(2)),
)
OUT = KeyHealth(cooldown_until=NOW + 60, set_aside="")
DUE = KeyHealth(set_aside="")
OF_MODEL = KeyHealth(cooldown_until=NOW + 60, set_aside="m")
SINCE = KeyHealth(last_used=NOW - 60)


def got(key_id: str, *minutes: int, answered: tuple[int, ...] = (), said: str = SAID) -> Any:
    """Return what a key got, once in each of some minutes."""
    return UnknownReply(key_id, said, dict.fromkeys(minutes, 1), answered)


def judged(*replies: UnknownReply, **known: KeyHealth) -> list[JudgedReplies]:
    health = {key.key_id: known.get(key.key_id, KeyHealth()) for key in KEYS}
    return judge_replies(replies, KEYS, health, NOW)


@pytest.mark.parametrize(
    ("replies", "known", "keys"),
    [
        ([got("a0", 90, 95, answered=(92,)), got("b0", 94, answered=(80,))], {}, ("a0", "b0")),
        ([got("b0", 94, answered=(80,)), got("a0", 90, answered=(93,))], {}, ("a0", "b0")),
        ([got("a0", 90, 95, answered=(92,)), got("b0", 94, answered=(99,))], {"b0": OUT}, None),
        ([got("a0", 90, 95, answered=(92,)), got("b0", 94)], {}, None),  # one key that works
        ([got(f"a{n}", 90, 95, answered=(80, 90)) for n in range(3)], {}, None),  # all have ended
        ([got(f"a{n}", 90, 95, answered=(96,)) for n in range(3)], {}, None),  # and work again
        ([got(i, 90, 95, answered=(92,), said="429 Slow down") for i in ("a0", "b0")], {}, None),
        ([got(i, 90, 95, answered=(92,)) for i in ("home", "gone")], {}, None),  # not in the pool
    ],
)
def test_words_are_nobodys_that_come_again_after_a_key_with_them_has_answered(
    replies: list[UnknownReply], known: Mapping[str, KeyHealth], keys: tuple[str, ...] | None
) -> None:
    """If two keys that got them work. A limit says nothing: it ends by itself."""
    found = [one.keys for one in judged(*replies, **known) if one.is_nobodys]
    assert found == ([] if keys is None else [keys])


@pytest.mark.parametrize(
    ("minutes", "lately", "is_news"),
    [((91, 92, 93), 5, True), ((89, 90, 99), 3, False), ((10, 11, 12), 2, False)],
)
def test_a_gateway_is_news_after_five_replies_in_ten_minutes(
    minutes: tuple[int, ...], lately: int, is_news: bool
) -> None:
    """To two keys that work: one odd request is none."""
    more = (91, 92) if lately == 5 else (91, 95) if lately == 3 else (98, 99)
    [one] = judged(got("a0", *minutes, answered=(30, 92)), got("b0", *more, answered=(97,)))
    assert (one.replies, one.lately, one.is_news) == (5, lately, is_news)


ACCOUNT = "billing account A"


@pytest.mark.parametrize(
    ("replies", "known", "expected"),
    [
        ([got("a0", 99)], {"a0": OUT}, [(("a0",), ACCOUNT, "")]),
        (
            [got("a0", 99), got("a2", 99)],
            {"a0": OUT, "a2": OUT},
            [(("a0", "a2"), ACCOUNT, ACCOUNT)],
        ),
        # The third key of the account is being compared, works, or was used since.
        (
            [got("a0", 90), got("a2", 90), got("a1", 98)],
            {"a0": OUT, "a2": OUT},
            [(("a0", "a2"), ACCOUNT, ACCOUNT)],
        ),
        (
            [got("a0", 90), got("a1", 90), got("a2", 90, answered=(95,))],
            {"a0": OUT, "a1": OUT},
            [(("a0", "a1"), ACCOUNT, "project p/openai")],
        ),
        (
            [got("a0", 90), got("a2", 90)],
            {"a0": OUT, "a2": OUT, "a1": SINCE},
            [(("a0", "a2"), ACCOUNT, "")],
        ),
        (
            [got("b0", 9), got("b1", 9)],
            dict.fromkeys(("b0", "b1"), OUT),
            [(("b0", "b1"), *["project r"] * 2)],
        ),
        ([got("c0", 9), got("c1", 9)], dict.fromkeys(("c0", "c1"), OUT), [(("c0", "c1"), "", "")]),
        (
            [got("a0", 9), got("b0", 9)],
            {"a0": OUT, "b0": OUT},
            [(("a0",), ACCOUNT, ""), (("b0",), "project r", "")],
        ),
        ([got("a0", 9)], {"b0": OUT}, []),  # its words are not known any more
    ],
)
def test_keys_that_are_set_aside_are_named_by_what_they_have_in_common(
    replies: list[UnknownReply], known: Mapping[str, KeyHealth], expected: list[Any]
) -> None:
    """The account, if no key of it works as far as they were tried; else so the project."""
    found = judged(*replies, **known)
    assert [(one.keys, one.owner, one.whole) for one in found] == expected
    assert not any(one.is_nobodys for one in found)


def test_a_key_is_set_aside_for_the_words_that_it_got_last() -> None:
    """They are news once it was tried again; and nothing is, of a key that is only due."""
    older, newer = got("b0", 90, 91), got("b0", 98, said="401 Ended")
    [one] = judged(older, newer, b0=OF_MODEL)
    assert (one.said, one.model, one.is_news, one.is_due) == ("401 Ended", "m", False, False)
    [one] = judged(older, b0=DUE)
    assert (one.said, one.model, one.is_news, one.is_due) == (SAID, "", True, True)
