"""The end of a failure, and whether waiting for it helps."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from support import google_bodies as g
from support.failure_table import CALL, NOW
from support.google_bodies import delay, over, quota_failure, violation

from keyrot_middleware.core.failures import FailureFacts
from keyrot_middleware.core.model import CallInfo, Limits, Scope, Verdict
from keyrot_middleware.providers.gemini import Gemini

classify = Gemini().classify

PACIFIC = ZoneInfo("America/Los_Angeles")


def at(*parts: int) -> float:
    """Return a wall-clock time in the Pacific time zone as epoch seconds."""
    return datetime(*parts, tzinfo=PACIFIC).timestamp()  # type: ignore[misc,arg-type]


def over_quota(quota_id: str, retry: str | None = None, now: float = NOW) -> Verdict:
    """Classify a 429 of one quota, with or without a RetryInfo."""
    details = [quota_failure(violation(quota_id, "250000"))]
    details += [delay(retry)] if retry else []
    return classify(FailureFacts(429, over("?", *details)), CALL, now)


@pytest.mark.parametrize(
    ("now", "midnight"),
    [
        ((2026, 11, 24, 12), (2026, 11, 25)),
        ((2026, 3, 8, 1), (2026, 3, 9)),
        ((2026, 11, 1, 0, 30), (2026, 11, 2)),
        ((2026, 12, 31, 23, 59), (2027, 1, 1)),
    ],
    ids=["winter", "23 hours", "25 hours", "new year"],
)
def test_day_ends_at_midnight_pacific_time(now: tuple[int, ...], midnight: tuple[int, ...]) -> None:
    """An exhausted day ends at local midnight, when the clocks change too."""
    assert over_quota(g.FREE_RPD, "2s", at(*now)).until == at(*midnight)


def test_day_believes_only_a_long_delay() -> None:
    """RetryInfo of more than 300 s is a paid day's true one; a shorter one misleads."""
    assert over_quota(g.FREE_RPD, "301s").until == NOW + 301
    assert over_quota(g.FREE_RPD, "300s").until == at(2026, 11, 25)


def test_a_day_is_not_waited_for() -> None:
    """A day is not waited for, not even in its last minute."""
    verdict = over_quota(g.FREE_RPD, now=at(2026, 11, 24, 23, 59, 30))
    assert (verdict.has_known_end, verdict.may_wait) == (True, False)


@pytest.mark.parametrize(("retry", "wait"), [("300s", True), ("301s", False)])
def test_long_delay_is_not_waited_for(retry: str, wait: bool) -> None:
    assert over_quota(g.FREE_RPM, retry).may_wait is wait


def test_retry_after_replaces_missing_retry_info() -> None:
    body = over("?", quota_failure(violation(g.FREE_RPM, "5")))
    assert classify(FailureFacts(429, body, "11"), CALL, NOW).until == NOW + 11
    bare = classify(FailureFacts(429, g.EXHAUSTED, "11"), CALL, NOW)
    assert (bare.failure, bare.scope) == ("rate_limit", Scope.PROJECT_MODEL)
    assert (bare.until, bare.has_known_end) == (NOW + 11, True)


@pytest.mark.parametrize(("tokens", "wait"), [(250_000, True), (250_001, False)])
def test_request_larger_than_the_limit_does_not_wait(tokens: int, wait: bool) -> None:
    """A request of more tokens than a whole minute has never fits by waiting."""
    body = over("?", quota_failure(violation(g.FREE_TPM, "250000")), delay("9s"))
    info = CallInfo("gemini-2.5-flash", "generateContent", tokens=tokens)
    verdict = classify(FailureFacts(429, body), info, NOW)
    assert (verdict.failure, verdict.may_wait, verdict.exceeds_limit) == (
        "quota_minute",
        wait,
        not wait,
    )
    assert (verdict.bucket, verdict.learned) == ("gemini-2.5-flash", Limits(tpm=250_000))


def test_tokens_do_not_matter_to_a_limit_of_requests() -> None:
    assert over_quota(g.FREE_RPM, "9s").may_wait is True


def test_a_limit_of_zero_is_not_exceeded_by_size() -> None:
    """It means that the model is not offered, whatever the request's size."""
    verdict = classify(FailureFacts(429, g.LIMIT_ZERO), CALL, NOW)
    assert (verdict.failure, verdict.exceeds_limit) == ("limit_zero", False)


def test_spending_cap_ends_with_its_month() -> None:
    """A cap is retried within the hour, sooner where its month ends sooner."""
    body = over("Your project has exceeded its monthly spending cap.")
    late = at(2026, 11, 30, 23, 50)
    assert classify(FailureFacts(429, body), CALL, late).until == at(2026, 12, 1)
    assert classify(FailureFacts(429, body), CALL, NOW).until == NOW + 3600


def test_batch_quota_keeps_a_named_time() -> None:
    """A batch's own quota cools one method down until the named time, or with backoff."""
    assert over_quota("BatchEnqueuedTokensPerModel", "60s").until == NOW + 60
    assert over_quota("BatchEnqueuedTokensPerModel").until is None


@pytest.mark.parametrize(
    ("sent", "now", "until"),
    [
        ((2026, 11, 24, 23, 59, 59), (2026, 11, 25, 0, 0, 1), None),
        ((2026, 11, 25, 0, 0, 0), (2026, 11, 25, 0, 0, 1), None),
        ((2026, 11, 25, 0, 9, 59), (2026, 11, 25, 0, 10, 30), None),
        ((2026, 11, 25, 0, 10, 0), (2026, 11, 25, 0, 10, 1), (2026, 11, 26)),
        ((2026, 11, 24, 23, 59, 58), (2026, 11, 24, 23, 59, 59), (2026, 11, 25)),
        (None, (2026, 11, 25, 0, 5), None),
    ],
)
def test_a_day_is_the_one_in_which_the_request_was_sent(
    sent: tuple[int, ...] | None, now: tuple[int, ...], until: tuple[int, ...] | None
) -> None:
    """Around midnight it is the past day: the key backs off, and is not waited for."""
    body = over("?", quota_failure(violation(g.FREE_RPD, "20")), delay("80000s"))
    sent_at = at(*sent) if sent is not None else None
    verdict = classify(FailureFacts(429, body), CALL, at(*now), sent_at)
    assert (verdict.failure, verdict.may_wait) == ("quota_day", False)
    assert (verdict.until is None) is (until is None)
    free = over("?", quota_failure(violation(g.FREE_RPD, "20")), delay("2s"))
    expected = at(*until) if until is not None else None
    assert classify(FailureFacts(429, free), CALL, at(*now), sent_at).until == expected
