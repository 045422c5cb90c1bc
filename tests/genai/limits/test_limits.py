"""Limits are not exceeded: not by threads, not by tasks, not in tokens."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.modes import MODEL, MODES, ask, ask_sync, calls, run

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply


def served(answers) -> int:
    """Count texts; everything else must be the pool's own error."""
    kinds = Counter(type(answer) for answer in answers)
    assert set(kinds) <= {str, keyrot_middleware.KeyPoolExhausted}
    return kinds[str]


@pytest.mark.parametrize("mode", ["sync", "sync_stream"])
def test_eight_threads_of_twenty_calls_send_exactly_the_limit(
    mode, gemini, pool, connect, clock
) -> None:
    """20 a minute are 20 of 160, and 20 more in the next minute; Google refuses none."""
    gemini.add_key("A", rpm=20)
    pool({"key_id": "A", "rpm": 20}, max_wait_s=0)
    client = connect()

    def twenty(_: int) -> list:
        return [calls_one(mode, client) for _ in range(20)]

    for total in (20, 40):
        with ThreadPoolExecutor(8) as threads:
            answers = [answer for some in threads.map(twenty, range(8)) for answer in some]
        assert (served(answers), gemini.count(), gemini.count(status=429)) == (20, total, 0)
        clock.advance(60)


def calls_one(mode, client) -> object:
    """Send one call; return the text or the error."""
    try:
        return ask_sync(mode, client)
    except Exception as error:
        return error


@pytest.mark.parametrize("mode", ["async", "async_stream"])
def test_a_thousand_tasks_send_exactly_the_limit(mode, gemini, pool, connect) -> None:
    """20 a minute are 20 of 1,000."""
    gemini.add_key("A", rpm=20)
    pool({"key_id": "A", "rpm": 20}, max_wait_s=0)
    answers = calls(mode, connect(), 1_000, at_once=1_000)
    assert (served(answers), gemini.count(), gemini.count(status=429)) == (20, 20, 0)


def test_two_keys_with_limits_send_their_sum(gemini, pool, connect) -> None:
    """Each to its own limit, whatever the order."""
    pool({"key_id": "A", "rpm": 20}, {"key_id": "B", "rpm": 30}, max_wait_s=0)
    assert served(calls("sync", connect(), 80, at_once=8)) == 50
    assert (gemini.sent("A"), gemini.sent("B")) == (20, 30)


def test_two_keys_of_one_project_share_its_limit(gemini, pool, connect) -> None:
    """Quota is the project's."""
    keys = [{"key_id": name, "project": "p", "rpm": 20} for name in "AB"]
    pool(*keys, max_wait_s=0)
    assert served(calls("sync", connect(), 60, at_once=8)) == 20


def test_a_day_has_its_limit(gemini, pool, connect, clock) -> None:
    """RPD counts over the minutes, until midnight Pacific time."""
    pool({"key_id": "A", "rpd": 30}, max_wait_s=0)
    client = connect()
    numbers = []
    for _ in range(3):
        numbers.append(served(calls("sync", client, 20)))
        clock.advance(60)
    assert numbers == [20, 10, 0]
    clock.advance(24 * 3600)
    assert served(calls("sync", client, 20)) == 20


@pytest.mark.parametrize("mode", MODES)
def test_no_more_at_once_than_allowed(mode, gemini, pool, connect) -> None:
    """max_concurrency holds while 12 call at once, and no call fails for it."""
    pool({"key_id": "A", "max_concurrency": 3}, {"key_id": "B", "max_concurrency": 2})
    gemini.delay(0.005)
    assert served(calls(mode, connect(), 24, at_once=5)) == 24
    assert gemini.peak("A") <= 3
    assert gemini.peak("B") <= 2


def test_a_learned_limit_is_kept(gemini, pool, connect, clock) -> None:
    """Unconfigured: the first 429 names 5 a minute; in the next minute exactly 5 are sent."""
    gemini.add_key("A", rpm=5)
    pool("A", max_wait_s=0)
    client = connect()
    calls("sync", client, 12)
    assert gemini.count(status=429) == 1
    clock.advance(60)
    gemini.reset_log()
    assert served(calls("sync", client, 12)) == 5
    assert (gemini.count(status=429), gemini.count()) == (0, 5)


def test_a_configured_limit_is_a_cap(gemini, pool, connect, clock) -> None:
    """The 429 names 5, since somebody else uses the project; the file says 2, and 2 are sent."""
    gemini.add_key("A", rpm=5)
    pool({"key_id": "A", "rpm": 2}, max_wait_s=0)
    client = connect(gemini.key("A").value)
    with keyrot_middleware.bypass():
        for _ in range(5):  # in this thread: others do not inherit it
            ask("sync", client)
    calls("sync", client, 1)
    assert gemini.count(status=429) == 1
    clock.advance(60)
    gemini.reset_log()
    assert served(calls("sync", client, 12)) == 2
    assert gemini.count() == 2


def test_limits_are_per_model(gemini, pool, connect) -> None:
    """An exhausted model does not delay another."""
    pool({"key_id": "A", "rpm": 2}, max_wait_s=0)
    client = connect()
    assert served(calls("sync", client, 4)) == 2
    assert served(calls("sync", client, 4, model="gemini-2.5-pro")) == 2


def test_batched_embeddings_count_each(gemini, pool, connect) -> None:
    """A batchEmbedContents of five items is five requests."""
    gemini.add_key("A", rpm=10)
    pool({"key_id": "A", "rpm": 10}, max_wait_s=0)
    client = connect()
    texts = [f"text {n}" for n in range(5)]
    for _ in range(2):
        client.models.embed_content(model="gemini-embedding-001", contents=texts)
    if gemini.log[0].verb != "batchEmbedContents":
        pytest.skip("this SDK sends embeddings one by one")
    with pytest.raises(keyrot_middleware.KeyPoolExhausted):
        client.models.embed_content(model="gemini-embedding-001", contents=texts)
    assert gemini.count(status=429) == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [0.4, 3.0, 6.0])
def test_true_tokens_stay_within_the_limit_once_learned(
    factor, mode, gemini: FakeGemini, pool, connect, clock
) -> None:
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
    """Return the body of this prompt."""
    return {"contents": [{"parts": [{"text": text}]}]}


def test_an_unsent_request_releases_its_reservation(gemini, pool, connect) -> None:
    """A refused connection costs no quota."""
    pool({"key_id": "A", "rpm": 2}, max_wait_s=0, max_retries=0)
    client = connect()
    port = gemini.host
    gemini.stop()
    errors = calls("sync", client, 5)
    assert {type(error).__name__ for error in errors} == {"ConnectError"}, port
    used = keyrot_middleware.status()["keys"]["A"]["used"]
    assert used[MODEL]["requests_minute"] == 0


def test_a_refused_request_does_not_count_again(gemini, pool, connect, clock) -> None:
    """A refused request is not counted twice: its cost ends with its minute."""
    pool({"key_id": "A", "rpm": 3}, "B", strategy="fill", max_wait_s=0)
    client = connect()
    gemini.script("A", Reply.EXHAUSTED)
    assert ask("sync", client) == "ok from B"
    clock.advance(60)
    answers = calls("sync", client, 5)
    assert Counter(answers) == {"ok from A": 3, "ok from B": 2}


def test_many_loops_and_threads_share_one_limit(gemini, pool, connect) -> None:
    """Threads beside tasks: still exactly the limit."""
    pool({"key_id": "A", "rpm": 20}, max_wait_s=0)
    client, other = connect(), connect()

    async def both() -> list:
        threads = [asyncio.to_thread(calls_one, "sync", other) for _ in range(40)]
        request = {"model": MODEL, "contents": "hello"}
        tasks = [client.aio.models.generate_content(**request) for _ in range(40)]
        return await asyncio.gather(*threads, *tasks, return_exceptions=True)

    answers = [getattr(answer, "text", answer) for answer in run(client, both)]
    assert served(answers) == 20
    assert gemini.count() == 20
