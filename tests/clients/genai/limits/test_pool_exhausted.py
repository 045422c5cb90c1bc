"""No key is available: raised at once, with text and codes that every caller understands."""

import json
import pickle
from datetime import UTC, datetime

import pytest
from google.genai import errors
from support.modes import MODES, ask, calls

import keyrot_middleware
from keyrot_middleware.testing import Reply


def exhausted(mode, gemini, pool, connect, *replies, **settings):
    """Let every key of a pool fail, then call again; return what is raised."""
    labels = [f"key_{n}" for n in range(len(replies))]
    pool(*labels, strategy="fill", max_wait_s=0, **settings)
    for label, reply in zip(labels, replies, strict=True):
        gemini.always(label, reply)
    client = connect()
    calls(mode, client, 1)
    gemini.reset_log()
    with pytest.raises(errors.ClientError) as caught:
        ask(mode, client)
    return caught.value


@pytest.mark.parametrize("mode", MODES)
def test_while_all_keys_cool_down_nothing_is_sent(mode, gemini, pool, connect) -> None:
    """A 429 like Google's own is raised at once, and no request is sent."""
    error = exhausted(mode, gemini, pool, connect, Reply.QUOTA_MINUTE, Reply.QUOTA_MINUTE)
    assert type(error) is keyrot_middleware.KeyPoolExhausted
    assert gemini.count() == 0
    assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
    assert error.details["error"]["code"] == 429
    assert error.message == error.details["error"]["message"]
    assert json.loads(error.response.text) == error.response.json() == error.details
    assert error.response.status_code == 429
    assert (error.__cause__, error.__context__) == (None, None)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(again) is type(error)
    for name in ("args", "code", "status", "message", "details", "retry_at", "reasons"):
        assert getattr(again, name) == getattr(error, name)
    assert (str(again), again.response.text) == (str(error), error.response.text)


def test_a_model_that_is_gone_for_all_keys_is_googles_own_answer(gemini, pool, connect) -> None:
    """Not a 429 to repeat in a day, but the text that may name the successor, at once too."""
    pool("A", "B", max_wait_s=0)
    for key in "AB":
        gemini.always(key, Reply.NEW_USERS)
    found = []
    for _ in range(2):
        with pytest.raises(errors.ClientError) as caught:
            ask("sync", connect())
        found.append(caught.value)
    assert type(found[0]) is errors.ClientError
    assert len(found[0].__notes__) == 2
    assert found[0].code == found[1].code == 404
    assert found[0].message == found[1].message


@pytest.mark.parametrize("mode", MODES)
def test_keys_that_are_all_rejected_have_the_last_rejection(mode, gemini, pool, connect) -> None:
    """Code, status and details are Google's, at the call that finds it out as at the next one."""
    pool("A", "B", strategy="fill", max_wait_s=0)
    gemini.always("A", Reply.KEY_LEAKED)
    gemini.always("B", Reply.KEY_INVALID)
    client = connect()
    found = []
    for _ in range(2):
        with pytest.raises(keyrot_middleware.KeyPoolExhausted) as caught:
            ask(mode, client)
        found.append((caught.value.code, caught.value.status, caught.value.message))
    assert found == [(400, "INVALID_ARGUMENT", found[0][2])] * 2
    assert "API key not valid" in found[0][2]
    assert "API_KEY_INVALID" in {d.get("reason") for d in caught.value.details["error"]["details"]}
    assert caught.value.retry_at == datetime(2026, 1, 1, 12, 45, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("reply", "code", "status"),
    [
        (Reply.KEY_INVALID, 400, "INVALID_ARGUMENT"),
        (Reply.TOKEN_UNSUPPORTED, 401, "UNAUTHENTICATED"),
        (Reply.KEY_LEAKED, 403, "PERMISSION_DENIED"),
        (Reply.KEY_SUSPENDED, 403, "PERMISSION_DENIED"),
    ],
)
def test_a_rejection_elsewhere_has_its_code(reply, code, status, gemini, pool, connect) -> None:
    """A shared state has the reasons of the rejections, though not Google's messages."""
    made = pool("A", "B", max_wait_s=0)
    gemini.always_any(reply)
    client = connect()
    calls("sync", client, 2)
    made._refusals.clear()  # as in a process that has not sent anything
    with pytest.raises(keyrot_middleware.KeyPoolExhausted) as caught:
        ask("sync", client)
    error = caught.value
    assert (error.code, error.status) == (code, status)
    assert error.retry_at is not None
    assert error.details["error"]["code"] == error.response.status_code == code
    assert set(error.reasons) == {"A", "B"}


def test_an_exhausted_day_of_all_keys_is_named(gemini, pool, connect) -> None:
    """Some callers wait for a minute and stop for a day: the QuotaFailure distinguishes them."""
    error = exhausted("sync", gemini, pool, connect, Reply.QUOTA_DAY, Reply.QUOTA_DAY)
    assert error.code == 429
    assert "PerDay" in json.dumps(error.details)
