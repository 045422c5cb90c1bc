"""What is read from an error body, in every shape; an unforeseen one gets a verdict too."""

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from math import inf, isfinite
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import google_bodies as g
from support.google_bodies import CALL, NOW, delay, over, quota_failure, reason, rest, violation

from keyrot_middleware.core.failures import (
    MAX_DELAY_S,
    FailureFacts,
    ParsedError,
    QuotaViolation,
    seconds,
)
from keyrot_middleware.core.model import CallInfo, Limits, Scope, Verdict
from keyrot_middleware.providers.gemini import Gemini

pytestmark = pytest.mark.promise(number=7)

classify, RULES = Gemini().classify, Gemini.rules
parse_error = Gemini().parse_error
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
    (429, rest(503, "UNAVAILABLE", "?"), 429), (None, rest(503, "UNAVAILABLE", "?"), 503),
    (0, {"error": {"code": "503"}}, 503), (200, {"error": {"code": "too_many_requests"}}, 429),
    (None, {"error": {"code": 14, "status": "UNAVAILABLE"}}, 503),
    (None, {"error": {"code": True, "status": "??"}}, None), (200, {}, 200), (0, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("http", "body", "code"), CODES)
def test_code_is_the_bodys_where_http_has_none(
    http: int | None, body: object, code: int | None
) -> None:
    """An HTTP error code counts; otherwise the body's number, then its status."""
    assert parse(body, http).code == code


DURATIONS = [
    ("4h59m27.724879759s", 17967.724879759), ("48.939935699s", 48.939935699), ("900ms", 0.9),
    ("1m500ms", 60.5), ("43424s", 43424.0), ("0s", 0.0), ("5", None), ("", None), ("5d", None),
    ("-5s", None), ("soon", None),
]  # fmt: skip


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
    "the message in full beats RetryInfo cut": (g.BODIES["paid minute"], "3", 48.939935699),
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
    assert of(violation(g.FREE_RPM, "5"), message=message).bucket == "gemini-3.1-flash-lite"


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
    (g.INVALID, (True, True)), ([g.INVALID], (True, True)), (json.dumps(g.INVALID), (True, True)),
    ({"message": json.dumps(g.INVALID), "status": "Bad Request"}, (True, True)),
    (g.INVALID["error"], (True, True)), (g.interactions("authentication", "No."), (True, True)),
    ({"error": {"code": 400, "message": "?", "details": [g.HELP]}}, (True, True)),
    ({"error": {"code": 400, "message": "?", "details": [{"@type": 3}, {}]}}, (True, False)),
    ({"error": {"code": 400, "message": "?", "status": "Bad"}}, (True, False)),
    ({"error": {"code": "400", "message": "?"}}, (False, False)),
    ({"error": {"code": "authentication", "message": "?", "type": "x"}}, (False, False)),
    ({"error": {"code": 400, "status": "INVALID_ARGUMENT"}}, (False, False)),
    ({"error": "unauthorized"}, (False, False)),
    ({"message": "?", "status": "UNAUTHENTICATED"}, (False, False)), ("<html>", (False, False)),
    (None, (False, False)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "shape"), SHAPES)
def test_googles_shape_is_recognized(body: object, shape: tuple[bool, bool]) -> None:
    """A number or a status of Google's as code, a message, and for certainty a status or type."""
    parsed = parse(body, 401)
    assert (parsed.has_shape, parsed.is_sure) == shape


def test_the_text_of_a_websockets_close_is_googles() -> None:
    """It has no body; Live reports by text alone that a key is invalid."""
    parsed = parse(g.NOT_VALID, 1007)
    assert (parsed.has_shape, parsed.is_sure) == (True, True)


# Anything --------------------------------------------------------------------------------------


HEADERS = [
    ("0\x1f", None), ("7\x1f", 7.0), ("\x1c7", 7.0), ("7\xa0", 7.0), ("\u0667", None),
    ("\uff17", None), ("\xb2", None), ("nan", None), ("inf", None), ("1e999", None), ("-1", None),
    ("0x10", None), ("1_0", None), ("9" * 400, None), ("Mon, 01 Jan 0001 00:00:00 +2359", None),
    ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_DELAY_S), ("Fri, 31 Dec 9999 23:59:59 -9999", None),
    ("Fri, 31 Dec 99999999999 23:59:59 GMT", None), ("Mon, 01 Jan 2026 25:61:61 GMT", None),
    ("Mon,", None), ("a b c d e", None), (", , , , ,", None), ("\x00", None), ("\ud800", None),
    (b"7", None), (7, None), (["7"], None),
]  # fmt: skip


@pytest.mark.parametrize(("header", "expected"), HEADERS, ids=[ascii(h) for h, _ in HEADERS])
def test_retry_after_is_a_time_or_ignored(header: Any, expected: float | None) -> None:
    """Any text in the header is read as it was meant, or not at all."""
    assert parse_error(FailureFacts(429, None, header), NOW).retry_delay_s == expected


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
