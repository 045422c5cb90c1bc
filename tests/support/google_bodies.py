"""Error bodies as Google sent them (docs/gemini-api.md), keys and project numbers replaced."""

from typing import Any

RPC = "type.googleapis.com/google.rpc."
METRIC = "generativelanguage.googleapis.com/"
INTRO = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    "information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. To "
    "monitor your current usage, head to: https://ai.dev/rate-limit. "
)
HELP = {"@type": f"{RPC}Help", "links": [{"description": "Learn more", "url": "https://ai.google"}]}


def rest(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    """Write REST's shape; without details there is no `details` at all."""
    error: dict[str, Any] = {"code": code, "message": message, "status": status}
    return {"error": {**error, "details": list(details)} if details else error}


def interactions(code: str, message: str) -> dict[str, Any]:
    """Write the shape of the Interactions API: a word for a code, no status, no details."""
    return {"error": {"message": message, "code": code}}


def reason(word: str, **metadata: str) -> dict[str, Any]:
    return {
        "@type": f"{RPC}ErrorInfo",
        "reason": word,
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com", **metadata},
    }


def localized(message: str) -> dict[str, Any]:
    return {"@type": f"{RPC}LocalizedMessage", "locale": "en-US", "message": message}


def delay(text: str) -> dict[str, Any]:
    return {"@type": f"{RPC}RetryInfo", "retryDelay": text}


def violation(
    quota_id: str, value: str | None, metric: str = "m", model: str | None = "gemini-2.5-flash"
) -> dict[str, Any]:
    """Write one violation; without a value its limit is 0, without a model it is a region's."""
    dimensions = {"location": "global"} | ({"model": model} if model else {})
    written = {"quotaMetric": METRIC + metric, "quotaId": quota_id, "quotaDimensions": dimensions}
    return written if value is None else {**written, "quotaValue": value}


def quota_failure(*violations: dict[str, Any]) -> dict[str, Any]:
    return {"@type": f"{RPC}QuotaFailure", "violations": list(violations)}


def over(message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return rest(429, "RESOURCE_EXHAUSTED", message, *details)


def bad(message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return rest(400, "INVALID_ARGUMENT", message, *details)


def denied(message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return rest(403, "PERMISSION_DENIED", message, *details)


def _line(metric: str, limit: str, model: str) -> str:
    return f"\n* Quota exceeded for metric: {METRIC}{metric}, limit: {limit}, model: {model}"


FREE_RPD = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
FREE_RPM = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
FREE_TPM = "GenerateContentInputTokensPerModelPerMinute-FreeTier"
FREE_TPD = "GenerateContentInputTokensPerModelPerDay-FreeTier"
PAID_TPM = "GenerateContentPaidTierInputTokensPerModelPerMinute"

_PAID = "generate_content_paid_tier_input_token_count"
_FREE = "generate_content_free_tier_requests"
_FREE_TOKENS = "generate_content_free_tier_input_token_count"

PAID_MINUTE = over(
    f"{INTRO}{_line(_PAID, '1000000', 'gemini-2.5-flash')}\nPlease retry in 48.939935699s.",
    HELP,
    quota_failure(violation(PAID_TPM, "1000000", _PAID)),
    delay("48s"),
)
FREE_MINUTE = over(
    f"{INTRO}{_line(_FREE, '5', 'gemini-2.5-flash')}\nPlease retry in 25.08253422s.",
    quota_failure(violation(FREE_RPM, "5", _FREE)),
    HELP,
    delay("25s"),
)
FREE_DAY = over(
    f"{INTRO}{_line(_FREE, '20', 'gemini-2.5-flash')}\nPlease retry in 2.029772756s.",
    HELP,
    quota_failure(violation(FREE_RPD, "20", _FREE)),
    delay("2s"),
)
PAID_DAY = over(
    f"{INTRO}{_line('generate_requests_per_model_per_day', '250', 'gemini-3.1-pro')}"
    "\nPlease retry in 4h59m27.724879759s.",
    quota_failure(
        violation(
            "GenerateRequestsPerDayPerProjectPerModel",
            "250",
            "generate_requests_per_model_per_day",
            "gemini-3.1-pro",
        )
    ),
    delay("17967s"),
)
LIMIT_ZERO = over(
    f"{INTRO}{_line(_FREE, '0', 'gemini-2.0-flash') * 2}"
    f"{_line(_FREE_TOKENS, '0', 'gemini-2.0-flash') * 2}\nPlease retry in 6.170646457s.",
    HELP,
    quota_failure(
        *(violation(q, None, _FREE, "gemini-2.0-flash") for q in (FREE_RPD, FREE_RPM)),
        *(violation(q, None, _FREE_TOKENS, "gemini-2.0-flash") for q in (FREE_TPM, FREE_TPD)),
    ),
    delay("6s"),
)
OLD_FORM = over(
    "Quota exceeded for quota metric 'Generate Content API requests per minute' and limit "
    "'GenerateContent request limit per minute for a region' of service "
    "'generativelanguage.googleapis.com' for consumer 'project_number:1'.",
    reason(
        "RATE_LIMIT_EXCEEDED",
        quota_location="us-west4",
        quota_limit_value="60",
        quota_limit="GenerateContentRequestsPerMinutePerProjectPerRegion",
        consumer="projects/1",
    ),
)
CACHE = over(
    "TotalCachedContentStorageTokensPerModelFreeTier limit exceeded for model gemini-2.5-flash: "
    "limit=0, requested=116563"
)
EXHAUSTED = over("Resource has been exhausted (e.g. check quota).")
NEW_USERS = "This model models/gemini-2.5-flash is no longer available to new users, use X."
SPEND_RATE = (
    "You exceeded your spend-based rate limit. Your spending rate has exceeded the allowed limit "
    "for your account's billing history and tier."
)
PREPAY = (
    "Your prepayment credits are depleted. Please go to AI Studio at    "
    "https://ai.studio/projects to manage your project and billing. Learn more at "
    "https://ai.google.dev/gemini-api/docs/billing#prepay."
)
NOT_VALID = "API key not valid. Please pass a valid API key."
INVALID = bad(NOT_VALID, reason("API_KEY_INVALID"), localized(NOT_VALID))
LEAKED = denied("Your API key was reported as leaked. Please use another API key.")
_SUSPENDED = "Permission denied: Consumer 'api_key:<KEY>' has been suspended."
SUSPENDED = denied(_SUSPENDED, reason("CONSUMER_SUSPENDED", containerInfo="api_key:<KEY>"))
SUSPENDED_BARE = denied(_SUSPENDED)
DISABLED = denied(
    "Generative Language API has not been used in project 305423101018 before or it is disabled. "
    "Enable it by visiting https://console.developers.google.com/ then retry.",
    reason("SERVICE_DISABLED", consumer="projects/305423101018"),
)
METHOD = denied(
    "Requests to this API generativelanguage.googleapis.com method "
    "google.ai.generativelanguage.v1beta.GenerativeService.StreamGenerateContent are blocked.",
    reason("API_KEY_SERVICE_BLOCKED", methodName="StreamGenerateContent"),
)
IP = denied(
    "The provided API key has an IP address restriction. The originating IP address of the call "
    "(192.0.2.1) violates this restriction.",
    reason("API_KEY_IP_ADDRESS_BLOCKED", callerIp="192.0.2.1"),
)
TOKEN_TYPE = rest(
    401,
    "UNAUTHENTICATED",
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie "
    "or other valid authentication credential.",
    reason("ACCESS_TOKEN_TYPE_UNSUPPORTED", method="GenerateContent"),
)
NO_MODEL = rest(
    404,
    "NOT_FOUND",
    "models/gemini-9 is not found for API version v1beta, or is not supported for "
    "generateContent. Call ModelService.ListModels to see the list of available models and their "
    "supported methods.",
)
UNKNOWN_FIELD = bad(
    'Invalid JSON payload received. Unknown name "foo": Cannot find field.',
    {"@type": f"{RPC}BadRequest", "fieldViolations": [{"description": 'Unknown name "foo"'}]},
)
OVERLOADED = rest(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")
INTERNAL = rest(500, "INTERNAL", "An internal error has occurred. Please retry or report it.")
DEADLINE = "Deadline expired before operation could complete."
