"""No key is available: raised at once, with text and codes that every caller understands."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from google.genai import errors
from support.modes import MODES, STREAMS, ask, calls, skip_where_the_sdk_reconnects

import keyrot_middleware
from keyrot_middleware.core.failures import REJECTIONS
from keyrot_middleware.errors import rejection_code
from keyrot_middleware.testing import Reply

SNIFFED = ("timeout", "403", "500", "502", "503")


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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [*permutations([Reply.KEY_INVALID, Reply.QUOTA_DAY])])
def test_keys_that_all_fail_within_one_call_exhaust_the_pool(
    order, mode, gemini, pool, connect
) -> None:
    """In either order: a 429 with a time, from the SDK's last error, and a note per attempt."""
    pool("A", "B", strategy="fill", max_wait_s=0)
    for label, reply in zip("AB", order, strict=True):
        gemini.always(label, reply)
    with pytest.raises(keyrot_middleware.KeyPoolExhausted) as caught:
        ask(mode, connect())
    error, reasons = caught.value, caught.value.reasons
    assert (error.code, error.status, gemini.count()) == (429, "RESOURCE_EXHAUSTED", 2)
    assert {why.split()[0].rstrip(",") for why in reasons.values()} == {"key_invalid", "quota_day"}
    assert error.retry_at is not None
    assert type(error.__cause__) is errors.ClientError
    assert error.__cause__.code == order[-1].status
    assert [note.split(":")[1] for note in error.__notes__] == [
        " attempt 1 with key A",
        " attempt 2 with key B",
    ]


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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", [Reply.BAD_REQUEST, Reply.OVERLOADED, Reply.RESET])
def test_errors_that_are_no_keys_fault_are_the_sdks_own(fault, mode, gemini, pool, connect) -> None:
    """A bad request, a busy model and a lost connection, behind a key that failed."""
    skip_where_the_sdk_reconnects(mode)
    pool("A", "B", strategy="fill", max_wait_s=0, max_retries=0)
    gemini.script("A", Reply.QUOTA_DAY)
    gemini.always("B", fault)
    with pytest.raises(Exception, match=r".") as caught:
        ask(mode, connect())
    assert not isinstance(caught.value, keyrot_middleware.KeyPoolExhausted)
    assert len(caught.value.__notes__) == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_limit_on_attempts_is_no_exhausted_pool(mode, gemini, pool, connect, caplog) -> None:
    """The error says which keys were tried; no alarm is raised, since another key may serve."""
    pool("A", "B", "C", strategy="fill", max_wait_s=0, max_attempts=2)
    for label in "AB":
        gemini.always(label, Reply.QUOTA_DAY)
    client = connect()
    with pytest.raises(keyrot_middleware.KeyPoolExhausted, match="that was tried") as caught:
        ask(mode, client)
    assert set(caught.value.reasons) == {"A", "B"}
    assert "no key is available" not in caplog.text
    assert ask(mode, client) == "ok from C"


@pytest.mark.parametrize("mode", MODES)
def test_the_response_of_an_exhausted_pool_is_readable(mode, gemini, pool, connect) -> None:
    """Frameworks print `response.text` and read `response.json()`: both are the body."""
    error = exhausted(mode, gemini, pool, connect, Reply.QUOTA_MINUTE)
    assert json.loads(error.response.text) == error.details
    assert error.response.json() == error.details
    assert error.response.status_code == 429


def test_the_error_has_the_time_and_the_reasons(gemini, pool, connect, clock) -> None:
    """`retry_at` is the soonest of all, `reasons` has each key, RetryInfo rounds up."""
    error = exhausted(
        "sync", gemini, pool, connect, Reply.QUOTA_MINUTE, Reply.KEY_INVALID, Reply.QUOTA_DAY
    )
    now = datetime.fromtimestamp(clock.time(), UTC)
    assert timedelta(seconds=20) < error.retry_at - now <= timedelta(seconds=31)
    assert 0 <= error.retry_in - (error.retry_at - now).total_seconds() < 1
    assert set(error.reasons) == {"key_0", "key_1", "key_2"}
    assert error.reasons["key_0"].startswith("quota_minute until 2026-01-01T12:3")
    assert error.reasons["key_1"].startswith(
        "key_invalid, rejected; replace its value; tried again"
    )
    assert error.reasons["key_2"].startswith("quota_day until 2026-01-02T08:00")
    assert all(text in error.message for text in error.reasons.values())
    (info,) = [d for d in error.details["error"]["details"] if d["@type"].endswith("RetryInfo")]
    assert 0 <= float(info["retryDelay"].rstrip("s")) - (error.retry_at - now).total_seconds() < 2


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_error_can_be_pickled(mode, gemini, pool, connect) -> None:
    """A worker sends it to its parent process: all fields arrive."""
    error = exhausted(mode, gemini, pool, connect, Reply.QUOTA_MINUTE)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(again) is type(error)
    assert (str(again), again.args) == (str(error), error.args)
    for name in ("code", "status", "message", "details", "retry_at", "retry_in", "reasons"):
        assert getattr(again, name) == getattr(error, name)
    assert again.response.text == error.response.text


def test_the_text_has_no_substring_that_frameworks_search_for(gemini, pool, connect) -> None:
    """None of the substrings from which frameworks guess another error."""
    replies = [Reply.QUOTA_MINUTE, Reply.EXHAUSTED, Reply.KEY_INVALID, Reply.QUOTA_DAY]
    error = exhausted("sync", gemini, pool, connect, *replies)
    text = f"{error} {error.response.text} {error.reasons}".lower()
    assert [word for word in SNIFFED if word in text] == []


@pytest.mark.parametrize("mode", MODES)
def test_all_invalid_is_an_auth_error(mode, gemini, pool, connect) -> None:
    """Not a rate limit: code, status and details are those of the last rejection."""
    error = exhausted(mode, gemini, pool, connect, Reply.KEY_INVALID, Reply.KEY_INVALID)
    assert type(error) is keyrot_middleware.KeyPoolExhausted
    assert gemini.count() == 0
    assert (error.code, error.status) == (400, "INVALID_ARGUMENT")
    assert "API_KEY_INVALID" in {
        detail.get("reason") for detail in error.details["error"]["details"]
    }
    assert error.retry_at == datetime(2026, 1, 1, 12, 45, 30, tzinfo=UTC)
    assert set(error.reasons) == {"key_0", "key_1"}
    assert json.loads(error.response.text) == error.details


@pytest.mark.parametrize(
    ("reply", "code", "status"),
    [
        (Reply.KEY_LEAKED, 403, "PERMISSION_DENIED"),
        (Reply.KEY_SUSPENDED, 403, "PERMISSION_DENIED"),
    ],
)
def test_all_rejected_has_the_code_of_the_rejection(
    reply, code, status, gemini, pool, connect
) -> None:
    """Whatever the failure is; and the key that Google's body echoes is not in it."""
    error = exhausted("sync", gemini, pool, connect, Reply.KEY_INVALID, reply)
    assert (error.code, error.status) == (code, status)
    assert gemini.key("key_1").value not in repr((error, error.details, error.response.text))


@pytest.mark.parametrize(
    ("reply", "code", "status"),
    [
        (Reply.KEY_INVALID, 400, "INVALID_ARGUMENT"),
        (Reply.TOKEN_UNSUPPORTED, 401, "UNAUTHENTICATED"),
        (Reply.KEY_LEAKED, 403, "PERMISSION_DENIED"),
        (Reply.KEY_SUSPENDED, 403, "PERMISSION_DENIED"),
    ],
)
def test_a_rejection_by_another_process_has_its_code(
    reply, code, status, gemini, pool, connect
) -> None:
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


def test_each_failure_that_rejects_a_key_has_its_code() -> None:
    """Every failure that rejects a key has its code: none of them is raised as a 429."""
    assert {name for name in REJECTIONS if rejection_code([name])[0] == 429} == set()


def test_one_cooling_key_makes_it_a_rate_limit(gemini, pool, connect) -> None:
    """A single cooling key among rejected ones: 429, for a retry can succeed."""
    error = exhausted("sync", gemini, pool, connect, Reply.KEY_INVALID, Reply.QUOTA_MINUTE)
    assert error.code == 429


def test_an_exhausted_day_of_all_keys_is_named(gemini, pool, connect) -> None:
    """Some callers wait for a minute and stop for a day: the QuotaFailure distinguishes them."""
    error = exhausted("sync", gemini, pool, connect, Reply.QUOTA_DAY, Reply.QUOTA_DAY)
    assert error.code == 429
    assert "PerDay" in json.dumps(error.details)


def test_the_pool_recovers(gemini, pool, connect, clock) -> None:
    """When the first key is available again calls succeed."""
    pool("A", max_wait_s=0)
    gemini.script("A", Reply.QUOTA_MINUTE)
    client = connect()
    calls("sync", client, 1)
    (error,) = calls("sync", client, 1)
    clock.advance((error.retry_at - datetime.fromtimestamp(clock.time(), UTC)).total_seconds())
    assert ask("sync", client) == "ok from A"


@pytest.mark.parametrize("mode", STREAMS)
def test_a_stream_raises_it_before_its_first_chunk(mode, gemini, pool, connect) -> None:
    """It is raised where the SDK raises a 429 of a stream."""
    error = exhausted(mode, gemini, pool, connect, Reply.QUOTA_MINUTE)
    assert isinstance(error, errors.ClientError)


def test_the_error_has_no_exception_of_ours_in_its_chain(gemini, pool, connect) -> None:
    """The error has one traceback: no exception of ours is in its chain."""
    error = exhausted("sync", gemini, pool, connect, Reply.QUOTA_MINUTE)
    assert (error.__cause__, error.__context__) == (None, None)
