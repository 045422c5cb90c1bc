"""What is parsed from an error body: envelopes, delays, quotas and limits, in every shape."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import google_bodies as g
from support.failure_table import NOW
from support.google_bodies import delay, over, quota_failure, reason, rest, violation

from keyrot_middleware.core.failures import (
    MAX_DELAY_S,
    FailureFacts,
    ParsedError,
    QuotaViolation,
    seconds,
)
from keyrot_middleware.core.model import Limits
from keyrot_middleware.providers.gemini import Gemini

BUSY: dict[str, Any] = {"code": 429, "message": "Busy.", "status": "RESOURCE_EXHAUSTED"}
ENVELOPES = {
    "error": {"error": BUSY},
    "list of one": [{"error": BUSY}],
    "the error of several chunks": [{"candidates": []}, {"error": BUSY}],
    "the inner object alone": BUSY,
    "JSON text": json.dumps({"error": BUSY}),
    "JSON text of a list": json.dumps([{"error": BUSY}]),
    "JSON in a message": {"message": json.dumps({"error": BUSY}), "status": "Too Many Requests"},
    "JSON in an error's message": {"error": {"message": json.dumps({"error": BUSY}), "code": 429}},
    "text for an error": {"error": "Busy.", "status": "ignored"},
}


def parse(body: object, code: int | None = 429, retry_after: str | None = None) -> ParsedError:
    return Gemini().parse_error(FailureFacts(code, body, retry_after), NOW)


@pytest.mark.parametrize("body", ENVELOPES.values(), ids=ENVELOPES.keys())
def test_envelope_is_opened(body: object) -> None:
    """Every shape in which an error may come has the same message."""
    assert parse(body).message == "Busy."


@pytest.mark.parametrize(
    "body", [None, 7, "", [], [1, 2], {}, {"error": None}, {"error": []}, {"message": 3}, "[1]"]
)
def test_an_unreadable_body_is_parsed_as_empty(body: object) -> None:
    """A body without an error in it has no reason, quota or delay."""
    parsed = parse(body)
    assert (parsed.reasons, parsed.quotas, parsed.retry_delay_s) == (frozenset(), (), None)


@pytest.mark.parametrize("text", ["plain", "{ no JSON", "[" * 100_000, "[1, 2]", "  "])
def test_text_is_its_own_message(text: str) -> None:
    """Text that is no JSON of an error is the message, limited in length."""
    assert parse(text).message == text.strip()[:8192]


def test_nested_json_is_opened_to_a_limited_depth() -> None:
    """JSON within JSON within JSON is parsed to a limited depth."""
    body: object = {"error": BUSY}
    for _ in range(9):
        body = {"message": json.dumps(body)}
    assert parse(body).message.startswith("{")


CODES = [
    (429, rest(503, "UNAVAILABLE", "?"), 429),
    (None, rest(503, "UNAVAILABLE", "?"), 503),
    (0, {"error": {"code": "503"}}, 503),
    (200, {"error": {"code": "too_many_requests"}}, 429),
    (None, {"error": {"code": 14, "status": "UNAVAILABLE"}}, 503),
    (None, {"error": {"code": True, "status": "??"}}, None),
    (200, {}, 200),
    (0, None, None),
]


@pytest.mark.parametrize(("http", "body", "code"), CODES)
def test_code_is_the_bodys_where_http_has_none(
    http: int | None, body: object, code: int | None
) -> None:
    """An HTTP error code counts; otherwise the body's number, then its status."""
    assert parse(body, http).code == code


DURATIONS = [
    ("4h59m27.724879759s", 17967.724879759),
    ("48.939935699s", 48.939935699),
    ("900ms", 0.9),
    ("1m500ms", 60.5),
    ("43424s", 43424.0),
    ("0s", 0.0),
    ("5", None),
    ("", None),
    ("5d", None),
    ("-5s", None),
    ("soon", None),
]


@pytest.mark.parametrize(("text", "expected"), DURATIONS)
def test_durations_are_parsed(text: str, expected: float | None) -> None:
    """Hours, minutes, seconds and milliseconds in any mixture; anything else is None."""
    assert seconds(text) == (None if expected is None else pytest.approx(expected))


@given(h=st.integers(0, 99), m=st.integers(0, 59), ms=st.integers(0, 59_999))
def test_go_durations_round_trip(h: int, m: int, ms: int) -> None:
    """A time written as Google writes it is read back as it was."""
    assert seconds(f"{h}h{m}m{ms / 1000}s") == pytest.approx(h * 3600 + m * 60 + ms / 1000)


DATE = format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)
DELAYS = {
    "RetryInfo": (over("?", delay("7s")), None, 7.0),
    "the message in full beats RetryInfo cut": (g.PAID_MINUTE, "3", 48.939935699),
    "RetryInfo beats a shorter message": (over("Please retry in 2s.", delay("9s")), None, 9.0),
    "the message alone": (over("Please retry in 900ms."), None, 0.9),
    "details before the header": (over("?", delay("7s")), "60", 7.0),
    "header, seconds": (None, " 12.5 ", 12.5),
    "header, date": (None, DATE, 90.0),
    "header, date without a zone": (None, DATE.replace("GMT", "-0000"), 90.0),
    "header, past date": (None, "Wed, 21 Oct 2015 07:28:00 GMT", None),
    "header, rubbish": (None, "soon", None),
    "header, no such date": (None, "Wed, 99 Oct 2015 07:28:00 GMT", None),
    "nothing": (None, None, None),
    "zero": (over("?", delay("0s")), "0", None),
    "rubbish": (over("?", delay("soon"), {"retryDelay": 3}), None, None),
    "absurd": (over("?", delay("999999999s")), None, MAX_DELAY_S),
}


@pytest.mark.parametrize(("body", "header", "expected"), DELAYS.values(), ids=DELAYS.keys())
def test_delay_is_found(body: object, header: str | None, expected: float | None) -> None:
    """The server's delay comes from details, the message, the header, in this order."""
    got = parse(body, retry_after=header).retry_delay_s
    assert got == (None if expected is None else pytest.approx(expected, abs=1e-6))


def of(*violations: dict[str, Any], message: str = "?") -> ParsedError:
    return parse(over(message, quota_failure(*violations)))


LEARNED = {
    "RPM": ("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", Limits(rpm=9)),
    "RPM of embeddings": (
        "EmbedContentRequestsPerMinutePerUserPerProjectPerModel-FreeTier",
        Limits(rpm=9),
    ),
    "TPM": ("GenerateContentInputTokensPerModelPerMinute-FreeTier", Limits(tpm=9)),
    "paid TPM": ("GenerateContentPaidTierInputTokensPerModelPerMinute", Limits(tpm=9)),
    "RPD": ("GenerateRequestsPerDayPerProjectPerModel-FreeTier", Limits(rpd=9)),
    "paid RPD": ("generate_requests_per_model_per_day", Limits(rpd=9)),
    "TPD": ("GenerateContentInputTokensPerModelPerDay-FreeTier", Limits()),
    "batch": ("BatchEnqueuedRequestsPerModelPerDay", Limits()),
    "region": ("GenerateContentRequestsPerMinutePerProjectPerRegion", Limits()),
    "unknown": ("ImagesPerBlueMoon", Limits()),
}


@pytest.mark.parametrize(("quota_id", "limits"), LEARNED.values(), ids=LEARNED.keys())
def test_limits_are_learned(quota_id: str, limits: Limits) -> None:
    """QuotaId and quotaValue give a model's limit; from other quotas nothing is learned."""
    assert of(violation(quota_id, "9")).limits == limits


def test_limits_are_learned_from_all() -> None:
    """Each of several violations gives its limit; of two for one window the lower counts."""
    parsed = of(
        violation(g.FREE_RPM, "15"),
        violation(g.FREE_RPM, "5"),
        violation(g.FREE_RPD, "20"),
        violation(g.FREE_TPM, "250000"),
    )
    assert parsed.limits == Limits(rpm=5, tpm=250_000, rpd=20)


@pytest.mark.parametrize("value", [None, "0", "", "many", "-5", 1.5, True, "9" * 30])
def test_no_limit_is_learned_from_an_invalid_value(value: Any) -> None:
    """A limit of 0, or a value that is no whole number, is not learned."""
    assert of(violation(g.FREE_RPM, value)).limits == Limits()


def test_an_omitted_value_is_zero() -> None:
    """Google leaves `quotaValue` out for 0, in a quota whose window is known."""
    assert of(violation(g.FREE_RPM, None)).quotas[0].limit == 0
    assert of(violation("SomethingPerModel", None)).quotas[0].limit is None


def test_the_message_has_the_omitted_value() -> None:
    """Where details omit the value and the message's line has it, the line counts."""
    line = "* Quota exceeded for metric: generativelanguage.googleapis.com/m, limit: 5, model: x"
    assert of(violation(g.FREE_RPM, None), message=line).quotas[0].limit == 5


def test_lines_of_the_message_replace_missing_details() -> None:
    """Without details the message's lines give metric, limit and bucket; otherwise they do not."""
    message = g.PAID_DAY["error"]["message"]
    parsed = parse(over(message))
    assert parsed.quotas == (
        QuotaViolation("generaterequestspermodelperday", 250, "gemini-3.1-pro"),
    )
    assert (parsed.bucket, parsed.limits) == ("gemini-3.1-pro", Limits(rpd=250))
    assert of(violation(g.FREE_RPM, "5"), message=message).bucket == "gemini-2.5-flash"


def test_line_without_a_model() -> None:
    """The form of 2025 has no bucket in its line, and none is invented."""
    parsed = parse(over("Quota exceeded for metric: a.com/free_tier_requests, limit: 0\nPlease"))
    assert parsed.quotas == (QuotaViolation("freetierrequests", 0, None),)
    assert parsed.bucket is None


def test_old_form_is_read() -> None:
    """The ErrorInfo of 2025 names its quota in the metadata."""
    assert parse(g.OLD_FORM).quotas == (
        QuotaViolation("generatecontentrequestsperminuteperprojectperregion", 60),
    )


@pytest.mark.parametrize(
    ("dimensions", "bucket"),
    [({"model": "models/x"}, "x"), ({"model": 3}, None), (None, None), ({}, None)],
)
def test_bucket_comes_from_the_dimensions(dimensions: Any, bucket: str | None) -> None:
    """The bucket is Google's own name, without the prefix of a resource."""
    assert of({"quotaId": g.FREE_RPM, "quotaDimensions": dimensions}).bucket == bucket


def test_reasons_are_collected() -> None:
    body = rest(403, "PERMISSION_DENIED", "?", reason("A_REASON"), {"reason": 5}, reason("B"))
    assert parse(body).reasons == {"PERMISSION_DENIED", "A_REASON", "B"}
    assert parse(g.interactions("quota_exceeded", "?")).reasons == {"QUOTA_EXCEEDED"}


def test_malformed_details_are_ignored() -> None:
    """A value that is no object where one should be is ignored."""
    body = {"error": {"details": [3, None, {"violations": [4, {"quotaId": 5}]}, {"metadata": 1}]}}
    assert parse(body).quotas == ()
    assert parse({"error": {"details": {"reason": "X"}}}).reasons == frozenset()


SHAPES: list[tuple[Any, tuple[bool, bool]]] = [
    (g.INVALID, (True, True)),
    ([g.INVALID], (True, True)),
    (json.dumps(g.INVALID), (True, True)),
    ({"message": json.dumps(g.INVALID), "status": "Bad Request"}, (True, True)),
    (g.INVALID["error"], (True, True)),
    (g.interactions("authentication", "No."), (True, True)),
    ({"error": {"code": 400, "message": "?", "details": [g.HELP]}}, (True, True)),
    ({"error": {"code": 400, "message": "?", "details": [{"@type": 3}, {}]}}, (True, False)),
    ({"error": {"code": 400, "message": "?", "status": "Bad"}}, (True, False)),
    ({"error": {"code": "400", "message": "?"}}, (False, False)),
    ({"error": {"code": "authentication", "message": "?", "type": "x"}}, (False, False)),
    ({"error": {"code": 400, "status": "INVALID_ARGUMENT"}}, (False, False)),
    ({"error": "unauthorized"}, (False, False)),
    ({"message": "?", "status": "UNAUTHENTICATED"}, (False, False)),
    ("<html>", (False, False)),
    (None, (False, False)),
]


@pytest.mark.parametrize(("body", "shape"), SHAPES)
def test_googles_shape_is_recognized(body: object, shape: tuple[bool, bool]) -> None:
    """A number or a status of Google's as code, a message, and for certainty a status or type."""
    parsed = parse(body, 401)
    assert (parsed.has_shape, parsed.is_sure) == shape


def test_the_text_of_a_websockets_close_is_googles() -> None:
    """It has no body; Live reports by text alone that a key is invalid."""
    parsed = parse(g.NOT_VALID, 1007)
    assert (parsed.has_shape, parsed.is_sure) == (True, True)
