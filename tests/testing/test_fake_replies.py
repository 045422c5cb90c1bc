"""Scripted replies: each in its real form, unary and in streams."""

from __future__ import annotations

from typing import Any

import pytest
from google.genai import errors

from keyrot_middleware.testing import Reply

MODEL = "gemini-2.5-flash"
ERRORS = {name: reply for name, reply in Reply.all().items() if reply.status >= 400}


def call(client: Any) -> str:
    """Generate once, and return the text."""
    text: str = client.models.generate_content(model=MODEL, contents="hello").text
    return text


def fails(client: Any) -> errors.APIError:
    """Return the SDK's error of a call that must fail."""
    with pytest.raises(errors.APIError) as caught:
        call(client)
    return caught.value


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_reaches_the_sdk_as_its_own_class(name, gemini, connect) -> None:
    """4xx is a ClientError and 5xx a ServerError, with the code and the log's name for it."""
    key = gemini.add_key("a")
    gemini.script("a", ERRORS[name])
    error = fails(connect(key))
    wanted = errors.ClientError if ERRORS[name].status < 500 else errors.ServerError
    assert type(error) is wanted
    assert error.code == ERRORS[name].status
    assert (gemini.log[0].reply, gemini.log[0].status) == (name, error.code)


def test_scripts_run_in_order_and_end(gemini, connect) -> None:
    """After the script ordinary answers follow."""
    client = connect(gemini.add_key("a"))
    gemini.script("a", Reply.OVERLOADED, Reply.OK, Reply.INTERNAL)
    assert fails(client).code == 503
    assert call(client) == "ok from a"
    assert fails(client).code == 500
    assert gemini.pending("a") == 0
    assert call(client) == "ok from a"


def test_a_script_for_any_key_applies_to_the_next_requests(gemini, connect) -> None:
    """script_any() and always_any() apply to every key; a key's own script comes first."""
    first, second = connect(gemini.add_key("a")), connect(gemini.add_key("b"))
    gemini.script_any(Reply.INTERNAL)
    gemini.script("a", Reply.DEADLINE)
    assert (fails(first).code, fails(second).code) == (504, 500)
    gemini.always_any(Reply.OVERLOADED)
    assert (fails(first).code, fails(second).code) == (503, 503)
    gemini.clear_scripts()
    assert call(first) == "ok from a"


def test_an_invalid_key_has_its_reason(gemini, connect) -> None:
    """Unknown, expired and deleted keys have one reason; the list-wrapped form is unwrapped."""
    client = connect(gemini.add_key("a"))
    gemini.script("a", Reply.KEY_INVALID, Reply.KEY_EXPIRED, Reply.KEY_NOT_FOUND)
    for _ in range(3):
        detail = fails(client).details["error"]["details"][0]
        assert detail["reason"] == "API_KEY_INVALID"
    gemini.script("a", Reply.KEY_INVALID.list_wrapped())
    assert fails(client).message == "API key not valid. Please pass a valid API key."


def test_a_custom_reply(gemini, connect) -> None:
    """custom() takes JSON, text, bytes or a function, and headers."""
    client = connect(gemini.add_key("a"))
    body = {"error": {"code": 418, "message": "teapot", "status": "TEAPOT"}}
    gemini.script(
        "a",
        Reply.custom(418, body, headers={"Retry-After": "7"}),
        Reply.custom(429, lambda request: {"error": {"code": 429, "message": request.label}}),
        Reply.custom(502, "not JSON", content_type="text/plain"),
    )
    teapot = fails(client)
    assert (teapot.status, teapot.response.headers["retry-after"]) == ("TEAPOT", "7")
    assert fails(client).message == "a"
    assert fails(client).message == "not JSON"


def test_failed_requests_count_against_the_quota(gemini, connect) -> None:
    """400 and 500 are counted; 429 and a bad key are not."""
    client = connect(gemini.add_key("a"))
    gemini.script("a", Reply.BAD_REQUEST, Reply.INTERNAL, Reply.QUOTA_MINUTE, Reply.KEY_INVALID)
    for _ in range(4):
        fails(client)
    assert gemini.used("a", MODEL).requests == 2
