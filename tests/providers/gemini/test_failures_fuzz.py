"""An unforeseen failure gets a verdict: classify() neither raises nor returns NaN."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from math import inf, isfinite, isnan, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.failure_table import CALL, NOW
from support.google_bodies import delay, over, quota_failure, violation

from keyrot_middleware.core.failures import MAX_DELAY_S, FailureFacts
from keyrot_middleware.providers.gemini import Gemini
from keyrot_middleware.providers.gemini.replies import parse_usage_text

classify, parse_error = Gemini().classify, Gemini().parse_error

HEADERS = [
    ("0\x1f", None),
    ("7\x1f", 7.0),
    ("\x1c7", 7.0),
    ("7\xa0", 7.0),
    ("\u0667", None),
    ("\uff17", None),
    ("\xb2", None),
    ("nan", None),
    ("inf", None),
    ("1e999", None),
    ("-1", None),
    ("0x10", None),
    ("1_0", None),
    ("9" * 400, None),
    ("Mon, 01 Jan 0001 00:00:00 +2359", None),
    ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_DELAY_S),
    ("Fri, 31 Dec 9999 23:59:59 -9999", None),
    ("Fri, 31 Dec 99999999999 23:59:59 GMT", None),
    ("Mon, 01 Jan 2026 25:61:61 GMT", None),
    ("Mon,", None),
    ("a b c d e", None),
    (", , , , ,", None),
    ("\x00", None),
    ("\ud800", None),
    (b"7", None),
    (7, None),
    (["7"], None),
]


@pytest.mark.parametrize(("header", "expected"), HEADERS, ids=[ascii(h) for h, _ in HEADERS])
def test_retry_after_is_a_time_or_ignored(header: Any, expected: float | None) -> None:
    """Any text in the header is read as it was meant, or not at all."""
    assert parse_error(FailureFacts(429, None, header), NOW).retry_delay_s == expected


DEEP: Any = []
for _ in range(5_000):
    DEEP = [DEEP]

BODIES: dict[str, Any] = {
    "a metric that is a list of lists": over(
        "?", quota_failure({"quotaId": "PerMinute", "quotaMetric": DEEP})
    ),
    "a limit of thousands of digits": over(
        "?", quota_failure({**violation("PerMinutePerModel", "5"), "quotaValue": 10**5_000})
    ),
    "a code of thousands of digits": {"error": {"code": 10**5_000, "message": "?"}},
    "a code that is no number": {"error": {"code": nan, "message": inf, "status": -inf}},
    "a delay that is no number": over("?", delay("nans"), delay("1e999s"), delay("\u0663s")),
    "a message's delay in other digits": over("Please retry in \u0663s."),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_an_unusual_body_gets_a_verdict(body: Any) -> None:
    for code in (429, 400, 503, 200, None):
        _is_sane(classify(FailureFacts(code, body), CALL, NOW))


@pytest.mark.parametrize(
    "code", ["too_many_requests", "429", nan, inf, 429.5, True, -1, 10**40, []]
)
def test_an_unusual_code_gets_a_verdict(code: Any) -> None:
    """The SDK takes the code from the body where it has no other, and it may be a word."""
    _is_sane(classify(FailureFacts(code, {"error": {"code": code, "message": "?"}}), CALL, NOW))


def _is_sane(verdict: Any) -> None:
    until = verdict.until
    assert until is None or (not isnan(until) and until >= NOW)
    assert verdict.code is None or isinstance(verdict.code, int)


DATES = st.builds(
    lambda when: format_datetime(when.replace(tzinfo=UTC), usegmt=True),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)),
)
DIGITS = st.text(alphabet="0123456789.eE+-_ \t\x1c\x1f\xa0\u0663\uff17\xb2infa,:GMT", max_size=30)


@given(header=st.text() | DIGITS | DATES, named=st.text() | DIGITS)
def test_no_text_is_an_endless_or_unreadable_time(header: str, named: str) -> None:
    """A header, a RetryInfo and a message of any text give a delay in bounds, or none."""
    body = over(f"Please retry in {named}", delay(named), delay(f"{named}s"))
    for got in (
        parse_error(FailureFacts(429, None, header), NOW).retry_delay_s,
        parse_error(FailureFacts(429, body, header), NOW).retry_delay_s,
    ):
        assert got is None or (isfinite(got) and 0 < got <= MAX_DELAY_S)


@given(count=st.integers() | st.floats() | DIGITS | st.just(10**400))
def test_no_count_of_tokens_breaks_the_arithmetic(count: Any) -> None:
    used = parse_usage_text(f'{{"usageMetadata": {{"promptTokenCount": {_json(count)}}}}}')[0]
    assert used.input_tokens is None or 0 <= used.input_tokens < 10**18


def _json(value: Any) -> str:
    import json

    return json.dumps(value)
