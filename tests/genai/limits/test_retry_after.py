"""An overloaded server that names a time is retried then, within the budget."""

from __future__ import annotations

import pytest
from google import genai
from support.modes import MODES, ask, calls

from keyrot_middleware.testing import Reply

RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}


def busy(code: int, seconds: str | None = None, *details: object) -> object:
    """Make the reply of an overloaded service."""
    status = {503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}[code]
    error = {"code": code, "message": "Busy.", "status": status, "details": list(details)}
    headers = {"Retry-After": seconds} if seconds else None
    return Reply.custom(code, {"error": error}, headers=headers)


@pytest.mark.parametrize("reply", [busy(503, "7"), busy(504, "7"), busy(503, None, RETRY_INFO)])
@pytest.mark.parametrize("mode", MODES)
def test_the_named_time_is_waited_for(mode, reply, gemini, pool, connect, clock) -> None:
    """The request is sent again after it, not before."""
    pool("A")
    gemini.script_any(reply)
    began = clock.time()
    assert ask(mode, connect()) == "ok from A"
    assert 7.0 <= clock.time() - began <= 8.0
    assert gemini.count() == 2


def test_a_time_beyond_the_budget_is_not_waited_for(gemini, pool, connect, clock) -> None:
    """Nor is the request sent again before: the error is raised at once."""
    pool("A", max_wait_s=10)
    gemini.always_any(busy(503, "11"))
    began = clock.time()
    (error,) = calls("sync", connect(), 1)
    assert isinstance(error, genai.errors.ServerError)
    assert (clock.time(), gemini.count()) == (began, 1)


def test_all_named_times_of_a_call_fit_into_its_budget(gemini, pool, connect, clock) -> None:
    """Two waits of seven seconds are more than ten."""
    pool("A", max_wait_s=10, max_retries=5)
    gemini.always_any(busy(503, "7"))
    (error,) = calls("sync", connect(), 1)
    assert isinstance(error, genai.errors.ServerError)
    assert gemini.count() == 2


def test_a_time_shorter_than_the_pause_changes_nothing(gemini, pool, connect, clock) -> None:
    """The pause before a retry is kept, with a budget of zero as well."""
    pool("A", max_wait_s=0)
    gemini.script_any(busy(503, "0.01"))
    assert ask("sync", connect()) == "ok from A"


@pytest.mark.parametrize("where", ["client", "request"])
@pytest.mark.parametrize("mode", MODES)
def test_a_timeout_bounds_the_waiting_too(mode, where, gemini, pool, connect, clock) -> None:
    """A program that gives a call five seconds does not wait twenty for a key."""
    pool("A")
    gemini.script("A", Reply.QUOTA_MINUTE)
    began = clock.time()
    of_client = {"timeout": 5_000} if where == "client" else {}
    of_request = {"config": {"http_options": {"timeout": 5_000}}} if where == "request" else {}
    (error,) = calls(mode, connect(**of_client), 1, **of_request)
    assert isinstance(error, genai.errors.ClientError)
    assert (clock.time(), gemini.count()) == (began, 1)
