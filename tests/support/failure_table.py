"""Every failure that Google is known for, and its expected verdict.

One group for each class: the fields of its verdict that differ from "raise, penalize no key",
and its bodies as (what it is, HTTP code, body). docs/failures.md has the sources of the
verdicts, docs/gemini-api.md#errors of the bodies; those of streams stand in test_failures.py.
"""

import json
from typing import Any, NamedTuple

from keyrot_middleware.core.model import Backoff, CallInfo, Scope
from support import google_bodies as g
from support.google_bodies import bad, delay, denied, interactions, over, reason, rest

NOW = 1_795_551_320.0  # 2026-11-24 20:15:20 UTC
MIDNIGHT = 1_795_593_600.0  # 2026-11-25 00:00 Pacific time
MINUTE = 1_795_551_361.0  # the next minute and its guard of a second
HOUR, DAY = NOW + 3_600, NOW + 86_400
CALL = CallInfo("gemini-2.5-flash", "generateContent", tokens=100)

KEY: dict[str, Any] = {
    "scope": Scope.KEY,
    "rejected": True,
    "backoff": Backoff(900, 21_600),
    "rotate": True,
}
LEAKED = {**KEY, "backoff": Backoff(86_400, 86_400)}
PROJECT: dict[str, Any] = {"scope": Scope.PROJECT, "rotate": True, "may_wait": False}
BILLING = {**PROJECT, "scope": Scope.BILLING, "until": HOUR}
MODEL = {**PROJECT, "scope": Scope.PROJECT_MODEL, "until": DAY}
DAYS = {**MODEL, "until": MIDNIGHT, "has_known_end": True}
PACE = {**MODEL, "until": MINUTE, "has_known_end": True, "may_wait": True}
SPEND_RATE: dict[str, Any] = {
    "scope": Scope.BILLING,
    "rotate": True,
    "backoff": Backoff(30, 600),
}
CAPACITY = {"scope": Scope.KEY_MODEL, "rotate": True, "max_rotations": 5}
LOCATION = {"rotate": True, "max_rotations": 1, "any_tier": False}
RETRY = {"retry": True}
RAISE: dict[str, Any] = {}


class Group(NamedTuple):
    failure: str
    fields: dict[str, Any]
    bodies: tuple[tuple[str, int, Any], ...]


def _of(failure: str, fields: dict[str, Any], *bodies: tuple[str, int, Any]) -> Group:
    return Group(failure, fields, bodies)


def _quota(*quotas: dict[str, Any]) -> dict[str, Any]:
    return over("Over.", g.quota_failure(*quotas))


def _precondition(message: str) -> dict[str, Any]:
    return rest(400, "FAILED_PRECONDITION", message)


def _missing(message: str) -> dict[str, Any]:
    return rest(404, "NOT_FOUND", message)


def _text(text: str) -> dict[str, Any]:
    """Return the body that the SDK makes of a response that is no JSON."""
    return {"message": text, "status": "Some Reason"}


GROUPS = [
    _of("key_expired", KEY, ("expired", 400, bad("API key expired. Please renew the API key."))),
    _of("key_invalid", KEY, ("invalid", 400, g.INVALID), ("invalid in a list", 400, [g.INVALID]),
        ("invalid, text alone", 400, bad(g.NOT_VALID)),
        ("invalid, reason alone", 400, bad("?", reason("API_KEY_INVALID"))),
        ("not found", 400, bad("API Key not found. Please pass a valid API key.")),
        ("invalid, Interactions", 400, interactions("invalid_request", g.NOT_VALID)),
        ("invalid, JSON as text", 400, json.dumps([bad(g.NOT_VALID)]))),
    _of("unauthorized", KEY, ("auth token type", 401, g.TOKEN_TYPE),
        ("401, Interactions", 401, interactions("authentication", "No."))),
    _of("key_leaked", LEAKED, ("leaked", 403, g.LEAKED)),
    _of("project_suspended", LEAKED, ("suspended", 403, g.SUSPENDED),
        ("suspended, text alone", 403, g.SUSPENDED_BARE)),
    _of("key_restricted", KEY, ("address", 403, g.IP),
        ("referrer, text alone", 403, denied("Requests from referer <empty> are blocked.")),
        ("Android", 403, denied("?", reason("API_KEY_ANDROID_APP_BLOCKED"))),
        ("iOS", 403, denied("?", reason("API_KEY_IOS_APP_BLOCKED"))),
        ("referrer", 403, denied("?", reason("API_KEY_HTTP_REFERRER_BLOCKED")))),
    _of("key_denied", KEY,
        *((name, 403, denied("?", reason(name))) for name in (
            "IAM_PERMISSION_DENIED", "ORG_RESTRICTION_VIOLATION",
            "RESOURCE_USAGE_RESTRICTION_VIOLATED", "SECURITY_POLICY_VIOLATED"))),
    _of("key_method_blocked", {**KEY, "scope": Scope.KEY_VERB}, ("method", 403, g.METHOD)),
    _of("service_disabled", {**PROJECT, "until": NOW + 600}, ("disabled", 403, g.DISABLED)),
    _of("project_denied", {**PROJECT, "until": DAY},
        ("no billing", 403, denied("?", reason("BILLING_DISABLED"))),
        ("no consumer", 403, denied("?", reason("CONSUMER_INVALID"))),
        ("user project", 403, denied("?", reason("USER_PROJECT_DENIED"))),
        ("denied", 403, denied("Your project has been denied access. Please contact support."))),
    _of("credit_depleted", BILLING, ("prepay", 402, rest(402, "RESOURCE_EXHAUSTED", g.PREPAY)),
        ("prepay as 429", 429, over(g.PREPAY)),
        ("prepay, Interactions", 402, interactions("payment_required", "?"))),
    _of("payment_required", BILLING, ("402, status alone", 402, over("?"))),
    _of("unknown_refusal", {"rotate": True},
        ("401, no body", 401, None), ("402, no body", 402, None),
        ("401, login page", 401, _text("<!doctype html><title>Sign in</title>")),
        ("402, HTML", 402, _text("<html>")),
        ("401, foreign JSON", 401, {"error": "unauthorized", "code": 401}),
        ("401, another foreign JSON", 401, {"message": "API key not valid", "status": 401}),
        ("401, text of a proxy", 401, {"error": {"code": 401, "message": "Unauthorized"}}),
        ("401, as OpenAI's", 401,
         {'error': {'message': 'No.', 'type': 'auth_error', 'code': 'invalid_request'}}),
        ("402, a list of it", 402, [{"detail": "Payment required"}])),
    _of("billing_cap", BILLING,
        ("billing cap", 429,
         over("Your billing account has exceeded its monthly spending cap. Please"))),
    _of("project_cap", {**PROJECT, "until": HOUR},
        ("project cap", 429,
         over("Your project has exceeded its monthly spending cap. Please go to "))),
    _of("spend_rate", SPEND_RATE, ("spend rate", 429, over(g.SPEND_RATE)),
        ("spend rate, Interactions", 429, interactions("rate_limit_exceeded", g.SPEND_RATE)),
        ("spend rate, a closed Live session", 1011, g.SPEND_RATE)),
    _of("spend_rate", {**SPEND_RATE, "until": NOW + 42, "has_known_end": True},
        ("spend rate, a delay", 429, over(g.SPEND_RATE, delay("42s")))),
    _of("limit_zero", {**MODEL, "bucket": "gemini-2.0-flash"}, ("limit 0", 429, g.LIMIT_ZERO),
        ("limit 0, text alone", 429, over(g.LIMIT_ZERO["error"]["message"]))),
    _of("quota_day", DAYS, ("free day", 429, g.FREE_DAY),
        ("day, Interactions", 429, interactions("quota_exceeded", "You are out."))),
    _of("quota_day", {**DAYS, "until": NOW + 17967.724879759}, ("paid day", 429, g.PAID_DAY)),
    _of("quota_minute", {**PACE, "until": NOW + 25.08253422},
        ("free minute", 429, g.FREE_MINUTE)),
    _of("quota_minute", {**PACE, "until": NOW + 48.939935699},
        ("paid minute", 429, g.PAID_MINUTE), ("paid minute in a list", 429, [g.PAID_MINUTE])),
    _of("quota_minute", PACE, ("minute, no delay", 429, _quota(g.violation(g.FREE_RPM, "5"))),
        ("minute, old form", 429, g.OLD_FORM),
        ("minute, old text", 429, over(g.OLD_FORM["error"]["message"])),
        ("minute, Interactions", 429, interactions("rate_limit_exceeded", "Slow."))),
    _of("rate_limit", {**PACE, "until": NOW + 25.08253422},
        ("quota of no window", 429, over(g.FREE_MINUTE["error"]["message"]))),
    _of("rate_limit", {**PACE, "until": NOW + 7}, ("a delay alone", 429, over("?", delay("7s")))),
    _of("rate_limit", {**PACE, "until": NOW + 301, "may_wait": False},
        ("a long delay", 429, over("?", delay("301s")))),
    _of("cache_storage", {**MODEL, "scope": Scope.PROJECT_CACHE}, ("cache", 429, g.CACHE)),
    _of("batch_quota", {"scope": Scope.KEY_VERB, "rotate": True, "bucket": "gemini-2.5-flash"},
        ("batches", 429, _quota(g.violation("BatchEnqueuedTokensPerModel", "3")))),
    _of("capacity", CAPACITY, ("exhausted", 429, g.EXHAUSTED),
        ("exhausted, Vertex's text", 429,
         over('Resource exhausted. Please try again later. Please refer')),
        ("exhausted, Interactions", 429,
         interactions("too_many_requests", "Resource has been exhausted")),
        ("Help only", 429, over(g.INTRO, g.HELP)), ("429, HTML", 429, _text("<html>")),
        ("429, no body", 429, None)),
    _of("model_denied", MODEL,
        ("no permission", 403, denied("The caller does not have permission"))),
    _of("model_withdrawn", MODEL, ("new users", 404, _missing(g.NEW_USERS)),
        ("new users, Interactions", 404, interactions("not_found", g.NEW_USERS)),
        ("new users, bare", 404, _missing("no longer available to new users, use X"))),
    _of("location", LOCATION,
        ("location", 400, _precondition("User location is not supported for the API use.")),
        ("location, no billing", 400, _precondition(
            "User location is not supported for the API use without a billing account."))),
    _of("affinity", RAISE,
        ("file", 403,
         denied("You do not have permission to access the File abc or it may not exist.")),
        ('file, older', 403, denied("either you don't have permission or the file is missing")),
        ("cached content", 403, denied("CachedContent not found (or permission denied)")),
        ("signature", 400, bad("Corrupted thought signature.")),
        ("no signature", 400,
         bad("Function call is missing a thought_signature in functionCall parts.")),
        ("entity", 404, _missing("Requested entity was not found.")),
        ("interaction", 404, interactions("not_found", "Interaction v1_abc not found.")),
        ("operation", 404, _missing("Operation x was not found."))),
    _of("bad_request", RAISE,
        ("too long", 400,
         bad("The input token count exceeds the maximum number of tokens allowed (1048576).")),
        ("unknown field", 400, g.UNKNOWN_FIELD),
        ("precondition", 400, _precondition("The file is not in an ACTIVE state.")),
        ("interaction's name", 400, interactions('invalid_request', 'Invalid interaction name: x')),
        ("two credentials", 400, bad("Multiple authentication credentials received")),
        ("a Live setup", 1007, "The requested combination of response modalities is not")),
    _of("model_not_found", RAISE, ("no such model", 404, g.NO_MODEL),
        ("no such model, Vertex AI", 404,
         _missing("Publisher Model `x/models/y` was not found or")),
        ("no such model, older", 404, _missing("Publisher Model `x/models/y` not found."))),
    _of("not_found", RAISE, ("no such path", 404, _text(""))),
    _of("too_large", RAISE, ("too large", 413, _text("<html>"))),
    _of("no_key", RAISE,
        ('unregistered', 403, denied("Method doesn't allow unregistered callers (callers without")),
        ("OAuth only", 401, rest(401, "?", "API keys are not supported by this API. Expected"))),
    _of("forbidden", RAISE, ("forbidden", 403, denied("This text is unknown.")),
        ("forbidden, HTML", 403, _text("<html>"))),
    _of("request_timeout", RETRY, ("408", 408, None)),
    _of("conflict", RETRY, ("conflict", 409, None), ("too early", 425, None)),
    _of("cancelled", RAISE, ("cancelled", 499, [rest(499, "CANCELLED", "Cancelled.")])),
    _of("server_error", RETRY, ("internal", 500, g.INTERNAL),
        ("bad gateway", 502, _text("<html>")), ("599", 599, None),
        ("a closed Live session", 1011, "Internal error occurred.")),
    _of("overloaded", RETRY, ("overloaded", 503, g.OVERLOADED),
        ("overloaded, Interactions", 503, interactions("service_unavailable", "High demand")),
        ("503 of a deadline", 503, rest(503, "UNAVAILABLE", g.DEADLINE))),
    _of("deadline", {**RETRY, "max_retries": 1},
        ("deadline", 504, rest(504, "DEADLINE_EXCEEDED", g.DEADLINE))),
]  # fmt: skip
