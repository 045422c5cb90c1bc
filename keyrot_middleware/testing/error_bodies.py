"""Google's error bodies. Some of them echo the key of the request, as Google's do.

Sources: docs/gemini-api.md#exhausted-quotas, docs/gemini-api.md#rejected-keys-and-refused-requests
and docs/failures.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from keyrot_middleware.core.model import Limits
from keyrot_middleware.core.model_names import CURRENT_MODEL, FREE_LIMITS
from keyrot_middleware.testing.quota import LimitName, seconds_to_midnight, seconds_to_minute
from keyrot_middleware.testing.request import FakeRequest

__all__ = [
    "api_key_invalid",
    "bad_field",
    "cache_storage",
    "error",
    "file_denied",
    "go_duration",
    "help_only",
    "ip_blocked",
    "limit_zero",
    "method_blocked",
    "model_not_found",
    "new_users",
    "over_quota",
    "plain",
    "quota_body",
    "rate_limit_exceeded",
    "referrer_blocked",
    "service_disabled",
    "suspended",
    "token_unsupported",
]

_TYPE = "type.googleapis.com/google.rpc."
_SERVICE = "generativelanguage.googleapis.com"
_CONSOLE = "https://console.developers.google.com/apis/api/generativelanguage.googleapis.com"

Body = Callable[[FakeRequest], Any]


def error(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    """Return Google's error object; it has no `details` if there are none."""
    inner: dict[str, Any] = {"code": code, "message": message, "status": status}
    if details:
        inner["details"] = list(details)
    return {"error": inner}


def plain(code: int, status: str, message: str) -> Body:
    """Return a body without details."""
    return lambda _request: error(code, status, message)


def _info(reason: str, **metadata: str) -> dict[str, Any]:
    return {
        "@type": f"{_TYPE}ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": metadata,
    }


def _localized(message: str) -> dict[str, Any]:
    return {"@type": f"{_TYPE}LocalizedMessage", "locale": "en-US", "message": message}


def api_key_invalid(message: str) -> Body:
    """Return the 400 of a key that is unknown, expired or deleted: one reason, three messages."""
    info = _info("API_KEY_INVALID", service=_SERVICE)
    body = error(400, "INVALID_ARGUMENT", message, info, _localized(message))
    return lambda _request: body


def token_unsupported(request: FakeRequest) -> dict[str, Any]:
    """Return the 401 of an auth key that was used like an OAuth token."""
    message = (
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login "
        "cookie or other valid authentication credential. See "
        "https://developers.google.com/identity/sign-in/web/devconsole-project."
    )
    info = {
        "@type": f"{_TYPE}ErrorInfo",
        "reason": "ACCESS_TOKEN_TYPE_UNSUPPORTED",
        "metadata": {"method": request.route.rpc, "service": _SERVICE},
    }
    return error(401, "UNAUTHENTICATED", message, info)


def _denied(message: str, reason: str, request: FakeRequest, **metadata: str) -> dict[str, Any]:
    info = _info(reason, consumer=request.consumer, service=_SERVICE, **metadata)
    return error(403, "PERMISSION_DENIED", message, info, _localized(message))


def suspended(request: FakeRequest) -> dict[str, Any]:
    """Return the 403 of a suspended consumer, which echoes the key three times."""
    echo = f"api_key:{request.value}"
    message = f"Permission denied: Consumer '{echo}' has been suspended."
    return _denied(message, "CONSUMER_SUSPENDED", request, containerInfo=echo)


def service_disabled(request: FakeRequest) -> dict[str, Any]:
    """Return the 403 of a project in which the API is not enabled."""
    number = request.consumer.removeprefix("projects/")
    url = f"{_CONSOLE}/overview?project={number}"
    message = (
        f"Generative Language API has not been used in project {number} before or it is disabled. "
        f"Enable it by visiting {url} then retry. If you enabled this API recently, wait a few "
        "minutes for the action to propagate to our systems and retry."
    )
    return _denied(
        message,
        "SERVICE_DISABLED",
        request,
        containerInfo=number,
        activationUrl=url,
        serviceTitle="Generative Language API",
    )


def method_blocked(request: FakeRequest) -> dict[str, Any]:
    """Return the 403 of a key that is restricted to other methods."""
    method = request.route.rpc
    message = f"Requests to this API {_SERVICE} method {method} are blocked."
    names = {"apiName": _SERVICE, "methodName": method}
    return _denied(message, "API_KEY_SERVICE_BLOCKED", request, **names)


def referrer_blocked(request: FakeRequest) -> dict[str, Any]:
    """Return the 403 of a key that is restricted to the pages of a site."""
    message = "Requests from referer <empty> are blocked."
    return _denied(message, "API_KEY_HTTP_REFERRER_BLOCKED", request, httpReferrer="<empty>")


def ip_blocked(request: FakeRequest) -> dict[str, Any]:
    """Return the 403 of a key that is restricted to other addresses."""
    message = (
        "The provided API key has an IP address restriction. The originating IP address of the "
        "call (127.0.0.1) violates this restriction."
    )
    return _denied(message, "API_KEY_IP_ADDRESS_BLOCKED", request, callerIp="127.0.0.1")


def file_denied(request: FakeRequest) -> dict[str, Any]:
    """Return the 403 of a file that is another project's, or gone; one text for both."""
    file_id = (request.resource or request.route.name or "files/xxxx").partition("/")[2]
    message = f"You do not have permission to access the File {file_id} or it may not exist."
    return error(403, "PERMISSION_DENIED", message)


def rate_limit_exceeded(request: FakeRequest) -> dict[str, Any]:
    """Return the older 429, which has an ErrorInfo and no QuotaFailure."""
    metric, limit = "Generate Content API requests per minute", "GenerateContent request limit"
    message = (
        f"Quota exceeded for quota metric '{metric}' and limit '{limit} per minute for a region' "
        f"of service '{_SERVICE}' for consumer 'project_number:{request.consumer[9:]}'."
    )
    info = _info(
        "RATE_LIMIT_EXCEEDED",
        service=_SERVICE,
        quota_location="us-west4",
        quota_limit_value="0",
        quota_limit="GenerateContentRequestsPerMinutePerProjectPerRegion",
        quota_metric=f"{_SERVICE}/generate_content_requests",
        consumer=request.consumer,
    )
    return error(429, "RESOURCE_EXHAUSTED", message, info)


def cache_storage(request: FakeRequest) -> dict[str, Any]:
    """Return the 429 of explicit caching where the tier has none of it."""
    message = (
        "TotalCachedContentStorageTokensPerModelFreeTier limit exceeded for model "
        f"{request.bucket or CURRENT_MODEL}: limit=0, requested={request.tokens}"
    )
    return error(429, "RESOURCE_EXHAUSTED", message)


# Bodies of 429: which limit was exceeded, and when to retry --------------------------------------
#
# An exhausted day of the free tier names the next minute as retry time
# (docs/gemini-api.md#quota-errors-with-details). Quota names without a public recording follow the
# pattern of the others: paid requests a minute, and embeddings other than the free tier's requests.


QuotaLimit = Literal["rpm", "tpm", "rpd", "tpd"]
_DOCS = "https://ai.google.dev/gemini-api/docs/rate-limits"
_INTRO = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    f"information on this error, head to: {_DOCS}. To monitor your current usage, head to: "
    "https://ai.dev/rate-limit. "
)
# (embedding?, free tier?, limit) -> (metric, quota id).
_QUOTA_NAMES: dict[tuple[bool, bool, QuotaLimit], tuple[str, str]] = {
    (False, True, "rpd"): (
        "generate_content_free_tier_requests",
        "GenerateRequestsPerDayPerProjectPerModel-FreeTier",
    ),
    (False, True, "rpm"): (
        "generate_content_free_tier_requests",
        "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
    ),
    (False, True, "tpm"): (
        "generate_content_free_tier_input_token_count",
        "GenerateContentInputTokensPerModelPerMinute-FreeTier",
    ),
    (False, True, "tpd"): (
        "generate_content_free_tier_input_token_count",
        "GenerateContentInputTokensPerModelPerDay-FreeTier",
    ),
    (False, False, "rpd"): (
        "generate_requests_per_model_per_day",
        "GenerateRequestsPerDayPerProjectPerModel",
    ),
    (False, False, "rpm"): (
        "generate_requests_per_model",
        "GenerateRequestsPerMinutePerProjectPerModel",
    ),
    (False, False, "tpm"): (
        "generate_content_paid_tier_input_token_count",
        "GenerateContentPaidTierInputTokensPerModelPerMinute",
    ),
    (True, True, "rpd"): (
        "embed_content_free_tier_requests",
        "EmbedContentRequestsPerDayPerUserPerProjectPerModel-FreeTier",
    ),
    (True, True, "rpm"): (
        "embed_content_free_tier_requests",
        "EmbedContentRequestsPerMinutePerUserPerProjectPerModel-FreeTier",
    ),
    (True, True, "tpm"): (
        "embed_content_free_tier_input_token_count",
        "EmbedContentInputTokensPerMinutePerUserPerProjectPerModel-FreeTier",
    ),
    (True, False, "rpd"): (
        "embed_content_paid_tier_requests",
        "EmbedContentRequestsPerDayPerProjectPerModel",
    ),
    (True, False, "rpm"): (
        "embed_content_paid_tier_requests",
        "EmbedContentRequestsPerMinutePerProjectPerModel",
    ),
    (True, False, "tpm"): (
        "embed_content_paid_tier_input_token_count",
        "EmbedContentInputTokensPerMinutePerProjectPerModel",
    ),
}
# The limits named by a scripted error if the project has none configured
# (docs/gemini-api.md#limits-of-the-tiers).
_DEFAULT_LIMITS: dict[bool, Limits] = {
    True: FREE_LIMITS[CURRENT_MODEL],
    False: Limits(rpm=1_000, tpm=1_000_000, rpd=10_000),
}


def go_duration(seconds: float) -> str:
    """Format a duration as Google's messages do: `4h59m27.7s`, `48.939935699s`, `900ms`."""
    if seconds < 1:
        return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    text = f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours:.0f}h{minutes:.0f}m{text}"
    return f"{minutes:.0f}m{text}" if minutes else text


def quota_body(
    request: FakeRequest,
    kinds: Sequence[QuotaLimit],
    *,
    free: bool,
    retry_s: float,
    zero: bool = False,
) -> dict[str, Any]:
    """Return the body of a 429 with Help, QuotaFailure and RetryInfo.

    Args:
        request: The refused request.
        kinds: The limits it exceeds, in the order of the violations.
        free: Whether the quotas of the free tier are named.
        retry_s: The time in RetryInfo, in whole seconds there and exact in the message.
        zero: Whether the limits are 0; Google omits such a `quotaValue`.
    """
    violations = [_violation(request, kind, free=free, zero=zero) for kind in kinds]
    lines = "".join(_line(violation) for violation in violations)
    message = f"{_INTRO}\n{lines}Please retry in {go_duration(retry_s)}."
    link = {"description": "Learn more about Gemini API quotas", "url": _DOCS}
    details: list[dict[str, Any]] = [
        {"@type": f"{_TYPE}Help", "links": [link]},
        {"@type": f"{_TYPE}QuotaFailure", "violations": violations},
        {"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{int(retry_s)}s"},
    ]
    return error(429, "RESOURCE_EXHAUSTED", message, *details)


def _violation(request: FakeRequest, kind: QuotaLimit, *, free: bool, zero: bool) -> dict[str, Any]:
    embedding = "embed" in request.route.verb.lower() and (True, free, kind) in _QUOTA_NAMES
    metric, quota_id = _QUOTA_NAMES[embedding, free, kind]
    violation: dict[str, Any] = {
        "quotaMetric": f"{_SERVICE}/{metric}",
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": request.bucket or CURRENT_MODEL},
    }
    if not zero:
        configured = getattr(request.limits, kind)
        violation["quotaValue"] = str(
            getattr(_DEFAULT_LIMITS[free], kind) if configured is None else configured
        )
    return violation


def _line(violation: dict[str, Any]) -> str:
    limit, model = violation.get("quotaValue", "0"), violation["quotaDimensions"]["model"]
    metric = violation["quotaMetric"]
    return f"* Quota exceeded for metric: {metric}, limit: {limit}, model: {model}\n"


def _retry(request: FakeRequest, kinds: Sequence[LimitName], *, free: bool) -> float:
    if "rpd" in kinds and not free:
        return seconds_to_midnight(request.now)
    # An exhausted free day names the end of the minute, as above.
    return seconds_to_minute(request.now) if request.wait_s is None else request.wait_s


def limit_zero(request: FakeRequest) -> dict[str, Any]:
    """Return the 429 of a model that is not offered to the project: every limit is 0."""
    kinds: list[QuotaLimit] = (
        ["rpd", "rpm", "tpm", "tpd"] if request.free else ["rpd", "rpm", "tpm"]
    )
    retry_s = seconds_to_minute(request.now)
    return quota_body(request, kinds, free=request.free, retry_s=retry_s, zero=True)


def over_quota(
    *kinds: LimitName, free: bool | None = None
) -> Callable[[FakeRequest], dict[str, Any]]:
    """Return a body of 429 that names the given limits, or those the request exceeds.

    Args:
        kinds: The limits to name; if none are given, those of `request.exceeded`.
        free: The tier to name; the key's own if None.
    """

    def body(request: FakeRequest) -> dict[str, Any]:
        named = kinds or request.exceeded
        if not kinds and any(getattr(request.limits, kind) == 0 for kind in named):
            return limit_zero(request)
        tier = request.free if free is None else free
        return quota_body(request, named, free=tier, retry_s=_retry(request, named, free=tier))

    return body


# Bodies of errors about the request itself, the model, or the service --------------------------


def bad_field(_request: FakeRequest) -> dict[str, Any]:
    """Return the 400 of a field that the service does not know."""
    message = 'Invalid JSON payload received. Unknown name "unknownField": Cannot find field.'
    violation = {"description": message}
    detail = {"@type": f"{_TYPE}BadRequest", "fieldViolations": [violation]}
    return error(400, "INVALID_ARGUMENT", message, detail)


def help_only(_request: FakeRequest) -> dict[str, Any]:
    """Return the 429 that has no detail but a link."""
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more "
        "information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits."
    )
    link = {
        "description": "Learn more about Gemini API quotas",
        "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
    }
    return error(429, "RESOURCE_EXHAUSTED", message, {"@type": f"{_TYPE}Help", "links": [link]})


def model_not_found(request: FakeRequest) -> dict[str, Any]:
    """Return the 404 of a model that is not there or does not support the method."""
    route = request.route
    message = (
        f"models/{route.model or 'unknown'} is not found for API version "
        f"{route.version or 'v1beta'}, or is not supported for {route.verb or 'generateContent'}. "
        "Call ModelService.ListModels to see the list of available models and their supported "
        "methods."
    )
    return error(404, "NOT_FOUND", message)


def new_users(request: FakeRequest) -> dict[str, Any]:
    """Return the 404 of an old model in a project that never used it."""
    message = (
        f"This model models/{request.route.model or 'gemini-2.5-flash'} is no longer available to "
        "new users, use models/gemini-3.5-flash-lite."
    )
    return error(404, "NOT_FOUND", message)
