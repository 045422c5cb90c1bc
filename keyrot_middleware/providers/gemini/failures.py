"""Google's failure classes, and what each means (docs/gemini-api.md#errors has the sources).

Depleted credit was a 429 and is a 402, an invalid key is a 400, another project's file a 403: so
rows name ErrorInfo's reason, QuotaFailure's quotaId, RetryInfo, or the beginning of the message.
RetryInfo cannot distinguish quotas: an exhausted free day says "retry in 2s". A new failure class
is one row here, made by what says its meaning; one in docs/failures.md; and one in the tests.
"""

from __future__ import annotations

from ...core.failures import (
    CODE_RULES,
    DAILY_BACKOFF,
    FIRST_RULES,
    LONG_S,
    UNKNOWN_REFUSAL,
    Implies,
    ParsedError,
    Rule,
    denied_model,
    for_a_day,
    for_ten_minutes,
    limited,
    no_model,
    of_billing,
    of_model,
    of_project,
    of_request,
    paced,
    rejected,
    rejected_for_long,
    rejected_for_method,
    restricted,
    until_retry_info,
)
from ...core.model import Backoff, Scope
from ...core.windows import HOUR_S, next_midnight, next_month

ZONE = "America/Los_Angeles"
"""Where Google's days and months end."""
DAY_GRACE_S = 600.0
"""If the first ten minutes of a day are refused as exhausted, the previous day is meant."""
SPEND_BACKOFF = Backoff(30.0, 600.0)
"""For the rate of spending, which Google measures over the last ten minutes."""


def until_cap_reset(_parsed: ParsedError, now: float) -> float:
    """Return the time in an hour, or the end of the month: the cap may be raised before."""
    return min(now + HOUR_S, next_month(now, ZONE))


def until_day_end(parsed: ParsedError, now: float) -> float | None:
    """Return the next Pacific midnight, or the end of a RetryInfo over `LONG_S` (paid days).

    Around midnight it is the previous day that is exhausted: clocks differ, Google's reset may be
    late, and a response may arrive on the next day. The end is unknown then: None.
    """
    sent = now if parsed.sent_at is None else parsed.sent_at
    if next_midnight(sent - DAY_GRACE_S, ZONE) <= now:
        return None
    if parsed.retry_delay_s is not None and parsed.retry_delay_s > LONG_S:
        return now + parsed.retry_delay_s
    return next_midnight(now, ZONE)


_ASK_V1BETA = (
    "v1beta may have this model, v1 does not: set GOOGLE_GENAI_API_VERSION=v1beta (google-genai 3 "
    'and later), pass http_options={"api_version": "v1beta"}, or name another model'
)


def ask_another_version(parsed: ParsedError) -> str:
    """Return what to do about a model that v1 lacks (docs/gemini-api.md#v1-and-v1beta)."""
    return _ASK_V1BETA if "is not found for API version v1," in parsed.message else ""


_QUOTA = (429,)


def words(*reasons: str) -> frozenset[str]:
    """Return reasons of a row."""
    return frozenset(reasons)


RULES: tuple[Rule, ...] = (
    *FIRST_RULES,
    # The value of the key is rejected.
    rejected("key_expired", text=r"^API key expired\. Please\b", exhausted_code=400),
    rejected(
        "key_invalid",
        reasons=words("API_KEY_INVALID"),
        text=r"^API key not (?:valid|found)\. Please\b",
        exhausted_code=400,
    ),
    rejected_for_long(
        "key_leaked", text=r"^Your API key was reported as leaked\b", exhausted_code=403
    ),
    restricted(
        "key_restricted",
        reasons=words(
            *("API_KEY_ANDROID_APP_BLOCKED", "API_KEY_HTTP_REFERRER_BLOCKED"),
            *("API_KEY_IOS_APP_BLOCKED", "API_KEY_IP_ADDRESS_BLOCKED"),
        ),
        text=r"^(?:Requests from (?:referer|this (?:android|ios) client)\b.{0,300} are blocked"
        r"|The provided API key has an IP address restriction)",
        exhausted_code=403,
    ),
    restricted(
        "key_denied",
        (403,),
        model_only=True,
        reasons=words(
            *("IAM_PERMISSION_DENIED", "ORG_RESTRICTION_VIOLATION", "SECURITY_POLICY_VIOLATED"),
            "RESOURCE_USAGE_RESTRICTION_VIOLATED",
        ),
    ),
    rejected_for_method(
        "key_method_blocked",
        reasons=words("API_KEY_SERVICE_BLOCKED"),
        text=r"^Requests to this API \S{1,200} method \S{1,200} are blocked",
        exhausted_code=403,
    ),
    restricted(
        "project_suspended",
        backoff=DAILY_BACKOFF,
        reasons=words("CONSUMER_SUSPENDED"),
        text=r"^Permission denied: Consumer '[^']{0,300}' has been suspended",
        exhausted_code=403,
    ),
    # The project or its billing account.
    of_project(
        "service_disabled",
        reasons=words("SERVICE_DISABLED"),
        text=r"^Generative Language API has not been used in project\b",
        until=for_ten_minutes,
    ),
    of_project(
        "project_denied",
        reasons=words("BILLING_DISABLED", "CONSUMER_INVALID", "USER_PROJECT_DENIED"),
        text=r"^Your project has been denied access\b",
        until=for_a_day,
    ),
    of_billing(
        "credit_depleted",
        reasons=words("PAYMENT_REQUIRED"),
        text=r"^Your prepayment credits are depleted\b",
    ),
    of_billing(
        "billing_cap",
        text=r"^Your billing account has exceeded its monthly spending cap\b",
        until=until_cap_reset,
    ),
    of_project(
        "project_cap",
        text=r"^Your project has exceeded its monthly spending cap\b",
        until=until_cap_reset,
    ),
    of_billing(
        "spend_rate",
        text=r"^You exceeded your spend-based rate limit\b",
        until=until_retry_info,
        backoff=SPEND_BACKOFF,
        has_known_end=True,
        implies=Implies.NOTHING,
    ),
    # Quotas, the gravest first.
    Rule(
        "cache_storage",
        _QUOTA,
        text=r"^TotalCachedContentStorage",
        quota="totalcachedcontentstorage",
        scope=Scope.PROJECT_CACHE,
        until=for_a_day,
        implies=Implies.METHOD,
    ),
    Rule(
        "batch_quota",
        _QUOTA,
        quota="enqueued",
        scope=Scope.KEY_VERB,
        until=until_retry_info,
        any_body=True,
        implies=Implies.METHOD,
    ),
    of_model(
        "limit_zero",
        _QUOTA,
        limit_is_zero=True,
        until=for_a_day,
        may_wait=False,
        implies=Implies.MODEL | Implies.ABSENT,
    ),
    paced(
        "quota_day",
        reasons=words("QUOTA_EXCEEDED"),
        quota="perday",
        until=until_day_end,
        may_wait=False,
    ),
    paced("quota_minute", reasons=words("RATE_LIMIT_EXCEEDED"), quota="perminute", any_body=True),
    limited("rate_limit", has_retry_delay=True, any_body=True),
    # The model in this project, the location, the request's own resources.
    denied_model(
        "model_denied",
        (403,),
        model_only=True,
        text=r"^The caller does not have permission\.?$",
        until=for_a_day,
    ),
    of_model(
        "model_withdrawn",
        (404,),
        text=r"^(?:This model )?\S{0,100}\s?(?:is )?no longer available to new users",
        until=for_a_day,
        implies=Implies.MODEL | Implies.DENIED | Implies.ABSENT,
    ),
    no_model(
        "model_not_found",
        (404,),
        text=r"^(?:models/\S{1,200} is|Publisher Model \S{1,300}(?: was)?) not found\b",
        advise=ask_another_version,
    ),
    Rule(
        "location",
        (400,),
        text=r"^(?:User location is not supported"
        r"|(?:Gemini API )?free tier is not available in your country)",
        rotate=True,
        max_rotations=1,
        any_tier=False,
        implies=Implies.NOTHING,
    ),
    of_request(
        "affinity",
        (400, 403, 404),
        text=r"thought[ _]signature|permission to access the File|the file is missing"
        r"|CachedContent not found|Requested entity was not found"
        r"|^(?!models/).{0,200}\b(?:interaction|operation)s?\b.{0,200} not found",
    ),
    Rule(
        "no_key",
        (401, 403),
        reasons=words("CREDENTIALS_MISSING"),
        text=r"unregistered callers|^API keys are not supported by this API",
        implies=Implies.NOTHING,
    ),
    # Codes alone.
    rejected("unauthorized", (401,)),
    of_billing("payment_required", (402,)),
    Rule(UNKNOWN_REFUSAL, (401, 402), rotate=True),
    Rule(
        "capacity",
        _QUOTA,
        scope=Scope.KEY_MODEL,
        max_rotations=5,
        any_body=True,
        implies=Implies.MODEL | Implies.BUSY,
    ),
    # With another key it would count there too.
    Rule("forbidden", (403,), foreign=False, implies=Implies.NOTHING),
    *CODE_RULES,
)

SAYS = {
    "key_expired": "API key expired. Please renew the API key.",
    "key_invalid": "API key not valid. Please pass a valid API key.",
    "key_leaked": "Your API key was reported as leaked. Please use another API key.",
    "project_suspended": "Permission denied: Consumer has been suspended.",
    "project_denied": "Your project has been denied access. Please contact support.",
    "project_cap": "Your project has exceeded its monthly spending cap.",
    "billing_cap": "Your billing account has exceeded its monthly spending cap.",
    "credit_depleted": "Your prepayment credits are depleted.",
}
"""Google's own sentence for a class, by which people search for it."""
