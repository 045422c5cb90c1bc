"""New interactions rotate over the keys, as generates do: sync, async, streams, background."""

from __future__ import annotations

import pytest
from google.genai import types
from support.interactions import (
    SDK_WARNINGS,
    create,
    error_type,
    keys_of,
)
from support.modes import MODEL, MODES, STREAMS, spread

import keyrot_middleware
from keyrot_middleware.testing import Reply

pytestmark = SDK_WARNINGS


@pytest.mark.parametrize(
    ("limited", "mode"), spread([Reply.QUOTA_MINUTE, Reply.EXHAUSTED, Reply.QUOTA_DAY], MODES)
)
def test_failed_keys_are_requested_once(mode, limited, gemini, pool, connect) -> None:
    """A has no quota, B is invalid, C serves: A and B get one request each."""
    pool("A", "B", "C", strategy="fill")
    gemini.always("A", limited)
    gemini.always("B", Reply.KEY_INVALID)
    assert create(mode, connect(), 12) == ["ok from C"] * 12
    assert [gemini.sent(key) for key in "ABC"] == [1, 1, 12]


@pytest.mark.parametrize(
    ("attempts", "mode"),
    spread([0, 5], MODES),
)
def test_the_sdk_does_not_repeat_a_429(mode, attempts, gemini, pool, connect) -> None:
    """Its client for Interactions repeats by default; no key gets its own 429 again."""
    pool("A", "B", strategy="fill", max_wait_s=0)
    gemini.always_any(Reply.QUOTA_MINUTE)
    more = {"retry_options": types.HttpRetryOptions(attempts=attempts)} if attempts else {}
    with pytest.raises(error_type("RateLimitError")):
        create(mode, connect(**more))
    assert sorted(keys_of(gemini)) == ["A", "B"]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_create_is_not_repeated_by_the_pool(mode, gemini, pool, connect) -> None:
    """An interaction may have been created by a request that failed with a 503."""
    pool("A", "B")
    gemini.always_any(Reply.OVERLOADED)
    client = connect(retry_options=types.HttpRetryOptions(attempts=1))
    with pytest.raises(error_type("InternalServerError")):
        create(mode, client)
    assert len(set(keys_of(gemini))) == 1, "2.34 repeats once with any options"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_bad_request_is_sent_once(mode, gemini, pool, connect) -> None:
    """No key is blamed for it, and it is not sprayed over the pool."""
    installed = pool("A", "B")
    gemini.always_any(Reply.BAD_REQUEST)
    with pytest.raises(error_type("BadRequestError")):
        create(mode, connect())
    assert len(gemini.log) == 1
    gemini.always_any(None)
    assert len(set(create(mode, connect(), 6))) == 2, installed


def test_a_background_interaction_is_polled_with_its_key(gemini, pool, connect) -> None:
    """It is created by a key that serves, and its result is read with the same one."""
    pool("A", "B", "C", strategy="fill")
    gemini.script("A", Reply.QUOTA_MINUTE)
    gemini.script("B", Reply.KEY_INVALID)
    client = connect()
    made = client.interactions.create(model=MODEL, input="hello", background=True)
    assert made.status == "in_progress"
    assert client.interactions.get(made.id).status == "completed"
    assert keys_of(gemini) == ["A", "B", "C", "C"]


@pytest.mark.parametrize("mode", STREAMS)
def test_an_error_as_first_event_is_a_failed_send(mode, gemini, pool, connect) -> None:
    """Under HTTP 200, before any data: another key is tried, and the program sees no error."""
    pool("A", "B", strategy="fill", max_wait_s=0)
    gemini.always("A", Reply.EXHAUSTED.in_stream(0))
    assert create(mode, connect(), 3) == ["ok from B"] * 3
    assert gemini.sent("A") == 1
    gemini.always("B", Reply.EXHAUSTED.in_stream(0))
    with pytest.raises(keyrot_middleware.KeyPoolExhausted):
        create(mode, connect())
    assert pool.ledger.under_way == {}


@pytest.mark.parametrize("mode", STREAMS)
def test_an_error_event_that_is_no_keys_fault_is_what_the_program_sees(
    mode, gemini, pool, connect
) -> None:
    """The SDK yields it and raises nothing; so it is with the pool."""
    pool("A", "B", strategy="fill", max_wait_s=0)
    gemini.always_any(Reply.OVERLOADED.in_stream(0))
    assert create(mode, connect()) == ["error event: service_unavailable"]


@pytest.mark.parametrize("mode", STREAMS)
def test_nothing_is_repeated_behind_the_first_data(mode, gemini, pool, connect) -> None:
    """The error is the program's to see; the key is cooling down, and the next call avoids it."""
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.EXHAUSTED.in_stream(2))
    assert create(mode, connect(), 2) == ["error event: too_many_requests", "ok from B"]
    assert keys_of(gemini) == ["A", "B"]
