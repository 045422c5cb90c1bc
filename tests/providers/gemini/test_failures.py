"""The failure table: each real body gets its verdict, and docs/failures.md says the same."""

from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from support import google_bodies as g
from support.google_bodies import (
    CALL,
    FAILURES,
    NOW,
    delay,
    denied,
    over,
    quota_failure,
    rest,
    violation,
)

from keyrot_middleware import providers
from keyrot_middleware.core.failures import CLASSES, FOR_GOOD, FailureFacts, describe
from keyrot_middleware.core.model import (
    NO_LIMITS,
    OTHER_PROJECT,
    OTHER_TIER,
    Backoff,
    CallInfo,
    Limits,
    Scope,
    Verdict,
)
from keyrot_middleware.providers.gemini import Gemini

classify, RULES = Gemini().classify, Gemini.rules

PINNED = CallInfo(
    "gemini-3.1-flash-lite", "generateContent", bound_to_owner=True, resources=("files/a",)
)


def _fields(scope: str = "none", after_s: float | None = None, **more: Any) -> dict[str, Any]:
    """Return the fields of a verdict as JSON has them."""
    if backoff := more.pop("backoff", None):
        more["backoff"] = Backoff(*backoff)
    return {"scope": Scope(scope), "until": None if after_s is None else NOW + after_s, **more}


@pytest.mark.parametrize("row", FAILURES, ids=lambda row: f"{row['http']} {row['what']}")
def test_body_gets_its_verdict(row: dict[str, Any]) -> None:
    """Each failure that Google is known for has its class, scope, end and consequence.

    Where the HTTP code has no meaning, as in a stream, the body decides.
    """
    got = classify(FailureFacts(row["http"], row["body"]), CALL, NOW)
    # Covered by test_error_bodies.py.
    quotas = {"bucket": got.bucket, "learned": got.learned, "retry_delay_s": got.retry_delay_s}
    fields = {**quotas, **_fields(**row["verdict"])}
    assert got == Verdict(row["failure"], row["code"], **fields)


TRANSPORT = [
    ("connect", Verdict("connect", retry=True, sent=False)),
    ("reset", Verdict("reset", retry=True)),
    ("timeout", Verdict("timeout")),
    ("slow", Verdict("slow_first_token", rotate=True)),
    ("other", Verdict("transport")),
    ("no_answer", Verdict("no_answer")),
]


@pytest.mark.parametrize(("transport", "verdict"), TRANSPORT, ids=[row[0] for row in TRANSPORT])
def test_transport_error_penalizes_no_key(transport: Any, verdict: Verdict) -> None:
    """A lost connection is retried, a deadline is the caller's, and neither penalizes a key."""
    assert classify(FailureFacts(transport=transport), CALL, NOW) == verdict


def test_every_row_is_reached() -> None:
    """Each row of the table has a body or transport error here that leads to it."""
    reached = {row["failure"] for row in FAILURES}
    reached |= {row[1].failure for row in TRANSPORT}
    assert reached == {rule.name for rule in RULES}


def test_rows_have_names_of_their_own() -> None:
    """A name belongs to one row, and the last row matches everything."""
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))
    assert names[-1] == "unknown"


def test_a_row_without_a_scope_blocks_no_key() -> None:
    """A row without a scope has no end, and no row both retries and penalizes."""
    for rule in RULES:
        assert rule.scope is not Scope.NONE or rule.until.__name__ == "until_backoff"
        assert not (rule.retry and (rule.rotate or rule.scope is not Scope.NONE))


def test_a_denied_resource_is_not_a_denied_model() -> None:
    """The same text about a call that names a stored resource is no evidence about the model."""
    facts = FailureFacts(403, denied("The caller does not have permission"))
    nameless = CallInfo("", "get")
    assert [classify(facts, info, NOW).failure for info in (CALL, PINNED, nameless)] == [
        "model_denied",
        "forbidden",
        "forbidden",
    ]


ECHOES = [
    g.NOT_VALID,
    "Your API key was reported as leaked.",
    g.PREPAY,
    g.BODIES["suspended"]["error"]["message"],
    "Your project has been denied access.",
    "no longer available to new users",
]


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("code", [400, 403, 404])
def test_quoted_request_penalizes_no_key(code: int, echo: str) -> None:
    """A request's own text, quoted in Google's message, has no effect."""
    body = rest(code, "INVALID_ARGUMENT", f"Invalid value at 'contents': \"{echo}\"")
    got = classify(FailureFacts(code, body), CALL, NOW)
    assert (got.scope, got.rotate, got.until) == (Scope.NONE, False, None)


@pytest.mark.parametrize(
    ("verb", "body", "scope"),
    [
        ("countTokens", g.FREE_MINUTE, Scope.KEY_VERB),
        ("cachedContents", g.FREE_MINUTE, Scope.KEY_VERB),
        ("list", g.FREE_MINUTE, Scope.NONE),
        ("get", g.over("Resource exhausted."), Scope.NONE),
        ("countTokens", g.INVALID, Scope.KEY),
    ],
)
def test_an_unmetered_call_is_no_evidence_about_a_model(verb: str, body: Any, scope: Scope) -> None:
    """Its own method cools down, a plain verb not even that; another key may serve.

    An invalid key is recognized as in any other call.
    """
    info = CallInfo("gemini-3.1-flash-lite", verb, counts_in_quota=False)
    code = 400 if body is g.INVALID else 429
    verdict = classify(FailureFacts(code, body), info, NOW)
    assert (verdict.scope, verdict.rotate) == (scope, True)
    assert (verdict.bucket, verdict.learned) == (None, NO_LIMITS)


def test_a_withdrawn_model_does_not_cool_counting_down() -> None:
    """Another key counts for it, and this key serves other models."""
    info = CallInfo("gemini-2.0-flash", "countTokens", counts_in_quota=False)
    text = "This model models/x is no longer available to new users."
    verdict = classify(FailureFacts(404, g.rest(404, "NOT_FOUND", text)), info, NOW)
    assert (verdict.failure, verdict.scope, verdict.rotate) == (
        "model_withdrawn",
        Scope.NONE,
        True,
    )


def test_describe_names_class_and_code() -> None:
    """A failure's short text has its class, and its code if there is one."""
    assert describe(classify(FailureFacts(429, g.FREE_MINUTE), CALL, NOW)) == "quota_minute (429)"
    assert describe(classify(FailureFacts(400, g.INVALID), CALL, NOW)) == "key_invalid (400)"
    assert describe(classify(FailureFacts(transport="reset"), CALL, NOW)) == "reset"


# When a failure ends ---------------------------------------------------------------------------

PACIFIC = ZoneInfo("America/Los_Angeles")


def at(*parts: int) -> float:
    """Return a Pacific wall-clock time as epoch seconds."""
    return datetime(*parts, tzinfo=PACIFIC).timestamp()  # type: ignore[misc,arg-type]


def over_quota(quota_id: str, retry: str | None = None, now: float = NOW) -> Verdict:
    """Classify a 429 of one quota, with or without a RetryInfo."""
    details = [quota_failure(violation(quota_id, "250000"))]
    details += [delay(retry)] if retry else []
    return classify(FailureFacts(429, over("?", *details)), CALL, now)


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
    info = CallInfo("gemini-3.1-flash-lite", "generateContent", tokens=tokens)
    verdict = classify(FailureFacts(429, body), info, NOW)
    assert (verdict.failure, verdict.may_wait, verdict.exceeds_limit) == (
        "quota_minute",
        wait,
        not wait,
    )
    assert (verdict.bucket, verdict.learned) == ("gemini-3.1-flash-lite", Limits(tpm=250_000))


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


# The page --------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[3] / "docs" / "failures.md"


def _rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row for row in cells}


def test_rows_are_in_the_order_of_the_table() -> None:
    """Every row's name is on the page, in the order in which rows are matched."""
    assert list(_rows()) == [*(rule.name for rule in RULES), "unknown_limit"]


def test_every_class_of_every_provider_has_a_row_on_the_page() -> None:
    """And no class is known that no row of a table names."""
    rules = {rule.name for name in providers.platforms() for rule in providers.of(name).rules}
    assert rules == CLASSES.keys() == _rows().keys()


def test_an_exhausted_pool_has_the_code_that_google_gave_its_class() -> None:
    """A process that did not meet a refusal knows its class alone, from a state that is shared."""
    given = {row["failure"]: row["code"] for row in FAILURES if row["failure"] in FOR_GOOD}
    codes = Gemini().refusal_codes
    assert given == {name: codes[name] for name in codes if name not in (OTHER_TIER, OTHER_PROJECT)}
