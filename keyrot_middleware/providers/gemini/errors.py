"""Parses Google's error bodies, whatever their shape, and its list of a project's quotas.

The shapes (docs/gemini-api.md#shapes): REST's `{"error": {code, message, status, details}}`,
Interactions' `{"error": {message, code: "snake_case"}}`, either in a list of one, the inner object
alone, raw JSON text (appended to a stream after HTTP 200), and `{"message": text, "status": reason
phrase}` that the SDK makes of text that is not JSON. Some gateways put a whole JSON error into
`message`.

Nothing here raises for any body or header, and no delay is infinite or NaN: unparsable parts are
ignored.
"""

from __future__ import annotations

import re
from typing import Any

from ...core.failures import (
    DURATION_PART,
    MAX_MESSAGE,
    FailureFacts,
    ParsedError,
    QuotaViolation,
    error_words,
    objects,
    open_error,
    retry_after_s,
    sane_delay,
    seconds,
)
from ...core.model import NO_LIMITS, Limits

MAX_INT = 10**15
"""Larger numbers are neither codes nor limits."""
_RETRY_IN = re.compile(rf"retry in ((?:{DURATION_PART})+)", re.IGNORECASE)
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


def parse_error(facts: FailureFacts, now: float) -> ParsedError:
    """Parse a failed response; where its code is no error code, the body's own is used.

    Args:
        facts: What came back.
        now: Epoch seconds.
    """
    error = open_error(facts.body)
    text = error.get("message")
    message = text.strip()[:MAX_MESSAGE] if isinstance(text, str) else ""
    details = objects(error.get("details"))
    words = {w for detail in details for w in error_words(detail, "reason")}
    own = {*error_words(error, "code", "status")}
    http = _int(facts.code)
    return ParsedError(
        http if http is not None and http >= 400 else _code(error.get("code"), own) or http or None,
        message,
        frozenset(words | own),
        _quotas(details, message),
        _delay(details, message) or retry_after_s(facts, now),
        *_shape(error, details, http),
    )


def _shape(
    error: dict[Any, Any], details: list[dict[Any, Any]], http: int | None
) -> tuple[bool, bool]:
    """Return `has_shape` and `is_sure` of an error (docs/gemini-api.md#shapes)."""
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
        for v in objects(detail.get("violations"))
        if isinstance(v.get("quotaId"), str)
    ]
    reported += [_old(d["metadata"]) for d in details if _is_old(d.get("metadata"))]
    return tuple(reported) or lines


_LISTED = re.compile(
    r"(?:generate|embedcontent)requestsper|(?:generate|embed)content(?:paidtier)?inputtokensper"
)
"""How the names of quotas begin in which all calls of a model count."""


def listed_limits(infos: object, tier: str) -> dict[str, Limits]:
    """Return the limits of a project by model bucket, as the QuotaInfos of Cloud Quotas name them.

    Those of all tiers stand side by side; one without a tier in its name is that of paid projects
    that have none of their own. An omitted or zero limit is left to its 429.

    Args:
        infos: The list, whatever it holds.
        tier: Of the project's keys: `free`, `tier1`, …; `paid`: the highest one, since too high a
            limit costs a 429, and with too low a one calls wait.
    """
    order = {"free": ["free"], "paid": ["tier3", "tier2", "tier1", "paid"]}
    tiers = order.get(tier, [tier, "paid"])
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for info in objects(infos):
        quota_id = str(info.get("quotaId"))
        name, numbered = _name(quota_id), re.search(r"-PaidTier([123])", quota_id)
        of = f"tier{numbered[1]}" if numbered else "free" if "FreeTier" in quota_id else "paid"
        timed = info.get("refreshInterval") in ("minute", "day")
        for one in objects(info.get("dimensionsInfos")) if timed and of in tiers else ():
            dimensions, details = one.get("dimensions"), one.get("details")
            limit = _int(details.get("value")) if isinstance(details, dict) else None
            quota = QuotaViolation(name, limit or MAX_INT, _model(dimensions))
            if quota.model and len(dimensions or ()) == 1 and _LISTED.match(name):
                best = found.setdefault(quota.model, {})
                for window, n in ParsedError(None, quotas=(quota,)).limits._asdict().items():
                    if n is not None:
                        best[window] = min(best.get(window, (9, 0)), (tiers.index(of), n))
    limits = {
        model: Limits(**{window: n for window, (_, n) in best.items() if n < MAX_INT})
        for model, best in found.items()
    }
    return {model: one for model, one in limits.items() if one != NO_LIMITS}


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
    return sane_delay(max((seconds(text) or 0.0 for text in texts), default=0.0))
