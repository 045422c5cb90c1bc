"""Interactions rotate as generates do: keys, errors that come out, streams."""

import json
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


def test_a_background_interaction_is_polled_with_its_key(gemini, pool, connect) -> None:
    pool("A", "B", "C", strategy="fill")
    gemini.script("A", Reply.QUOTA_MINUTE)
    gemini.script("B", Reply.KEY_INVALID)
    client = connect()
    made = client.interactions.create(model=MODEL, input="hello", background=True)
    assert made.status == "in_progress"
    assert client.interactions.get(made.id).status == "completed"
    assert keys_of(gemini) == ["A", "B", "C", "C"]


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
