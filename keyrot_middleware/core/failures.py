"""What a failure means: which scope cools down, until when, and what the call does next.

Theory of operation
-------------------
A provider responds to an exhausted minute or day, a revoked key, a closed account, a model that is
not offered, another project's file and a malformed request with the same few HTTP codes. The pool
must distinguish them: a revoked key taken for a busy one fails calls for ever, a bad request taken
for a bad key rejects the whole pool. Each provider has one table with one row, a `Rule`, per
failure class. The first row that matches decides:

1. *Transport errors* have no body; the kind of transport error selects the row.
2. *Signals* come before codes, because codes are ambiguous. A row may name structured signals
   (`reasons`, `quota`) and a pattern for the message.
3. *Quotas* are ordered from the longest to the shortest, since one body may list several.
4. *Codes* alone come last. The last row is `unknown`: raise, penalize no key.

Text that is not the provider's cannot steer the pool. A row with a scope needs a body in the shape
of the provider's errors: a proxy's 401 or a login page rejects no key. A pattern matches from the
start of the message (`^`), since a message may quote parts of the request after text of its own.

A refusal in words that no row knows does not fail the call while another key may serve it. A 429
(`unknown_limit`) cools the key down for that model. After a 401, 402 or 403 (`unknown_refusal`)
another key is tried: if that one gets an answer the first key is set aside, as a guess; if it gets
the same reply, the request is at fault, the program gets the reply, and no key is penalized.

`Rule.scope` is what cools down and `Rule.until` for how long (None: the exponential cooldown, with
`Rule.backoff`). No verdict is permanent: a rejected value is probed again slowly. With a scope the
call tries another key; with `retry` it sends the same request again; with neither the exception is
raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Flag, auto
from functools import partial
from typing import Any, Literal, NamedTuple

from .model import (
    GENERIC_VERBS,
    MODEL_SCOPES,
    NO_LIMITS,
    Backoff,
    CallInfo,
    Consequences,
    Limits,
    Scope,
    Verdict,
)
from .windows import DAY_S, HOUR_S, next_minute


class Implies(Flag):
    """What the name of a failure class says of a key or a model, wherever it is met again."""

    NOTHING = 0
    VALUE = auto()
    """The provider rejects the value of a key: the key is *rejected*."""
    REFUSAL = auto()
    """So does this class, or for one method: a new value may serve."""
    METHOD = auto()
    """It is about one method, or one kind of stored things."""
    PERSON = auto()
    """Only a person ends it: it is over when a request has succeeded, not when its time is up."""
    MODEL = auto()
    """It is about one model: another one may serve."""
    DENIED = auto()
    """No time ends that for this project."""
    ABSENT = auto()
    """It has no such model."""
    SERVICE = auto()
    """It is no key's and not the request's: the service fails, or the way to it."""
    BUSY = auto()
    """It says nothing against the value of a key, which works at another time."""
    UNKNOWN = auto()
    """No row knows the reply, which is shown so that people can report it."""


UNKNOWN_REFUSAL = "unknown_refusal"
"""The failure class of a 401, 402 or 403 in words that no row knows."""
SLOW = "slow_first_token"
"""The failure class of a request that was cut off, since it showed nothing until its deadline."""
OVERLOADED = "overloaded"
"""The failure class of a model that fails for every key."""
_BY_IMPLICATION = {
    Implies.VALUE | Implies.REFUSAL | Implies.PERSON: (
        "key_expired key_invalid key_leaked key_restricted key_denied project_suspended "
        "unauthorized"
    ),
    Implies.METHOD | Implies.REFUSAL: "key_method_blocked",
    Implies.PERSON: (
        "project_denied project_cap service_disabled billing_cap credit_depleted payment_required"
    ),
    Implies.METHOD: "batch_quota cache_storage",
    Implies.MODEL: f"limit_zero {SLOW}",
    Implies.MODEL | Implies.DENIED: "model_denied",
    Implies.MODEL | Implies.DENIED | Implies.ABSENT: "model_withdrawn",
    Implies.MODEL | Implies.ABSENT: "model_not_found",
    Implies.MODEL | Implies.BUSY: "quota_day quota_minute rate_limit capacity",
    Implies.MODEL | Implies.BUSY | Implies.SERVICE: OVERLOADED,
    Implies.MODEL | Implies.UNKNOWN: "unknown_limit",
    Implies.UNKNOWN: UNKNOWN_REFUSAL,
    Implies.SERVICE: "server_error deadline request_timeout connect reset timeout transport",
    Implies.NOTHING: (
        "spend_rate location affinity no_key forbidden not_found conflict too_large "
        "cancelled bad_request unknown"
    ),
}
CLASSES = {name: implied for implied, names in _BY_IMPLICATION.items() for name in names.split()}
"""Every failure class; docs/failures.md has a row for each."""


def classes(implied: Implies) -> frozenset[str]:
    """Return the failure classes that imply this, or one of these."""
    return frozenset(name for name, found in CLASSES.items() if found & implied)


KEY_REJECTIONS = classes(Implies.VALUE)
REJECTIONS = classes(Implies.REFUSAL)
ENDED_BY_PERSON = classes(Implies.PERSON)
FOR_GOOD = classes(Implies.REFUSAL | Implies.DENIED)
METHOD_FAILURES = classes(Implies.METHOD)
MODEL_REFUSALS = classes(Implies.DENIED)
SERVICE_FAILURES = classes(Implies.SERVICE)
BUSY = classes(Implies.BUSY)
UNKNOWN = classes(Implies.UNKNOWN)

MAX_DELAY_S = 90_000.0
"""25 hours, the longest day; longer delays are clamped."""

LONG_S = 300.0
"""A longer delay means an exhausted day, not a minute."""

SLOW_BACKOFF = Backoff(900.0, 21_600.0)
"""Backoff of the probes of a rejected value: after 15 minutes, then doubling up to 6 hours.

The provider may be wrong for a minute, or a restriction is lifted. About eight requests on the
first day.
"""
DAILY_BACKOFF = Backoff(DAY_S, DAY_S)
"""For a leaked value or a suspended project, which takes an appeal."""


class QuotaViolation(NamedTuple):
    """A quota that was exceeded."""

    name: str
    """Lower case, letters only, with these words in it: `requests` or `inputtokens`, `perminute` or
    `perday`, and `permodel` for one whose limit is learned."""
    limit: int | None = None
    """Zero if the model is not offered."""
    model: str | None = None
    """The bucket in which the provider counts it."""


class ParsedError(NamedTuple):
    """The content of an error body and its headers."""

    code: int | None
    message: str = ""
    reasons: frozenset[str] = frozenset()
    """Words of the error: codes, types, reasons; upper case."""
    quotas: tuple[QuotaViolation, ...] = ()
    retry_delay_s: float | None = None
    """Seconds, more than 0 and at most `MAX_DELAY_S`."""
    has_shape: bool = False
    """The body has the shape of the provider's errors; else a proxy or a login page may have it."""
    is_sure: bool = False
    """It also has fields that others omit, so its code alone is trusted."""
    sent_at: float | None = None
    """When the request was sent, epoch seconds; None: just now."""

    @property
    def bucket(self) -> str | None:
        """Return the provider's name of the model bucket."""
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


Transport = Literal["", "connect", "reset", "timeout", "slow", "other"]
Until = Callable[[ParsedError, float], float | None]
Advise = Callable[[ParsedError], str]


@dataclass(frozen=True, slots=True)
class FailureFacts:
    """What is known of a failed request: the input of `classify`."""

    code: int | None = None
    """The HTTP code; None for a transport error, None or 0 inside a stream."""
    body: object = None
    """Parsed JSON or text."""
    retry_after: str | None = None
    """The header Retry-After: seconds or an HTTP date."""
    transport: Transport = ""
    """`connect`: refused, no such host, nothing sent; `reset`: dropped before any response;
    `timeout`: the caller's own deadline; `slow`: cut off, since nothing had come."""
    headers: Mapping[str, Any] | None = None
    """All headers of the response, looked up in lower case; None: not known."""


def until_backoff(_parsed: ParsedError, _now: float) -> None:
    """Return None: the end is unknown, so the exponential cooldown applies."""


def no_advice(_parsed: ParsedError) -> str:
    """Return nothing: the error says it all."""
    return ""


def for_ten_minutes(_parsed: ParsedError, now: float) -> float:
    """Return the time in 10 minutes."""
    return now + 600.0


def for_an_hour(_parsed: ParsedError, now: float) -> float:
    """Return the time in an hour: credit may have been added, or the provider was wrong."""
    return now + HOUR_S


def for_a_day(_parsed: ParsedError, now: float) -> float:
    """Return the time in 24 hours: someone has to change something."""
    return now + DAY_S


def until_minute_end(parsed: ParsedError, now: float) -> float:
    """Return the time that the server reported, else the next minute."""
    return next_minute(now) if parsed.retry_delay_s is None else now + parsed.retry_delay_s


def until_retry_info(parsed: ParsedError, now: float) -> float | None:
    """Return the time that the server reported, else None."""
    return None if parsed.retry_delay_s is None else now + parsed.retry_delay_s


_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,12})?"
DURATION_PART = rf"({_NUMBER})(ms|h|m|s)"
_DURATION = re.compile(rf"(?:{DURATION_PART})+")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
MAX_MESSAGE = 8_192
"""Messages of providers are shorter; those of proxies are truncated."""
_MAX_NESTING = 5
"""Envelopes around one error: text, list, `error`, JSON in a message, `error`."""


def seconds(text: str) -> float | None:
    """Parse `4h59m27.7s`, `48.9s`, `900ms`; None for anything else."""
    if _DURATION.fullmatch(text) is None:
        return None
    return sum(float(n) * _UNITS[unit] for n, unit in re.findall(DURATION_PART, text))


def open_error(body: object) -> dict[Any, Any]:
    """Unwrap the error from its envelopes."""
    for _ in range(_MAX_NESTING):
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
    return parsed if isinstance(parsed, dict) or objects(parsed) else None


def objects(value: object) -> list[dict[Any, Any]]:
    """Return the objects of a list of JSON; none of what is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def error_words(error: Mapping[Any, Any], *names: str) -> frozenset[str]:
    """Return the words of an error under these names, in upper case."""
    found = (error.get(name) for name in names)
    return frozenset(word.upper() for word in found if isinstance(word, str) and word)


def retry_after_s(facts: FailureFacts, now: float) -> float | None:
    """Return the delay that headers name: retry-after-ms, else Retry-After, which may be a date."""
    found = (facts.headers or {}).get("retry-after-ms"), facts.retry_after
    exact, text = (value.strip() if isinstance(value, str) else "" for value in found)
    if re.fullmatch(_NUMBER, exact) and float(exact):
        return sane_delay(float(exact) / 1_000)
    return delay_until(text, now)


def reset_s(headers: Mapping[str, Any], now: float) -> float | None:
    """Return when a limit is reset by `x-ratelimit-reset` or a name like it, seconds from *now*.

    Of several limits, that of the last one which is used up.
    """
    named = {name.lower(): str(value).strip() for name, value in headers.items()}
    spent, others = list[float](), list[float]()
    for name, value in named.items():
        if _RESET.search(name) and (delay := delay_until(value, now)) is not None:
            left = named.get(name.replace("reset", "remaining"), "")
            (spent if left and not left.strip("-0.") else others).append(delay)
    return max(spent, default=others[0] if len(others) == 1 else None)


_RESET = re.compile(r"rate-?limit.*reset")
_EPOCH_S, _EPOCH_MS = 1e9, 1e11
"""Larger numbers are no delays but times, in seconds or milliseconds."""


def delay_until(text: str, now: float) -> float | None:
    """Return the delay of `12`, `6m0s`, a date, or a time since 1970, seconds; None for none."""
    if re.fullmatch(r"[0-9]{1,14}(?:\.[0-9]{1,12})?", text):
        number = float(text)
        if number > _EPOCH_S:
            number = (number / 1_000 if number > _EPOCH_MS else number) - now
        return sane_delay(number)
    if (delay := seconds(text)) is not None:
        return sane_delay(delay)
    return sane_delay(_date(text) - now)


def _date(text: str) -> float:
    """Return an HTTP date, or one of ISO 8601, in epoch seconds; 0 if it is none."""
    try:
        is_iso = text[:4].isdecimal()
        date = datetime.fromisoformat(text) if is_iso else parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except Exception:  # email.utils raises IndexError and TypeError too
        return 0.0


def sane_delay(delay: float) -> float | None:
    """Return a delay in seconds, `MAX_DELAY_S` at most; None unless it is positive."""
    return min(delay, MAX_DELAY_S) if delay > 0 else None


@dataclass(frozen=True, slots=True)
class Rule(Consequences):
    """One failure class: its signals and its consequences.

    It matches where `transport`, `codes` and `model_only` all match and at least one of the signals
    `reasons`, `text`, `quota`, `limit_is_zero`, `has_retry_delay` is present. A rule without
    signals matches by its code. A rule with a scope matches only errors in the shape of
    the provider's, unless it is `any_body`.
    """

    name: str
    codes: Container[int | None] | None = None
    """None: any code, and no code."""
    transport: Transport = ""
    model_only: bool = False
    """Only for a request that names a model and no stored resource."""
    reasons: frozenset[str] = frozenset()
    """Words of the error: codes, types, reasons; upper case."""
    text: str = ""
    """A pattern for the message."""
    quota: str = ""
    """A part of a quota's name."""
    limit_is_zero: bool = False
    has_retry_delay: bool = False
    scope: Scope = Scope.NONE
    until: Until = until_backoff
    advise: Advise = no_advice
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
        believed = parsed.is_sure if alone else parsed.has_shape
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

rejected = partial(Rule, scope=Scope.KEY, backoff=SLOW_BACKOFF, rejected=True)
rejected_for_long = partial(rejected, backoff=DAILY_BACKOFF)
of_project = partial(Rule, scope=Scope.PROJECT)
of_billing = partial(Rule, scope=Scope.BILLING, until=for_an_hour)
of_model = partial(Rule, scope=Scope.PROJECT_MODEL)
paced = partial(of_model, codes=_QUOTA, until=until_minute_end, has_known_end=True)
"""Kinds of rows, by what cools down and how long."""

FIRST_RULES = (
    Rule("connect", transport="connect", retry=True, sent=False),
    Rule("reset", transport="reset", retry=True),
    Rule("timeout", transport="timeout"),
    Rule(SLOW, transport="slow", rotate=True),
    Rule("transport", transport="other"),
)
"""Of every provider, before its own."""
CODE_RULES = (
    Rule("not_found", (404,)),
    Rule("request_timeout", (408,), retry=True),
    Rule("conflict", (409, 425), retry=True),
    Rule("too_large", (413,)),
    Rule("cancelled", (499,)),
    Rule("bad_request", (*range(400, 500), 1007)),
    Rule("overloaded", (503, 529), retry=True),
    Rule("deadline", (504,), retry=True, max_retries=1),
    Rule("server_error", (*range(500, 600), 1011), retry=True),
    Rule("unknown"),
)
"""Of every provider: what the code alone says."""
LAST_RULES = (
    Rule(
        "unknown_limit",
        _QUOTA,
        scope=Scope.KEY_MODEL,
        until=until_retry_info,
        has_known_end=True,
        any_body=True,
    ),
    Rule(UNKNOWN_REFUSAL, (401, 402, 403), rotate=True),
    *CODE_RULES,
)
"""Of every provider, after its own."""

Classify = Callable[[FailureFacts, CallInfo, float, float | None], Verdict]
"""`Provider.classify`: what a failure at a time means, of a request sent at another."""


def classify(
    rules: Iterable[Rule], facts: FailureFacts, parsed: ParsedError, info: CallInfo, now: float
) -> Verdict:
    """Return the verdict of the first row that matches a failure; the last row matches any.

    Args:
        rules: The table of the provider.
        facts: What came back instead of a response.
        parsed: The same as the provider reads it.
        info: The call; its tokens show whether it can ever fit into the limit.
        now: Epoch seconds.
    """
    rule = next(rule for rule in rules if rule.matches(facts, parsed, info))
    return _verdict(rule, parsed, info, now)


def _verdict(rule: Rule, parsed: ParsedError, info: CallInfo, now: float) -> Verdict:
    until = rule.until(parsed, now)
    is_model_quota = info.counts_in_quota and bool(info.model or parsed.bucket)
    exceeds_limit = parsed.exceeds_any_limit(info.tokens)
    shared = {one.name: getattr(rule, one.name) for one in fields(Consequences)}
    shared["has_known_end"] &= until is not None
    shared["rotate"] |= rule.scope is not Scope.NONE
    shared["may_wait"] &= not exceeds_limit and (until is None or until - now <= LONG_S)
    return Verdict(
        rule.name,
        parsed.code,
        scope=rule.scope if is_model_quota else _narrow_scope(rule, info),
        until=until,
        bucket=parsed.bucket if is_model_quota else None,
        learned=parsed.limits if is_model_quota else NO_LIMITS,
        retry_delay_s=parsed.retry_delay_s if rule.retry else None,
        exceeds_limit=exceeds_limit,
        message=_said(rule, parsed),
        advice=rule.advise(parsed),
        **shared,
    )


def _said(rule: Rule, parsed: ParsedError) -> str:
    """Return what the service wrote; of a reply that no row knows with its codes."""
    if rule.name in UNKNOWN:
        words = (word.lower() for word in sorted(parsed.reasons))
        return " ".join((*words, parsed.message or "(no message)"))
    return parsed.message if rule.scope is not Scope.NONE or rule.retry else ""


def gist(verdict: Verdict) -> tuple[int | None, str]:
    """Return what two replies have in common that say the same; ids, keys and counts differ."""
    return verdict.code, re.sub(r"\S*(?:[\d*…]|\.\.)\S*", "", verdict.message)


def guess(verdict: Verdict, info: CallInfo) -> Verdict:
    """Return what a refusal that no row knows means for a key beside one that got an answer.

    A 403 may be about the model alone.
    """
    of_model = verdict.code == 403 and info.counts_in_quota and info.model
    return replace(verdict, scope=Scope.KEY_MODEL if of_model else Scope.KEY, backoff=SLOW_BACKOFF)


def _narrow_scope(rule: Rule, info: CallInfo) -> Scope:
    """Return the scope for a call that does not count in a model's quota: its method, or none."""
    if rule.scope not in MODEL_SCOPES:
        return rule.scope
    return Scope.NONE if info.verb in GENERIC_VERBS or rule.codes != _QUOTA else Scope.KEY_VERB


def describe(verdict: Verdict) -> str:
    """Return the failure for display: `quota_minute (429)`, `reset`; with its advice, if any."""
    code = "" if verdict.code is None else f" ({verdict.code})"
    advice = f": {verdict.advice}" if verdict.advice else ""
    return f"{verdict.failure}{code}{advice}"
