"""A 429 about the rate of spending is about the billing account, whatever the key and the model."""

from __future__ import annotations

from typing import Any

import pytest
from support.modes import MODES, ask

import keyrot_middleware
from keyrot_middleware import KeyPoolExhausted
from keyrot_middleware.testing import Reply
from keyrot_middleware.testing.replies import error

OWN, OTHER = [f"own_{number}" for number in range(5)], "other"


@pytest.fixture
def too_fast(gemini: Any, pool: Any) -> None:
    """Five keys of one account that spends too fast, and after them one of another account."""
    mine = [{"key_id": key_id, "project": key_id, "billing_account": "ours"} for key_id in OWN]
    pool(*mine, {"key_id": OTHER, "billing_account": "theirs", "priority": 1}, max_wait_s=0)
    for key_id in OWN:
        gemini.always(key_id, Reply.SPEND_RATE)


@pytest.mark.parametrize("mode", MODES)
def test_one_request_is_sent_for_the_whole_account(
    mode: str, too_fast: None, gemini: Any, connect: Any
) -> None:
    """The next model is not tried with its other keys either; another account serves both."""
    client = connect()
    for model in ("gemini-3.8-flash", "gemini-3.5-flash-lite"):
        assert ask(mode, client, model=model) == f"ok from {OTHER}"
    assert sum(gemini.sent(key_id) for key_id in OWN) == 1
    assert gemini.sent(OTHER) == 2
    states = {i: key["state"] for i, key in keyrot_middleware.status()["keys"].items()}
    assert states == {**dict.fromkeys(OWN, "cooling_down"), OTHER: "available"}


def test_the_account_is_tried_again_after_at_most_ten_minutes(
    too_fast: None, gemini: Any, connect: Any, clock: Any
) -> None:
    """With one request each time, after 30 s, then twice as long up to 10 minutes."""
    client, pauses = connect(), list[float]()
    for _ in range(8):
        began, before = clock.time(), len(gemini.log)
        while not any(request.key in OWN for request in gemini.log[before:]):
            ask("sync", client)
            clock.advance(10)
        pauses.append(clock.time() - 10 - began)
    assert pauses[1:] == [20, 50, 110, 230, 470, 590, 590]  # counted from 10 s after each request
    gemini.clear_scripts()
    clock.advance(600)
    assert {ask("sync", client)[:11] for _ in range(5)} == {"ok from own"}


def test_a_named_time_is_waited_for(gemini: Any, pool: Any, connect: Any, clock: Any) -> None:
    """RetryInfo is believed, and the key is used again after it."""
    pool({"key_id": "A", "billing_account": "ours"}, {"key_id": "B", "billing_account": "ours"})
    delay = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "42s"}
    text = Reply.SPEND_RATE.body(None)["error"]["message"]  # type: ignore[misc, arg-type]
    body = error(429, "RESOURCE_EXHAUSTED", text, delay)
    gemini.script_any(Reply.custom(429, body))
    began = clock.time()
    assert ask("sync", connect()).startswith("ok from")
    assert 42 <= clock.time() - began < 43
    assert gemini.count() == 2


def test_a_pool_of_one_account_says_why(gemini: Any, pool: Any, connect: Any) -> None:
    """The next call sends nothing; each key has the reason."""
    keys = [{"key_id": key_id, "billing_account": "ours"} for key_id in OWN]
    pool(*keys, max_wait_s=0)
    gemini.always_any(Reply.SPEND_RATE)
    client = connect()
    for _ in range(2):
        with pytest.raises(Exception, match=r"spend") as raised:
            ask("sync", client)
    assert isinstance(raised.value, KeyPoolExhausted)
    assert {why.split()[0] for why in raised.value.reasons.values()} == {"spend_rate"}
    assert raised.value.reasons.keys() == set(OWN)
    assert gemini.count() == 1
