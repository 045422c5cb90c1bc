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
(`unknown_limit`) cools the key down for that model. After a 401, 402 or 403, after a 400 or 404 in
words about a key or an account, and after an error without a status (`unknown_refusal`), what other
keys get decides; see evidence.py.

An error without a status came as an event of a stream, or as the body of a 200. Any row may know
its words, whatever the codes of that row.

`Rule.implies` is what the name of the class says of a key or a model, wherever it is met again: in
a block of a shared state, in a report. A name means the same in all tables. The factories
(`rejected`, `of_model`…) set it, so that a row is all that a new class needs; a row made by `Rule`
alone is one more of a class that another row defines.

`Rule.scope` is what cools down and `Rule.until` for how long (None: the exponential cooldown, with
`Rule.backoff`). No verdict is permanent: a rejected value is probed again slowly. With a scope the
call tries another key; with `retry` it sends the same request again; with neither the exception is
raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Flag, auto
from functools import partial
from typing import Any, Literal, NamedTuple

from .html_pages import text_of_page
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
from .wording import did_you_mean


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
    PROJECT = auto()
    """It is about a project."""
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
    REQUEST = auto()
    """The request is at fault, whatever the key and the way: it would fail again."""
    NEW_VALUE = auto()
    """A new value of the key ends it; else its restrictions or its project have to change."""


UNKNOWN_REFUSAL = "unknown_refusal"
"""The failure class of a refusal in words that no row knows: it may be about the key."""
UNKNOWN_LIMIT = "unknown_limit"
"""The failure class of a 429 in words that no row knows."""
SLOW = "slow_first_token"
"""The failure class of a request that was cut off, since it showed nothing until its deadline."""
OVERLOADED = "overloaded"
"""The failure class of a model that fails for every key."""
CLASSES: dict[str, Implies] = {}
"""What each failure class implies: a table joins when its provider is loaded (`join`).

A word that is not here is of a table that is not loaded, or of another version that shares the
state: it implies nothing, so that a key is cooling down until the time of its block.
"""
_SETS: list[tuple[Implies, dict[str, None]]] = []


def classes(implied: Implies, *others: str) -> Set[str]:
    """Return the failure classes that imply this, or one of these, and *others*.

    It is a view, to which `join` adds those of tables that are loaded later.
    """
    members = dict.fromkeys(others) | _implying(implied, CLASSES)
    _SETS.append((implied, members))
    return members.keys()


def _implying(implied: Implies, among: Mapping[str, Implies]) -> dict[str, None]:
    return dict.fromkeys(name for name, meant in among.items() if meant & implied)


KEY_REJECTIONS = classes(Implies.VALUE)
REJECTIONS = classes(Implies.REFUSAL)
ENDED_BY_PERSON = classes(Implies.PERSON)
FOR_GOOD = classes(Implies.REFUSAL | Implies.DENIED)
METHOD_FAILURES = classes(Implies.METHOD)
MODEL_REFUSALS = classes(Implies.DENIED)
SERVICE_FAILURES = classes(Implies.SERVICE)
BUSY = classes(Implies.BUSY)
OF_PROJECT = classes(Implies.PROJECT)
UNKNOWN = classes(Implies.UNKNOWN)
REQUEST_FAILURES = classes(Implies.REQUEST)
ENDED_BY_VALUE = classes(Implies.NEW_VALUE)
NOT_OFFERED = classes(Implies.DENIED | Implies.ABSENT)
"""The provider does not offer a model to a project."""
QUOTED = classes(Implies.PERSON | Implies.REFUSAL | Implies.DENIED | Implies.ABSENT)
"""Of which a person reads what the provider wrote: the address, the link, the successor."""

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
    """The HTTP code, or what says the same; None for an error without one."""
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


Transport = Literal["", "connect", "reset", "timeout", "slow", "other", "no_answer"]
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
    `timeout`: the caller's own deadline; `slow`: cut off, since nothing had come; `no_answer`: a
    success that is none."""
    headers: Mapping[str, Any] | None = None
    """All headers of the response, looked up in lower case; None: not known."""
    cause: str = ""
    """Why a connection failed, or what came in place of an answer; in words of ours."""

    @property
    def is_foreign(self) -> bool:
        """Return whether the body is not the provider's at all: text or a page, and no JSON.

        A 407 is a proxy's, whatever it says.
        """
        if self.code == _PROXY_CODE:
            return True
        text = self.body if isinstance(self.body, str) else ""
        return text.strip()[:1] not in ("", "{", "[", '"') and parse_error_text(text) is None


_PROXY_CODE = 407


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
        parsed = parse_error_text(body)
        return {"message": body} if parsed is None else parsed
    if isinstance(body, list):
        return body[-1] if body else None
    if not isinstance(body, dict):
        return None
    if isinstance(body.get("error"), dict | str):
        return body["error"]
    message = body.get("message")
    return parse_error_text(message) if isinstance(message, str) else None


def parse_error_text(text: str) -> object:
    """Parse JSON that can hold an error, an object or a list of them; None for other text.

    Of server-sent events, in which some write an error too, the first that can.
    """
    if _EVENT.match(text) is None:
        return _parse(text)
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    events = ("\n".join(_DATA.findall(one)) for one in lines.split("\n\n"))
    return next((found for event in events if (found := _parse(event))), None)


def _parse(text: str) -> object:
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) or objects(parsed) else None


_EVENT = re.compile(r"\s*(?:event|data|id|retry)?:")
_DATA = re.compile(r"^data: ?(.*)", re.MULTILINE)


def objects(value: object) -> list[dict[Any, Any]]:
    """Return the objects of a list of JSON; none of what is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def error_words(error: Mapping[Any, Any], *names: str) -> frozenset[str]:
    """Return the words of an error under these names, in upper case."""
    values = (error.get(name) for name in names)
    return frozenset(word.upper() for word in values if isinstance(word, str) and word)


def retry_after_s(facts: FailureFacts, now: float) -> float | None:
    """Return the delay that headers name: retry-after-ms, else Retry-After, which may be a date."""
    values = (facts.headers or {}).get("retry-after-ms"), facts.retry_after
    exact, text = (value.strip() if isinstance(value, str) else "" for value in values)
    if re.fullmatch(_NUMBER, exact) and float(exact):
        return sane_delay(float(exact) / 1_000)
    return delay_until(text, now)


def reset_s(headers: Mapping[str, Any], now: float) -> float | None:
    """Return when a limit is reset by `x-ratelimit-reset` or a name like it, seconds from *now*.

    Of several limits, that of the last one which is used up.
    """
    named = {name.lower(): str(value).strip() for name, value in headers.items()}
    spent, others = list[float](), list[float]()
    for left, reset in _resets(named):
        if (delay := delay_until(reset, now)) is not None:
            (spent if left and not left.strip("-0.") else others).append(delay)
    return max(spent, default=others[0] if len(others) == 1 else None)


def _resets(named: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what is left of each limit that headers name, and when it is reset.

    A whole limit may stand in one header: `"name";r=0;t=142`, several of them with commas, or
    `limit=100, remaining=0, reset=50` (IETF draft "RateLimit header fields for HTTP").
    """
    for name, value in named.items():
        if _RESET.search(name):
            yield named.get(name.replace("reset", "remaining"), ""), value
        elif name in ("ratelimit", "x-ratelimit"):
            text = _QUOTED.sub("", value)
            for limit in [text] if "reset" in text else text.split(","):
                parts = dict(_FIELD.findall(limit))
                reset = parts.get("t") or parts.get("reset") or ""
                yield parts.get("r") or parts.get("remaining") or "", reset


_RESET = re.compile(r"rate-?limit.*reset")
_QUOTED = re.compile(r'"[^"]*"')
_FIELD = re.compile(r"(?:^|[;,\s])(r|t|remaining|reset)=([0-9]{1,9})(?![^;,\s])")
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
        iso = _ZONE.sub(lambda zone: zone[1] or "Z", text)
        date = datetime.fromisoformat(iso) if is_iso else parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except Exception:  # email.utils raises IndexError and TypeError too
        return 0.0


_ZONE = re.compile(r" ?(?:UTC|GMT|Z|([+-]\d\d:?\d\d))\Z", re.IGNORECASE)


def sane_delay(delay: float) -> float | None:
    """Return a delay in seconds, `MAX_DELAY_S` at most; None unless it is positive."""
    return min(delay, MAX_DELAY_S) if delay > 0 else None


@dataclass(frozen=True, slots=True)
class Rule(Consequences):
    """One failure class: its signals and its consequences.

    It matches where `transport`, `codes`, `foreign` and `model_only` all match and at least one of
    the signals `reasons`, `text`, `quota`, `limit_is_zero`, `has_retry_delay` is present. A rule
    without signals matches by its code; one that rejects the key does not, where the message names
    a model.
    An error without a code may have any of `codes`, if a signal is present. A rule with a scope
    matches only errors in the shape of the provider's, unless it is `any_body`.
    """

    name: str
    codes: Sequence[int | None] | None = None
    """None: any code, and no code. With a None in it also an error without a code."""
    implies: Implies | None = None
    """What its class says; None: what another row of the class says."""
    exhausted_code: int | None = None
    """That of a `KeyPoolExhausted`, where no time ends what the class implies; None: the first of
    `codes`, else 401. Of several rows of a table the first decides."""
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
    foreign: bool | None = None
    """Only for a body that is not the provider's at all, or only for others; None: for all."""

    def matches(self, facts: FailureFacts, parsed: ParsedError, info: CallInfo) -> bool:
        """Return whether the failure is of this class."""
        if self.transport != facts.transport or self.foreign not in (None, facts.is_foreign):
            return False
        signals = self.reasons, self.text, self.quota, self.limit_is_zero, self.has_retry_delay
        alone = not any(signals)
        if not self._has_code(parsed.code, alone=alone):
            return False
        if alone and self.rejected and names_model(parsed.message, info):
            return False
        believed = parsed.is_sure if alone else parsed.has_shape
        if self.scope is not Scope.NONE and not (believed or self.any_body):
            return False
        if self.model_only and (info.bound_to_owner or info.resources or not info.model):
            return False
        return alone or self._has_signal(parsed)

    def _has_code(self, code: int | None, *, alone: bool) -> bool:
        """Return whether the code is one of the row's; an error without one may be any."""
        if self.codes is None or (code is None and not alone):
            return True
        return code in self.codes

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

rejected = partial(
    Rule,
    scope=Scope.KEY,
    backoff=SLOW_BACKOFF,
    rejected=True,
    implies=Implies.VALUE | Implies.REFUSAL | Implies.PERSON | Implies.NEW_VALUE,
)
restricted = partial(rejected, implies=Implies.VALUE | Implies.REFUSAL | Implies.PERSON)
rejected_for_long = partial(rejected, backoff=DAILY_BACKOFF)
rejected_for_method = partial(
    rejected, scope=Scope.KEY_VERB, implies=Implies.METHOD | Implies.REFUSAL
)
of_project = partial(Rule, scope=Scope.PROJECT, implies=Implies.PROJECT | Implies.PERSON)
of_billing = partial(Rule, scope=Scope.BILLING, until=for_an_hour, implies=Implies.PERSON)
of_model = partial(Rule, scope=Scope.PROJECT_MODEL, implies=Implies.MODEL)
denied_model = partial(of_model, implies=Implies.MODEL | Implies.DENIED)
limited = partial(
    of_model,
    codes=_QUOTA,
    until=until_retry_info,
    has_known_end=True,
    implies=Implies.MODEL | Implies.BUSY,
)
paced = partial(limited, until=until_minute_end)
no_model = partial(Rule, implies=Implies.MODEL | Implies.ABSENT)
of_service = partial(Rule, implies=Implies.SERVICE)
of_request = partial(Rule, implies=Implies.REQUEST)
"""Kinds of rows, by what cools down, how long, and what the class implies."""

FIRST_RULES = (
    of_service("connect", transport="connect", retry=True, sent=False),
    of_service("reset", transport="reset", retry=True),
    of_service("timeout", transport="timeout"),
    Rule(SLOW, transport="slow", rotate=True, implies=Implies.MODEL),
    of_service("transport", transport="other"),
    of_service("no_answer", transport="no_answer"),
)
"""Of every provider, before its own."""
_OWN_WAY = frozenset({405, 408, 409, 411, 413, 414, 415, 422, 425, 426, 428, 429, 431, 499})
"""Codes that say the same from a gateway as from the provider."""
CODE_RULES = (
    of_service("gateway", [n for n in range(400, 500) if n not in _OWN_WAY], foreign=True),
    of_request("not_found", (404,)),
    of_service("request_timeout", (408,), retry=True),
    of_request("conflict", (409, 425), retry=True),
    of_request("too_large", (413,)),
    of_request("cancelled", (499,)),
    of_request("bad_request", (*range(400, 500), 1007)),
    Rule(
        OVERLOADED,
        (503, 529),
        retry=True,
        implies=Implies.MODEL | Implies.BUSY | Implies.SERVICE,
    ),
    of_service("deadline", (504,), retry=True, max_retries=1),
    of_service("server_error", (*range(500, 600), 1011), retry=True),
    Rule("unknown", implies=Implies.NOTHING),
)
"""Of every provider: what the code alone says."""
_OUTSIDE_QUOTES = r"""^(?>(?<=\w)'|'[^']*'|"[^"]*"|`[^`]*`|“[^”]*”|[^'"`“])*?"""
ABOUT_ACCOUNT = (
    rf"{_OUTSIDE_QUOTES}(?<![\w./\[-])(?<!into )(?:"
    r"(?:api|access|secret|your|this)[ _-]?keys?|credentials?|authenticat\w+|unauthori[sz]ed"
    r"|workspaces?|accounts?|organi[sz]ations?|tenants?|subscriptions?|licen[sc]es?"
    r"|plans?|quotas?|billing|payments?|balance|credits?"
    r"|access (?:to|denied)|(?:have|has|no) access"
    r")(?![\w/\[]|\.\w)"
)
"""Words about who asks, in a status that speaks of the request: they blame nobody, but let another
key be asked. What a message quotes may be a part of the request, and is not searched."""
LAST_RULES = (
    Rule(UNKNOWN_REFUSAL, (400, 404), text=ABOUT_ACCOUNT, rotate=True),
    Rule(
        UNKNOWN_LIMIT,
        _QUOTA,
        implies=Implies.MODEL | Implies.UNKNOWN,
        scope=Scope.KEY_MODEL,
        until=until_retry_info,
        has_known_end=True,
        any_body=True,
    ),
    Rule(UNKNOWN_REFUSAL, (401, 402, 403, None), rotate=True, implies=Implies.UNKNOWN),
    *CODE_RULES,
)
"""Of every provider, after its own."""


def find_problem(rules: Iterable[Rule], known: Mapping[str, Implies] = CLASSES) -> str:
    """Return what is wrong with the failure classes of a table; empty if nothing is.

    A name has one meaning: a table that gives a *known* class another one is refused, since all
    providers share the state, its pages and its alerts.
    """
    own: dict[str, Implies] = {}
    for rule in rules:
        if rule.implies is not None:
            meant = own.setdefault(rule.name, known.get(rule.name, rule.implies))
            if meant != rule.implies:
                difference = f"{rule.implies.name}, elsewhere {meant.name}"
                return f'its failure class "{rule.name}" implies {difference}; give it another name'
    for rule in rules:
        if rule.name not in own and rule.name not in known:
            hint = did_you_mean(rule.name, [*known, *own])
            return f'no row defines its failure class "{rule.name}".{hint}'
    return ""


def join(rules: Iterable[Rule]) -> None:
    """Add the failure classes that a table defines to `CLASSES`, and to the sets of `classes()`."""
    own = {rule.name: rule.implies for rule in rules if rule.implies is not None}
    CLASSES.update(own)
    for implied, members in _SETS:
        members.update(_implying(implied, own))


join((*FIRST_RULES, *LAST_RULES))


def refusal_codes(rules: Iterable[Rule]) -> dict[str, int]:
    """Return the code of a `KeyPoolExhausted` after each class of a table that no time ends."""
    codes: dict[str, int] = {}
    for rule in rules:
        if rule.name in FOR_GOOD:
            first = next(iter(rule.codes or ()), None) or 401
            codes.setdefault(rule.name, rule.exhausted_code or first)
    return codes


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
    verdict = _verdict(rule, parsed, info, now)
    return replace(verdict, message=_said(rule, parsed) or facts.cause, cause=facts.cause)


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
        advice=rule.advise(parsed),
        **shared,
    )


def _said(rule: Rule, parsed: ParsedError) -> str:
    """Return what the service wrote; of a reply that no row knows with its codes.

    What is about the request may quote that.
    """
    message = text_of_page(parsed.message)
    if rule.name in UNKNOWN:
        words = (word.lower() for word in sorted(parsed.reasons))
        return " ".join((*words, message or "(no message)"))
    return "" if rule.name in REQUEST_FAILURES else message


def names_model(message: str, info: CallInfo) -> bool:
    """Return whether a refusal is about one model: that of the call, or it says "model"."""
    if not info.model:
        return False
    named = rf"(?<![\w'-]){re.escape(info.model)}(?![\w-])"
    return re.search(rf"{_MODEL}|{named}", message, re.IGNORECASE) is not None


_MODEL = r"(?<![\w./-])model\b(?![/-]|\.\w)"


def _narrow_scope(rule: Rule, info: CallInfo) -> Scope:
    """Return the scope for a call that does not count in a model's quota: its method, or none."""
    if rule.scope not in MODEL_SCOPES:
        return rule.scope
    return Scope.NONE if info.verb in GENERIC_VERBS or rule.codes != _QUOTA else Scope.KEY_VERB


def quotable(failure: str, message: str) -> str:
    """Return as much as is quoted of what a service wrote: of known words, a link in them too."""
    return message.partition("\n")[0][: 200 if failure in UNKNOWN else 400]


def remedy(failure: str) -> str:
    """Say what a person does about a key that is rejected."""
    if failure in ENDED_BY_VALUE:
        return "replace its value"
    return "change its restrictions or its project, not its value"


def describe(verdict: Verdict) -> str:
    """Return the failure for display: `quota_minute (429)`, `reset`; with its cause or advice."""
    code = "" if verdict.code is None else f" ({verdict.code})"
    more = verdict.cause or verdict.advice
    return f"{verdict.failure}{code}{more and f': {more}'}"
