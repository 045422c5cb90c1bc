"""Limits are not exceeded: not by threads, not by tasks, not in tokens."""

import math
from collections import Counter

import pytest
from support.modes import MODEL, MODES, ask, calls, spread

import keyrot_middleware


def served(answers) -> int:
    """Count texts; everything else must be the pool's own error."""
    kinds = Counter(type(answer) for answer in answers)
    assert set(kinds) <= {str, keyrot_middleware.KeyPoolExhausted}
    return kinds[str]


@pytest.mark.parametrize("mode", MODES)
def test_160_calls_at_once_send_exactly_the_limit(mode, gemini, pool, connect, clock) -> None:
    """20 a minute are 20 of 160, and 20 more in the next minute; Google refuses none."""
    gemini.add_key("A", rpm=20)
    pool({"key_id": "A", "rpm": 20}, max_wait_s=0)
    client = connect()
    for total in (20, 40):
        answers = calls(mode, client, 160, at_once=160 if mode.startswith("async") else 8)
        assert (served(answers), gemini.count(), gemini.count(status=429)) == (20, total, 0)
        clock.advance(60)


@pytest.mark.parametrize("mode", MODES)
def test_no_more_at_once_than_allowed(mode, gemini, pool, connect) -> None:
    """max_concurrency holds while 12 call at once, and no call fails for it."""
    pool({"key_id": "A", "max_concurrency": 3}, {"key_id": "B", "max_concurrency": 2})
    gemini.delay(0.005)
    assert served(calls(mode, connect(), 24, at_once=5)) == 24
    assert gemini.peak("A") <= 3
    assert gemini.peak("B") <= 2


@pytest.mark.parametrize(("mode", "factor"), spread(MODES, [0.4, 3.0, 6.0]))
def test_true_tokens_stay_within_the_limit(factor, mode, gemini, pool, connect, clock) -> None:
    """However Google counts: after the first answers no minute has more than TPM true tokens."""
    limit = 6_000

    def true_tokens(body: dict) -> int:
        return round(factor * len(body["contents"][0]["parts"][0]["text"]) / 4)

    gemini.tokens(true_tokens)
    pool({"key_id": "A", "tpm": limit}, max_wait_s=0)
    client = connect()
    texts = ["word " * size for size in (40, 200, 90, 400, 130)]
    for text in texts:
        assert ask(mode, client, contents=text)
        clock.advance(60)
    rounds = math.ceil(limit / sum(true_tokens(body_of(text)) for text in texts))
    gemini.limit(gemini.key("A").project, tpm=limit)
    for _ in range(3):
        gemini.reset_log()
        for text in texts * rounds:
            calls(mode, client, 2, at_once=2, contents=text)
        used = gemini.used("A", MODEL).tokens
        assert used <= limit
        assert used > limit * 0.6, "and most of it is used"
        assert gemini.count(status=429) == 0
        clock.advance(60)


def body_of(text: str) -> dict:
    return {"contents": [{"parts": [{"text": text}]}]}
