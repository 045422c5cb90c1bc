"""What comes out of Interactions that fail: the SDK's own exceptions, readable, without keys."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from google.genai import errors
from support.interactions import SDK_WARNINGS, create, error_type
from support.key_search import texts_of
from support.modes import MODES, sdk_error, spread

import keyrot_middleware
from keyrot_middleware.testing import Reply

pytestmark = SDK_WARNINGS


def failing(mode: str, client: Any) -> Any:
    """Return the exception of an interaction that fails."""
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
    """`KeyPoolExhausted`, and the exception that programs with interactions catch."""
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
