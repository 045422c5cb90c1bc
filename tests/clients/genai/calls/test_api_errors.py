"""Errors of the request itself are the SDK's, sent once, and penalize no key."""

import pickle

import pytest
from support.modes import (
    AIOHTTP,
    MODEL,
    MODES,
    calls,
    sdk_error,
    spread,
)

import keyrot_middleware
from keyrot_middleware.testing import Reply

TOKEN = "Bearer FAKE-token-of-another-service"
OF_THE_REQUEST = (
    "BAD_REQUEST",
    "BAD_FIELD",
    "TOO_MANY_TOKENS",
    "MODEL_NOT_FOUND",
    "NOT_FOUND_HTML",
    "THOUGHT_SIGNATURE",
    "THOUGHT_SIGNATURE_INVALID",
    "THOUGHT_SIGNATURE_MISSING",
    "FILE_DENIED",
    "CACHE_DENIED",
    "CANCELLED",
    "UNREGISTERED",
    "OF_A_GATEWAY",
)
GATEWAY = Reply.custom(401, "<html>Sign in</html>", content_type="text/html")
"""A proxy is not Google: what all keys get from it penalizes none."""


def penalized() -> list[str]:
    keys = keyrot_middleware.status()["keys"].items()
    return [key_id for key_id, key in keys if key["in_cooldown"] or not key["active"]]


def same_as(mode, error, plain) -> None:
    """Check that two errors look the same to a program, in another process too."""
    if not mode.startswith("async"):
        assert error.response.text == plain.response.text
        error, plain = (pickle.loads(pickle.dumps(e)) for e in (error, plain))  # noqa: S301 - ours
    assert type(error) is type(plain)
    assert (error.code, error.status, error.message) == (plain.code, plain.status, plain.message)
    assert (error.details, str(error), error.args) == (plain.details, str(plain), plain.args)


@pytest.mark.parametrize(("name", "mode"), spread(OF_THE_REQUEST, MODES))
def test_a_failure_of_the_request_is_the_sdks_own(mode, name, gemini, pool, connect) -> None:
    """One request, the same exception, no key penalized.

    Where no row knows the reply, each key is asked once, since none of them has answered yet; the
    next call is one request.
    """
    gemini.always_any(getattr(Reply, name, GATEWAY))
    client = connect(gemini.add_key("own").value)
    (plain,) = calls(mode, client, 1)
    gemini.reset_log()
    pool("A", "B", "C")
    (error,) = calls(mode, client, 1)
    same_as(mode, error, plain)
    assert (gemini.count(), penalized()) == (3 if name == "OF_A_GATEWAY" else 1, [])
    gemini.reset_log()
    (error,) = calls(mode, client, 1)
    same_as(mode, error, plain)
    assert (gemini.count(), penalized()) == (1, [])


@pytest.mark.parametrize("mode", ["sync", "sync_stream"])
@pytest.mark.parametrize("name", ["QUOTA_MINUTE", "KEY_INVALID", "INTERNAL"])
def test_a_failure_of_the_key_is_too(name, mode, gemini, pool, connect) -> None:
    """As the cause of what says that no key could serve."""
    gemini.always_any(getattr(Reply, name))
    client = connect(gemini.add_key("own", tier="paid").value)
    (plain,) = calls(mode, client, 1)
    pool("A", max_wait_s=0, max_retries=0)
    same_as(mode, sdk_error(*calls(mode, client, 1)), plain)


def test_a_success_has_no_trace_of_failed_attempts(gemini, pool, connect) -> None:
    pool("A", "B", strategy="fill")
    client = connect(gemini.add_key("own").value)
    with keyrot_middleware.bypass():
        plain = client.models.generate_content(model=MODEL, contents="hello")
    gemini.script("A", Reply.QUOTA_MINUTE)
    answer = client.models.generate_content(model=MODEL, contents="hello")
    assert type(answer) is type(plain)
    assert answer.model_dump().keys() == plain.model_dump().keys()
    assert answer.usage_metadata == plain.usage_metadata
    assert answer.sdk_http_response.headers.keys() == plain.sdk_http_response.headers.keys()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_read_timeout_is_the_callers_own(mode, gemini, pool, connect) -> None:
    """The program set a deadline: it is raised at once, after one request, with the same class."""
    gemini.always_any(Reply.HANG)
    client = connect(gemini.add_key("own").value, timeout=1_000)
    (plain,) = calls(mode, client, 1)
    assert gemini.wait_for(1)
    gemini.reset_log()
    pool("A", "B")
    (error,) = calls(mode, client, 1)
    assert type(error) is type(plain)
    assert gemini.wait_for(1)  # the server may be slower than the timeout
    assert (gemini.count(), penalized()) == (1, [])


@pytest.mark.parametrize("mode", MODES)
def test_a_header_that_is_no_key_stays_readable(mode, gemini, pool, connect) -> None:
    """The key is removed from the failed request, and not the program's own token."""
    pool("A", max_wait_s=0)
    gemini.always("A", Reply.QUOTA_DAY)
    (error,) = calls(mode, connect(headers={"Authorization": TOKEN}), 1)
    if not (AIOHTTP and mode.startswith("async")):  # which has no request
        headers = sdk_error(error).response.request.headers
        assert (headers["authorization"], headers["x-goog-api-key"]) == (TOKEN, "keyrot-pool")
