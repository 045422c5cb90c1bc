"""Interactions rotate as generates do: keys, errors that come out, streams."""

import json
import logging
import pickle
from typing import Any

import pytest
from google.genai import errors, types
from support.interactions import SDK, SDK_WARNINGS, create, error_type, keys_of
from support.key_search import texts_of
from support.modes import MODEL, MODES, STREAMS, run, sdk_error, spread

import keyrot_middleware
from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply

pytestmark = SDK_WARNINGS


@pytest.mark.parametrize(
    ("limited", "mode"), spread([Reply.QUOTA_MINUTE, Reply.EXHAUSTED, Reply.QUOTA_DAY], MODES)
)
def test_failed_keys_are_requested_once(mode, limited, gemini, pool, connect) -> None:
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
def test_a_bad_request_is_sent_once(mode, gemini, pool, connect) -> None:
    installed = pool("A", "B")
    gemini.always_any(Reply.BAD_REQUEST)
    with pytest.raises(error_type("BadRequestError")):
        create(mode, connect())
    assert len(gemini.log) == 1
    gemini.always_any(None)
    assert len(set(create(mode, connect(), 6))) == 2, installed


def test_a_background_interaction_is_polled_with_its_key(gemini, pool, connect) -> None:
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
def test_nothing_is_repeated_behind_the_first_data(mode, gemini, pool, connect) -> None:
    """The error is the program's to see; the key is cooling down, and the next call avoids it."""
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.EXHAUSTED.in_stream(2))
    assert create(mode, connect(), 2) == ["error event: too_many_requests", "ok from B"]
    assert keys_of(gemini) == ["A", "B"]


def failing(mode: str, client: Any) -> Any:
    with pytest.raises(Exception) as caught:
        create(mode, client)
    return caught.value


@pytest.mark.parametrize(
    ("reply", "named", "mode"),
    spread(
        [
            (Reply.QUOTA_DAY, ("RateLimitError", 429, "too_many_requests")),
            (Reply.KEY_SUSPENDED, ("PermissionDeniedError", 403, "permission_denied")),
            (Reply.KEY_INVALID, ("BadRequestError", 400, "invalid_request")),
            (Reply.MODEL_NOT_FOUND, ("NotFoundError", 404, "not_found")),
            (Reply.PREPAY, ("APIStatusError", 402, "payment_required")),
        ],
        MODES,
    ),
)
def test_the_exception_is_the_sdks_own(mode, reply, named, gemini, pool, connect) -> None:
    """Class, code, body and response are as without a pool; a note has the result of each attempt.

    Where no key could serve, it is the cause of an exception that is of the same class too.
    """
    name, code, word = named
    pool("A", max_wait_s=0)
    gemini.always("A", reply)
    gemini.always(gemini.add_key("own").label, reply)
    raised = failing(mode, connect())
    error = sdk_error(raised)
    keyrot_middleware.uninstall()
    plain = failing(mode, connect(gemini.key("own").value, retry_options={"attempts": 1}))
    assert type(error) is type(plain) is error_type(name)
    assert (error.status_code, error.response.status_code) == (code, code)
    assert error.body["error"]["code"] == error.response.json()["error"]["code"] == word
    assert not isinstance(error, errors.APIError)
    assert isinstance(raised, type(plain))
    assert raised.__notes__[0].startswith("keyrot: attempt 1 with key A: ")
    if error is raised:
        assert str(type(error.__cause__)) == str(type(plain.__cause__))
    shown = "".join([*texts_of(error), *texts_of(raised)])
    found = [label for label in "A" if gemini.key(label).value in shown]
    assert found == []


@pytest.mark.parametrize("mode", MODES)
def test_where_no_key_can_serve_it_is_both(mode, gemini, pool, connect) -> None:
    pool("A", "B", max_wait_s=0)
    gemini.always_any(Reply.QUOTA_DAY)
    failing(mode, connect())
    gemini.reset_log()
    error = failing(mode, connect())
    assert gemini.log == []
    assert isinstance(error, keyrot_middleware.KeyPoolExhausted)
    assert isinstance(error, error_type("RateLimitError"))
    assert (error.code, error.status_code, error.response.status_code) == (429, 429, 429)
    assert set(error.reasons) == {"A", "B"}
    assert error.retry_at is not None
    assert "No Gemini API key of pool 'default' is available" in str(error)
    assert error.response.request.method == "POST"
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is type(error)
    assert (copy.reasons, str(copy), copy.status_code) == (error.reasons, str(error), 429)


@pytest.mark.skipif(SDK < (2, 0), reason="1.x logs no headers")
@pytest.mark.parametrize("mode", MODES)
def test_the_sdks_debug_log_shows_no_key(mode, gemini, pool, connect, caplog, monkeypatch) -> None:
    monkeypatch.setenv("GOOGLE_GENAI_DEBUG", "1")
    caplog.set_level(logging.DEBUG)
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.KEY_INVALID)
    assert create(mode, connect()) == ["ok from B"]
    assert "x-goog-api-key" in caplog.text
    assert [key for key in "AB" if gemini.key(key).value in caplog.text] == []


raw = pytest.mark.skipif(SDK < (2, 0), reason="1.x has other raw responses")
EVENTS: list[dict[str, Any]] = [
    {"event_type": "interaction.created", "interaction": {"id": "v1_x", "status": "in_progress"}},
    {"event_type": "step.start", "index": 0, "step": {"type": "model_output"}},
    {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "grüße\n\n"}},
    {
        "event_type": "interaction.completed",
        "interaction": {
            "id": "v1_x",
            "status": "completed",
            "model": MODEL,
            "usage": {"total_input_tokens": 40, "total_output_tokens": 2},
        },
    },
]
BYTES = b": hello\r\n\r\n" + b"".join(
    b"event: %b\r\ndata: %b\r\n\r\n"
    % (event["event_type"].encode(), json.dumps(event, ensure_ascii=False).encode())
    for event in EVENTS
)
BYTES += b"event: done\ndata: [DONE]\n\n: and more\n"


@raw
@pytest.mark.parametrize("mode", STREAMS)
def test_the_bytes_are_unchanged(mode, gemini, pool, connect) -> None:
    """To the last one, behind the last event too; the pool reads what they say."""
    pool("A", "B")
    gemini.script_any(Reply.custom(200, BYTES, content_type="text/event-stream"))
    client = connect()
    asked = {"model": MODEL, "input": "hello", "stream": True}

    def sync() -> bytes:
        with client.interactions.with_streaming_response.create(**asked) as response:
            return b"".join(response.http_response.iter_raw())

    async def asynchronous() -> bytes:
        async with client.aio.interactions.with_streaming_response.create(**asked) as response:
            return b"".join([part async for part in response.http_response.aiter_raw()])

    got = sync() if mode == "sync_stream" else run(client, asynchronous)
    assert got == BYTES
    assert pool.ledger.kinds == [LeaseOutcome.SUCCESS]
    outcome = pool.ledger.outcomes[0][1]
    assert outcome.usage[:2] == (40, 2)
    owner = gemini.log[0].key
    gemini.reset_log()
    gemini.always_any(Reply.custom(200, {"id": "v1_x", "status": "completed", "steps": []}))
    for _ in range(3):
        connect().interactions.get("v1_x")
    assert keys_of(gemini) == [owner] * 3, "its id was learned"
