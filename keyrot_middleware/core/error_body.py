"""Parses Google's error bodies, whatever their shape.

The shapes (docs/gemini-api.md#shapes): REST's `{"error": {code, message, status, details}}`,
Interactions' `{"error": {message, code: "snake_case"}}`, either in a list of one, the inner object
alone, raw JSON text (appended to a stream after HTTP 200), and `{"message": text, "status": reason
phrase}` that the SDK makes of text that is not JSON. Some gateways put a whole JSON error into
`message`.

Nothing here raises for any body or header, and no delay is infinite or NaN: unparsable parts are
ignored.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from .model import NO_LIMITS, Limits

MAX_DELAY_S = 90_000.0
"""25 hours, the longest Pacific day; longer delays are clamped."""
MAX_MESSAGE = 8_192
"""Google's messages are shorter; those of proxies are truncated."""
MAX_INT = 10**15
"""Larger numbers are neither codes nor limits."""
MAX_NESTING = 5
"""Envelopes around one error: text, list, `error`, JSON in a message, `error`."""

_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,12})?"
_PART = rf"({_NUMBER})(ms|h|m|s)"
_DURATION = re.compile(rf"(?:{_PART})+")
_RETRY_IN = re.compile(rf"retry in ((?:{_PART})+)", re.IGNORECASE)
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_LINE = re.compile(
    r"Quota exceeded for (?:metric: (?P<metric>[\w./-]+)|quota metric '(?P<old>[^']{1,200})')"
    r"(?:, limit: (?P<limit>[0-9]{1,15})(?![0-9.]))?(?:, model: (?P<model>[\w-]+(?:\.[\w-]+)*))?"
)
_CODES = {
    # Interactions' words.
    "AUTHENTICATION": 401,
    "INVALID_REQUEST": 400,
    "PAYMENT_REQUIRED": 402,
    "QUOTA_EXCEEDED": 429,
    "RATE_LIMIT_EXCEEDED": 429,
    "SERVICE_UNAVAILABLE": 503,
    "TOO_MANY_REQUESTS": 429,
    # google.rpc.Code, as REST's `status` has it.
    "CANCELLED": 499,
    "DEADLINE_EXCEEDED": 504,
    "FAILED_PRECONDITION": 400,
    "INTERNAL": 500,
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "UNAUTHENTICATED": 401,
    "UNAVAILABLE": 503,
}


_STATUSES = frozenset(
    {
        "ABORTED",
        "ALREADY_EXISTS",
        "CANCELLED",
        "DATA_LOSS",
        "DEADLINE_EXCEEDED",
        "FAILED_PRECONDITION",
        "INTERNAL",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "OUT_OF_RANGE",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "UNAUTHENTICATED",
        "UNAVAILABLE",
        "UNIMPLEMENTED",
        "UNKNOWN",
    }
)
"""google.rpc.Code, as REST's `status` has it."""
_INTERACTIONS = frozenset(_CODES) | {"INTERNAL_ERROR"}
"""The codes of Interactions."""


class QuotaViolation(NamedTuple):
    """A quota that was exceeded."""

    name: str
    """`quotaId`, or the metric's name from the message: lower case, letters only."""
    limit: int | None = None
    """Zero if the model is not offered (Google then omits `quotaValue`)."""
    model: str | None = None
    """The bucket in which Google counts it."""


class ParsedError(NamedTuple):
    """The content of an error body and its headers."""

    code: int | None
    message: str = ""
    reasons: frozenset[str] = frozenset()
    """ErrorInfo reasons, the REST status, Interactions' code: upper case."""
    quotas: tuple[QuotaViolation, ...] = ()
    retry_delay_s: float | None = None
    """Seconds, more than 0 and at most `MAX_DELAY_S`."""
    has_google_shape: bool = False
    """The body has the shape of Google's errors; else it may be from a proxy or a login page."""
    is_google_error: bool = False
    """It also has fields that others omit, so its code alone is trusted."""
    sent_at: float | None = None
    """When the request was sent, epoch seconds; None: just now."""

    @property
    def bucket(self) -> str | None:
        """Return Google's name of the model bucket."""
        return next((quota.model for quota in self.quotas if quota.model), None)

    @property
    def limits(self) -> Limits:
        """Return the reported limits of the model bucket."""
        return NO_LIMITS._replace(
            rpm=self._least("requests", "perminute"),
            tpm=self._least("inputtokens", "perminute"),
            rpd=self._least("requests", "perday"),
        )

    def exceeds_any_limit(self, tokens: int) -> bool:
        """Return whether *tokens* are more than a whole exceeded limit of input tokens."""
        limits = [quota.limit for quota in self.quotas if "inputtoken" in quota.name]
        return any(limit and tokens > limit for limit in limits)

    def _least(self, *words: str) -> int | None:
        """Return the smallest limit; batches and regions count separately, and 0 is a refusal."""
        reported = [
            quota.limit
            for quota in self.quotas
            if all(word in quota.name for word in (*words, "permodel"))
            and "enqueued" not in quota.name
            and quota.limit
        ]
        return min(reported, default=None)


def parse_error(code: object, body: object, retry_after: object, now: float) -> ParsedError:
    """Parse a failed response.

    Args:
        code: The HTTP code; if it is no error code, the body's own is used.
        body: The parsed JSON, text, or None.
        retry_after: The header of that name: seconds or an HTTP date.
        now: Epoch seconds, to subtract from such a date.
    """
    error = _open(body)
    text = error.get("message")
    message = text.strip()[:MAX_MESSAGE] if isinstance(text, str) else ""
    details = _dicts(error.get("details"))
    words = {w for detail in details for w in _word(detail.get("reason"))}
    own = {*_word(error.get("code")), *_word(error.get("status"))}
    http = _int(code)
    return ParsedError(
        http if http is not None and http >= 400 else _code(error.get("code"), own) or http or None,
        message,
        frozenset(words | own),
        _quotas(details, message),
        _delay(details, message) or _header(retry_after, now),
        *_shape(error, details, http),
    )


def _shape(
    error: dict[Any, Any], details: list[dict[Any, Any]], http: int | None
) -> tuple[bool, bool]:
    """Return `has_google_shape` and `is_google_error` of an error (docs/gemini-api.md#shapes)."""
    if http is not None and 1000 <= http < 2000:
        return True, True  # a websocket was closed: it has text and nothing else
    code, status = error.get("code"), error.get("status")
    if not isinstance(error.get("message"), str):
        return False, False
    if isinstance(code, str):  # Interactions; OpenAI's shape has a type as well
        surely = code.upper() in _INTERACTIONS and "type" not in error
        return surely, surely
    shaped = _int(code) is not None
    named = isinstance(status, str) and status in _STATUSES
    return shaped, shaped and (named or any(_is_type(d.get("@type")) for d in details))


def _is_type(value: object) -> bool:
    return isinstance(value, str) and value.startswith("type.googleapis.com/")


def seconds(text: str) -> float | None:
    """Parse `4h59m27.7s`, `48.9s`, `900ms`; None for anything else."""
    if _DURATION.fullmatch(text) is None:
        return None
    return sum(float(n) * _UNITS[unit] for n, unit in re.findall(_PART, text))


def _open(body: object) -> dict[Any, Any]:
    """Unwrap the error from its envelopes."""
    for _ in range(MAX_NESTING):
        inner = _inner(body)
        if inner is None:
            break
        body = inner
    return body if isinstance(body, dict) else {}


def _inner(body: object) -> object:
    """Unwrap one envelope; None if *body* is none."""
    if isinstance(body, str):
        parsed = _parse(body)
        return {"message": body} if parsed is None else parsed
    if isinstance(body, list):
        return body[-1] if body else None
    if not isinstance(body, dict):
        return None
    if isinstance(body.get("error"), dict | str):
        return body["error"]
    message = body.get("message")
    return _parse(message) if isinstance(message, str) else None


def _parse(text: str) -> object:
    """Parse JSON that can hold an error, an object or a list of them; None for other text."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) or _dicts(parsed) else None


def _dicts(value: object) -> list[dict[Any, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _word(value: object) -> tuple[str, ...]:
    return (value.upper(),) if isinstance(value, str) and value else ()


def _code(own: object, words: set[str]) -> int | None:
    number = _int(own)
    if number is not None and number >= 400:
        return number
    return next((_CODES[word] for word in sorted(words) if word in _CODES), None)


def _quotas(details: list[dict[Any, Any]], message: str) -> tuple[QuotaViolation, ...]:
    """Return the quotas of `details`; without any, those of the message."""
    lines = tuple(
        QuotaViolation(_name(m["metric"] or m["old"]), _int(m["limit"]), m["model"])
        for m in _LINE.finditer(message)
    )
    reported = [
        QuotaViolation(_name(v["quotaId"]), _limit(v, lines), _model(v.get("quotaDimensions")))
        for detail in details
        for v in _dicts(detail.get("violations"))
        if isinstance(v.get("quotaId"), str)
    ]
    reported += [_old(d["metadata"]) for d in details if _is_old(d.get("metadata"))]
    return tuple(reported) or lines


def _limit(violation: dict[Any, Any], lines: tuple[QuotaViolation, ...]) -> int | None:
    """Return a violation's limit: its value, else the message's, else the omitted zero."""
    if "quotaValue" in violation:
        return _int(violation["quotaValue"])
    text = violation.get("quotaMetric")
    metric = _name(text) if isinstance(text, str) else None
    said = [line.limit for line in lines if line.name == metric and line.limit is not None]
    window = re.search("perday|perminute", _name(violation["quotaId"]))
    return min(said, default=0 if window else None)


def _is_old(metadata: object) -> bool:
    return isinstance(metadata, dict) and isinstance(metadata.get("quota_limit"), str)


def _old(metadata: dict[Any, Any]) -> QuotaViolation:
    """Parse the form of 2025, an ErrorInfo RATE_LIMIT_EXCEEDED."""
    return QuotaViolation(_name(metadata["quota_limit"]), _int(metadata.get("quota_limit_value")))


def _name(text: str) -> str:
    """Normalize `PerModelPerDay`, `per_model_per_day` and `per model per day`."""
    return re.sub(r"[^a-z]", "", text.lower().rpartition("/")[2])


def _model(dimensions: object) -> str | None:
    model = dimensions.get("model") if isinstance(dimensions, dict) else None
    return model.removeprefix("models/") or None if isinstance(model, str) else None


def _int(value: object) -> int | None:
    """Return a code or limit, which is a number or a string."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[0-9]{1,15}", value) else None
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value < MAX_INT else None


def _delay(details: list[dict[Any, Any]], message: str) -> float | None:
    """Return the delay; RetryInfo is truncated to seconds, the message is exact."""
    texts = [d["retryDelay"] for d in details if isinstance(d.get("retryDelay"), str)]
    texts += [match[1] for match in _RETRY_IN.finditer(message)]
    return _sane(max((seconds(text) or 0.0 for text in texts), default=0.0))


def _header(value: object, now: float) -> float | None:
    text = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(_NUMBER, text):
        return _sane(float(text))
    return _sane(_date(text) - now)


def _date(text: str) -> float:
    """Return an HTTP date in epoch seconds; 0 if it is none."""
    try:
        date: datetime = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except Exception:  # email.utils raises IndexError and TypeError too
        return 0.0


def _sane(delay: float) -> float | None:
    return min(delay, MAX_DELAY_S) if delay > 0 else None
