"""Quotas: windows, sharing, and the 429 with their details."""

from __future__ import annotations

from typing import Any

import pytest
from google.genai import errors

MODEL = "gemini-2.5-flash"


def refused(client: Any, model: str = MODEL, contents: str = "hello") -> dict[str, Any]:
    """Return the error object of a call that must be refused with 429."""
    with pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model=model, contents=contents)
    assert caught.value.code == 429
    assert caught.value.status == "RESOURCE_EXHAUSTED"
    error: dict[str, Any] = caught.value.details["error"]
    return error


def violations(error: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the violations of the QuotaFailure, which is between Help and RetryInfo."""
    kinds = [detail["@type"].rpartition(".")[2] for detail in error["details"]]
    assert kinds == ["Help", "QuotaFailure", "RetryInfo"]
    found: list[dict[str, Any]] = error["details"][1]["violations"]
    return found


def test_requests_over_the_minute_are_refused_until_the_next_one(gemini, clock, connect) -> None:
    """The window is the wall-clock minute: it opens at :00."""
    client = connect(gemini.add_key("free", rpm=2))
    for _ in range(2):
        client.models.generate_content(model=MODEL, contents="hello")
    clock.advance(4.91746578)
    error = refused(client)
    assert violations(error) == [
        {
            "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
            "quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
            "quotaDimensions": {"location": "global", "model": MODEL},
            "quotaValue": "2",
        }
    ]
    assert error["details"][2]["retryDelay"] == "25s"
    assert "\n* Quota exceeded for metric: " in error["message"]
    assert f"limit: 2, model: {MODEL}\nPlease retry in 25.08" in error["message"]
    clock.advance(25.08253422 - 0.001)
    refused(client)
    clock.advance(0.002)
    assert client.models.generate_content(model=MODEL, contents="hello").text == "ok from free"


def test_input_tokens_are_limited_by_the_minute(gemini, connect) -> None:
    """A request that would exceed the tokens is refused with the tokens' quota id."""
    free = connect(gemini.add_key("free", tpm=10))
    paid = connect(gemini.add_key("paid", tier="paid", tpm=10))
    for client in (free, paid):
        client.models.generate_content(model=MODEL, contents="x" * 32)
    ids = [violations(refused(client, contents="x" * 12))[0]["quotaId"] for client in (free, paid)]
    assert ids == [
        "GenerateContentInputTokensPerModelPerMinute-FreeTier",
        "GenerateContentPaidTierInputTokensPerModelPerMinute",
    ]
    free.models.generate_content(model=MODEL, contents="x" * 8)


def test_an_exhausted_paid_day_names_the_true_delay(gemini, clock, connect) -> None:
    """From 12:30:30 UTC it is 19 h 29 min 30 s to midnight in a Californian winter."""
    client = connect(gemini.add_key("paid", tier="paid", rpd=1))
    client.models.generate_content(model=MODEL, contents="hello")
    error = refused(client)
    violation = violations(error)[0]
    assert violation["quotaMetric"].endswith("/generate_requests_per_model_per_day")
    assert error["details"][2]["retryDelay"] == "70170s"
    assert error["message"].endswith("Please retry in 19h29m30s.")
    clock.advance(70_169)
    refused(client)
    clock.advance(1)
    client.models.generate_content(model=MODEL, contents="hello")


def test_keys_of_one_project_share_its_quota(gemini, connect) -> None:
    """The project has the limit, not the key; another model has its own."""
    one = connect(gemini.add_key("one", project="p", rpm=1))
    two = connect(gemini.add_key("two", project="p"))
    other = connect(gemini.add_key("other", project="q", rpm=1))
    one.models.generate_content(model=MODEL, contents="hello")
    refused(two)
    other.models.generate_content(model=MODEL, contents="hello")
    two.models.generate_content(model="gemini-3.6-flash", contents="hello")
