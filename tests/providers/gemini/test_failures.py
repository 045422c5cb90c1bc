"""The failure table: each row of docs/failures.md and each real body gets its verdict."""

from __future__ import annotations

from math import inf, isfinite
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import failure_table as want
from support import google_bodies as g
from support.failure_table import CALL, GROUPS, NOW
from support.google_bodies import delay, denied, over, rest

from keyrot_middleware.core.failures import FailureFacts, describe
from keyrot_middleware.core.model import NO_LIMITS, CallInfo, Scope, Verdict
from keyrot_middleware.providers.gemini import Gemini

classify, RULES = Gemini().classify, Gemini.rules

PINNED = CallInfo(
    "gemini-2.5-flash", "generateContent", bound_to_owner=True, resources=("files/a",)
)
# Where the HTTP code has no meaning, as in a stream, the body decides:
# (what, HTTP code, body, class, code of the verdict, fields).
STREAMED: list[tuple[str, int | None, Any, str, int | None, dict[str, Any]]] = [
    ("overloaded", None, g.OVERLOADED, "overloaded", 503, want.RETRY),
    ("code 0", 0, g.OVERLOADED, "overloaded", 503, want.RETRY),
    ("code 200", 200, g.over("Resource exhausted."), "capacity", 429, want.CAPACITY),
    ("internal", None, g.INTERNAL, "server_error", 500, want.RETRY),
    (
        "deadline",
        None,
        g.rest(504, "DEADLINE_EXCEEDED", g.DEADLINE),
        "deadline",
        504,
        {**want.RETRY, "max_retries": 1},
    ),
    ("minute", None, g.FREE_MINUTE, "quota_minute", 429, {**want.PACE, "until": NOW + 25.08253422}),
    ("invalid", None, g.INVALID, "key_invalid", 400, want.KEY),
    (
        "Interactions",
        None,
        {**g.interactions("service_unavailable", "High demand"), "event_type": "error"},
        "overloaded",
        503,
        want.RETRY,
    ),
    ("Interactions' day", None, g.interactions("quota_exceeded", "?"), "quota_day", 429, want.DAYS),
    ("nothing known", None, {"error": {"message": "?"}}, "unknown", None, want.RAISE),
    ("no error", 200, {}, "unknown", 200, want.RAISE),
    ("redirect", 302, None, "unknown", 302, want.RAISE),
    ("nothing", None, None, "unknown", None, want.RAISE),
]
ROWS = [
    pytest.param(code, body, group.failure, code, group.fields, id=f"{code} {name}")
    for group in GROUPS
    for name, code, body in group.bodies
] + [pytest.param(*row[1:], id=f"stream {row[0]}") for row in STREAMED]


@pytest.mark.parametrize(("code", "body", "failure", "verdict_code", "fields"), ROWS)
def test_body_gets_its_verdict(
    code: int | None, body: Any, failure: str, verdict_code: int | None, fields: dict[str, Any]
) -> None:
    """Each failure that Google is known for has its class, scope, end and consequence."""
    got = classify(FailureFacts(code, body), CALL, NOW)
    # Covered by test_failure_bodies.py, and test_failure_times.py.
    quotas = {"bucket": got.bucket, "learned": got.learned, "retry_delay_s": got.retry_delay_s}
    expected = Verdict(failure, verdict_code, **{**quotas, **fields})
    assert got == expected


TRANSPORT = [
    ("connect", Verdict("connect", retry=True, sent=False)),
    ("reset", Verdict("reset", retry=True)),
    ("timeout", Verdict("timeout")),
    ("other", Verdict("transport")),
]


@pytest.mark.parametrize(("transport", "verdict"), TRANSPORT, ids=[row[0] for row in TRANSPORT])
def test_transport_error_penalizes_no_key(transport: Any, verdict: Verdict) -> None:
    """A lost connection is retried, a deadline is the caller's, and neither penalizes a key."""
    assert classify(FailureFacts(transport=transport), CALL, NOW) == verdict


def test_every_row_is_reached() -> None:
    """Each row of the table has a body or transport error here that leads to it."""
    reached = {group.failure for group in GROUPS} | {row[3] for row in STREAMED}
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
    g.SUSPENDED["error"]["message"],
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
    info = CallInfo("gemini-2.5-flash", verb, counts_in_quota=False)
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


NAMES = ["error", "code", "message", "status", "details", "reason", "violations", "quotaId"]
NAMES += ["quotaValue", "quotaDimensions", "model", "retryDelay", "metadata", "quota_limit"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=6)
    ),
    max_leaves=25,
)
BLAMING_CODES = {401, 402, 429}
SIGNALS = {word for rule in RULES for word in rule.reasons}
SIGNALS |= {"AUTHENTICATION", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS"}


def _texts_of(body: object) -> str:
    """Collect every text in a body, to search it for signals."""
    if isinstance(body, dict):
        return " ".join(_texts_of(part) for pair in body.items() for part in pair)
    return " ".join(map(_texts_of, body)) if isinstance(body, list) else str(body)


@given(
    body=JSON,
    code=st.none() | st.integers(-1, 700),
    retry_after=st.none() | st.text(),
    tokens=st.integers(0, 10**9),
)
def test_unknown_body_never_raises_nor_penalizes(
    body: Any, code: int | None, retry_after: str | None, tokens: int
) -> None:
    """Whatever comes back, there is a verdict, and it penalizes no key without a known signal."""
    info = CallInfo("m", "generateContent", tokens=tokens)
    got = classify(FailureFacts(code, body, retry_after), info, NOW)
    blamed = got.scope is not Scope.NONE or got.rotate
    text = _texts_of(body).upper()
    known = any(str(sign) in text for sign in BLAMING_CODES | SIGNALS)
    assert not blamed or code in BLAMING_CODES or known
    assert got.until is None or got.until == inf or (isfinite(got.until) and got.until >= NOW)


QUOTA_IDS = st.sampled_from([g.FREE_RPM, g.FREE_RPD, g.FREE_TPM, g.FREE_TPD, g.PAID_TPM])
VALUES = st.none() | st.integers(0, 10**7).map(str)
GRAVITY = ["limit_zero", "quota_day", "quota_minute"]


@given(quotas=st.lists(st.tuples(QUOTA_IDS, VALUES), min_size=1, max_size=4))
def test_gravest_violation_decides(quotas: list[tuple[str, str | None]]) -> None:
    """Of several violations a limit of 0 goes before the day, and the day before the minute."""
    alone = [_of_quotas(quota).failure for quota in quotas]
    together = _of_quotas(*quotas).failure
    assert together == min(alone, key=GRAVITY.index)


def _of_quotas(*quotas: tuple[str, str | None]) -> Verdict:
    body = over(g.INTRO, g.quota_failure(*(g.violation(*quota) for quota in quotas)), delay("9s"))
    return classify(FailureFacts(429, body), CALL, NOW)
