"""What a failure means: which scope cools down, until when, and what the call does next.

Theory of operation
-------------------
Google responds to an exhausted minute or day, a revoked key, a closed billing account, a model that
is not offered, another project's file and a malformed request with the same few HTTP codes. The
pool must distinguish them: a revoked key taken for a busy one fails calls for ever, a bad request
taken for a bad key rejects the whole pool. One table, `RULES`, has one row per failure class. The
first row that matches decides:

1. *Transport errors* have no body; the kind of transport error selects the row.
2. *Signals* come before codes, because codes are ambiguous: depleted credit was a 429 and is a 402,
   an invalid key is a 400, another project's file a 403. A row may name structured signals
   (`details`: ErrorInfo's reason, QuotaFailure's quotaId, RetryInfo) and a pattern for the message;
   error_body.py prefers the details if both are there.
3. *Quotas* are ordered from the longest to the shortest, since one body may list several: a limit
   of 0, the day, the minute. RetryInfo cannot distinguish them: an exhausted free day says "retry
   in 2s".
4. *Codes* alone come last. The last row is `unknown`: raise, penalize no key.

Text that is not Google's cannot steer the pool. A row with a scope needs a body in the shape of
Google's errors: a proxy's 401 or a login page penalizes no key. A pattern matches from the start of
the message (`^`), since Google quotes parts of the request only after text of its own. A body that
no row matches penalizes no key.

`Rule.scope` is what cools down and `Rule.until` for how long (None: the exponential cooldown, with
`Rule.backoff`). No verdict is permanent: a rejected value is probed again slowly. With a scope the
call tries another key; with `retry` it sends the same request again; with neither the SDK's
exception is raised. Sources of each row are in docs/failures.md. A new failure class is one row
here, one there and one in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Literal

from .error_body import ParsedError, parse_error
from .model import GENERIC_VERBS, MODEL_SCOPES, NO_LIMITS, Backoff, CallInfo, Scope, Verdict
from .windows import (
    DAY_S,
    next_minute,
    next_pacific_midnight,
    next_pacific_month,
)

# One row of the table: the signals to match, and the consequences -------------------------------


LONG_S = 300.0
"""A longer delay means an exhausted day, not a minute (Google's own clients use the same limit)."""
HOUR_S = 3_600.0

DAY_GRACE_S = 600.0
"""If the first ten minutes of a day are refused as exhausted, the previous day is meant."""

SLOW_BACKOFF = Backoff(900.0, 21_600.0)
"""Backoff of the probes of a rejected value: after 15 minutes, then doubling up to 6 hours.

Google may be wrong for a minute, or a restriction is lifted. About eight requests on the first day.
"""
DAILY_BACKOFF = Backoff(DAY_S, DAY_S)
"""For a leaked value or a suspended project, which takes an appeal."""
SPEND_BACKOFF = Backoff(30.0, 600.0)
"""For the rate of spending, which Google measures over the last ten minutes."""

Transport = Literal["", "connect", "reset", "timeout", "other"]
Until = Callable[[ParsedError, float], float | None]


@dataclass(frozen=True, slots=True)
class FailureFacts:
    """What is known of a failed request: the input of `classify`."""

    code: int | None = None
    """The HTTP code; None for a transport error, None or 0 inside a stream."""
    body: object = None
    """Parsed JSON or text, in any of the shapes of error_body.py."""
    retry_after: str | None = None
    """The header Retry-After: seconds or an HTTP date."""
    transport: Transport = ""
    """`connect`: refused, no such host, nothing sent; `reset`: dropped before any response;
    `timeout`: the caller's own deadline."""


def until_backoff(_parsed: ParsedError, _now: float) -> None:
    """Return None: the end is unknown, so the exponential cooldown applies."""


def for_ten_minutes(_parsed: ParsedError, now: float) -> float:
    """Return the time in 10 minutes: enabling an API takes that long."""
    return now + 600.0


def for_an_hour(_parsed: ParsedError, now: float) -> float:
    """Return the time in an hour: credit may have been added, or Google was wrong."""
    return now + HOUR_S


def until_cap_reset(_parsed: ParsedError, now: float) -> float:
    """Return the time in an hour, or the end of the month: the cap may be raised before."""
    return min(now + HOUR_S, next_pacific_month(now))


def for_a_day(_parsed: ParsedError, now: float) -> float:
    """Return the time in 24 hours: someone has to change something."""
    return now + DAY_S


def until_day_end(parsed: ParsedError, now: float) -> float | None:
    """Return the next Pacific midnight, or the end of a RetryInfo over `LONG_S` (paid days).

    Around midnight it is the previous day that is exhausted: clocks differ, Google's reset may be
    late, and a response may arrive on the next day. The end is unknown then: None.
    """
    sent = now if parsed.sent_at is None else parsed.sent_at
    if next_pacific_midnight(sent - DAY_GRACE_S) <= now:
        return None
    if parsed.retry_delay_s is not None and parsed.retry_delay_s > LONG_S:
        return now + parsed.retry_delay_s
    return next_pacific_midnight(now)


def until_minute_end(parsed: ParsedError, now: float) -> float:
    """Return the time that the server reported, else the next minute."""
    return next_minute(now) if parsed.retry_delay_s is None else now + parsed.retry_delay_s


def until_retry_info(parsed: ParsedError, now: float) -> float | None:
    """Return the time that the server reported, else None."""
    return None if parsed.retry_delay_s is None else now + parsed.retry_delay_s


@dataclass(frozen=True, slots=True)
class Rule:
    """One failure class: its signals and its consequences.

    It matches where `transport`, `codes` and `model_only` all match and at least one of the signals
    `reasons`, `text`, `quota`, `limit_is_zero`, `has_retry_delay` is present. A rule without
    signals matches by its code. A rule with a scope matches only errors in the shape of Google's,
    unless it is `any_body`.
    """

    name: str
    codes: Container[int | None] | None = None
    """None: any code, and no code."""
    transport: Transport = ""
    model_only: bool = False
    """Only for a request that names a model and no stored resource."""
    reasons: frozenset[str] = frozenset()
    """ErrorInfo reasons and Interactions' codes, upper case."""
    text: str = ""
    """A pattern for the message."""
    quota: str = ""
    """A part of the quotaId or metric name, lower-case letters only."""
    limit_is_zero: bool = False
    has_retry_delay: bool = False
    scope: Scope = Scope.NONE
    until: Until = until_backoff
    backoff: Backoff | None = None
    """Of the exponential cooldown; None: as the settings say."""
    rejected: bool = False
    """Google rejects the key's value."""
    has_known_end: bool = False
    rotate: bool = False
    """Try another key although no scope cools down; with a scope it is tried anyway."""
    retry: bool = False
    max_retries: int | None = None
    max_rotations: int | None = None
    may_wait: bool = True
    sent: bool = True
    any_tier: bool = True
    any_body: bool = False
    """It is a rate limit, so it is believed from a proxy too."""

    def matches(self, facts: FailureFacts, parsed: ParsedError, info: CallInfo) -> bool:
        """Return whether the failure is of this class."""
        if self.transport != facts.transport:
            return False
        if self.codes is not None and parsed.code not in self.codes:
            return False
        signals = self.reasons, self.text, self.quota, self.limit_is_zero, self.has_retry_delay
        alone = not any(signals)
        believed = parsed.is_google_error if alone else parsed.has_google_shape
        if self.scope is not Scope.NONE and not (believed or self.any_body):
            return False
        if self.model_only and (info.bound_to_owner or info.resources or not info.model):
            return False
        return alone or self._has_signal(parsed)

    def _has_signal(self, parsed: ParsedError) -> bool:
        return (
            not self.reasons.isdisjoint(parsed.reasons)
            or (self.text != "" and re.search(self.text, parsed.message, _FLAGS) is not None)
            or (self.quota != "" and any(self.quota in quota.name for quota in parsed.quotas))
            or (self.limit_is_zero and any(quota.limit == 0 for quota in parsed.quotas))
            or (self.has_retry_delay and parsed.retry_delay_s is not None)
        )


_FLAGS = re.IGNORECASE | re.DOTALL
_QUOTA = (429,)


def _any_of(*reasons: str) -> frozenset[str]:
    return frozenset(reasons)


_rejected = partial(Rule, scope=Scope.KEY, backoff=SLOW_BACKOFF, rejected=True)
_for_long = partial(_rejected, backoff=DAILY_BACKOFF)
_project = partial(Rule, scope=Scope.PROJECT)
_billing = partial(Rule, scope=Scope.BILLING)
_model = partial(Rule, scope=Scope.PROJECT_MODEL)
_paced = partial(_model, codes=_QUOTA, has_known_end=True)

RULES: tuple[Rule, ...] = (
    # Transport errors.
    Rule("connect", transport="connect", retry=True, sent=False),
    Rule("reset", transport="reset", retry=True),
    Rule("timeout", transport="timeout"),
    Rule("transport", transport="other"),
    # The value of the key is rejected.
    _rejected("key_expired", text=r"^API key expired\. Please\b"),
    _rejected(
        "key_invalid",
        reasons=_any_of("API_KEY_INVALID"),
        text=r"^API key not (?:valid|found)\. Please\b",
    ),
    _for_long("key_leaked", text=r"^Your API key was reported as leaked\b"),
    _rejected(
        "key_restricted",
        reasons=_any_of(
            *("API_KEY_ANDROID_APP_BLOCKED", "API_KEY_HTTP_REFERRER_BLOCKED"),
            *("API_KEY_IOS_APP_BLOCKED", "API_KEY_IP_ADDRESS_BLOCKED"),
        ),
        text=r"^(?:Requests from (?:referer|this (?:android|ios) client)\b.{0,300} are blocked"
        r"|The provided API key has an IP address restriction)",
    ),
    _rejected(
        "key_denied",
        (403,),
        model_only=True,
        reasons=_any_of(
            *("IAM_PERMISSION_DENIED", "ORG_RESTRICTION_VIOLATION", "SECURITY_POLICY_VIOLATED"),
            "RESOURCE_USAGE_RESTRICTION_VIOLATED",
        ),
    ),
    _rejected(
        "key_method_blocked",
        reasons=_any_of("API_KEY_SERVICE_BLOCKED"),
        text=r"^Requests to this API \S{1,200} method \S{1,200} are blocked",
        scope=Scope.KEY_VERB,
    ),
    _for_long(
        "project_suspended",
        reasons=_any_of("CONSUMER_SUSPENDED"),
        text=r"^Permission denied: Consumer '[^']{0,300}' has been suspended",
    ),
    # The project or its billing account.
    _project(
        "service_disabled",
        reasons=_any_of("SERVICE_DISABLED"),
        text=r"^Generative Language API has not been used in project\b",
        until=for_ten_minutes,
    ),
    _project(
        "project_denied",
        reasons=_any_of("BILLING_DISABLED", "CONSUMER_INVALID", "USER_PROJECT_DENIED"),
        text=r"^Your project has been denied access\b",
        until=for_a_day,
    ),
    _billing(
        "credit_depleted",
        reasons=_any_of("PAYMENT_REQUIRED"),
        text=r"^Your prepayment credits are depleted\b",
        until=for_an_hour,
    ),
    _billing(
        "billing_cap",
        text=r"^Your billing account has exceeded its monthly spending cap\b",
        until=until_cap_reset,
    ),
    _project(
        "project_cap",
        text=r"^Your project has exceeded its monthly spending cap\b",
        until=until_cap_reset,
    ),
    _billing(
        "spend_rate",
        text=r"^You exceeded your spend-based rate limit\b",
        until=until_retry_info,
        backoff=SPEND_BACKOFF,
        has_known_end=True,
    ),
    # Quotas, the gravest first.
    Rule(
        "cache_storage",
        _QUOTA,
        text=r"^TotalCachedContentStorage",
        quota="totalcachedcontentstorage",
        scope=Scope.PROJECT_CACHE,
        until=for_a_day,
    ),
    Rule(
        "batch_quota",
        _QUOTA,
        quota="enqueued",
        scope=Scope.KEY_VERB,
        until=until_retry_info,
        any_body=True,
    ),
    _model("limit_zero", _QUOTA, limit_is_zero=True, until=for_a_day, may_wait=False),
    _paced(
        "quota_day",
        reasons=_any_of("QUOTA_EXCEEDED"),
        quota="perday",
        until=until_day_end,
        may_wait=False,
    ),
    _paced(
        "quota_minute",
        reasons=_any_of("RATE_LIMIT_EXCEEDED"),
        quota="perminute",
        until=until_minute_end,
        any_body=True,
    ),
    _paced("rate_limit", has_retry_delay=True, until=until_retry_info, any_body=True),
    # The model in this project, the location, the request's own resources.
    _model(
        "model_denied",
        (403,),
        model_only=True,
        text=r"^The caller does not have permission\.?$",
        until=for_a_day,
    ),
    _model(
        "model_withdrawn",
        (404,),
        text=r"^(?:This model )?\S{0,100}\s?(?:is )?no longer available to new users",
        until=for_a_day,
    ),
    Rule(
        "model_not_found",
        (404,),
        text=r"^(?:models/\S{1,200} is|Publisher Model \S{1,300}(?: was)?) not found\b",
    ),
    Rule(
        "location",
        (400,),
        text=r"^(?:User location is not supported"
        r"|(?:Gemini API )?free tier is not available in your country)",
        rotate=True,
        max_rotations=1,
        any_tier=False,
    ),
    Rule(
        "affinity",
        (400, 403, 404),
        text=r"thought[ _]signature|permission to access the File|the file is missing"
        r"|CachedContent not found|Requested entity was not found"
        r"|^(?!models/).{0,200}\b(?:interaction|operation)s?\b.{0,200} not found",
    ),
    Rule(
        "no_key",
        (401, 403),
        reasons=_any_of("CREDENTIALS_MISSING"),
        text=r"unregistered callers|^API keys are not supported by this API",
    ),
    # Codes alone.
    _rejected("unauthorized", (401,)),
    _billing("payment_required", (402,), until=for_an_hour),
    Rule("gateway", (401, 402)),
    Rule("capacity", _QUOTA, scope=Scope.KEY_MODEL, max_rotations=5, any_body=True),
    Rule("forbidden", (403,)),
    Rule("not_found", (404,)),
    Rule("request_timeout", (408,)),
    Rule("too_large", (413,)),
    Rule("cancelled", (499,)),
    Rule("bad_request", (*range(400, 500), 1007)),
    Rule("overloaded", (503,), retry=True),
    Rule("deadline", (504,), retry=True, max_retries=1),
    Rule("server_error", (*range(500, 600), 1011), retry=True),
    Rule("unknown"),
)

REJECTIONS = frozenset(rule.name for rule in RULES if rule.rejected)
"""The classes in which Google rejects the value of a key, for one method at least."""
GOOGLE_SAYS = {
    "key_expired": "API key expired. Please renew the API key.",
    "key_invalid": "API key not valid. Please pass a valid API key.",
    "key_leaked": "Your API key was reported as leaked. Please use another API key.",
    "project_suspended": "Permission denied: Consumer has been suspended.",
}
"""Google's own sentence for a class, by which people search for it."""
KEY_REJECTIONS = frozenset(rule.name for rule in RULES if rule.rejected and rule.scope is Scope.KEY)
"""Those that apply to every call: such a key is *rejected*."""


def classify(
    facts: FailureFacts, info: CallInfo, now: float, sent_at: float | None = None
) -> Verdict:
    """Return the verdict of the first row that matches a failure.

    Args:
        facts: What came back instead of a response.
        info: The call; its tokens show whether it can ever fit into the limit.
        now: Epoch seconds.
        sent_at: When the request was sent; None for now.

    Returns:
        The verdict; no facts make it raise.
    """
    parsed = parse_error(facts.code, facts.body, facts.retry_after, now)._replace(sent_at=sent_at)
    fits = (rule for rule in RULES if rule.matches(facts, parsed, info))
    return _verdict(next(fits, RULES[-1]), parsed, info, now)


def _verdict(rule: Rule, parsed: ParsedError, info: CallInfo, now: float) -> Verdict:
    until = rule.until(parsed, now)
    is_model_quota = info.counts_in_quota and bool(info.model or parsed.bucket)
    exceeds_limit = parsed.exceeds_any_limit(info.tokens)
    return Verdict(
        rule.name,
        parsed.code,
        scope=rule.scope if is_model_quota else _narrow_scope(rule, info),
        until=until,
        backoff=rule.backoff,
        rejected=rule.rejected,
        has_known_end=rule.has_known_end and until is not None,
        rotate=rule.rotate or rule.scope is not Scope.NONE,
        retry=rule.retry,
        max_retries=rule.max_retries,
        max_rotations=rule.max_rotations,
        may_wait=rule.may_wait and not exceeds_limit and (until is None or until - now <= LONG_S),
        sent=rule.sent,
        bucket=parsed.bucket if is_model_quota else None,
        learned=parsed.limits if is_model_quota else NO_LIMITS,
        retry_delay_s=parsed.retry_delay_s if rule.retry else None,
        any_tier=rule.any_tier,
        exceeds_limit=exceeds_limit,
        message=parsed.message if rule.scope is not Scope.NONE or rule.retry else "",
    )


def _narrow_scope(rule: Rule, info: CallInfo) -> Scope:
    """Return the scope for a call that does not count in a model's quota: its method, or none."""
    if rule.scope not in MODEL_SCOPES:
        return rule.scope
    return Scope.NONE if info.verb in GENERIC_VERBS or rule.codes != _QUOTA else Scope.KEY_VERB


def describe(verdict: Verdict) -> str:
    """Return the failure for display: `quota_minute (429)`, `key_invalid (400)`, `reset`."""
    return verdict.failure if verdict.code is None else f"{verdict.failure} ({verdict.code})"
