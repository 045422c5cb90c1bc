"""Bodies of errors about a key, its project or its billing account.

Sources: GEMINI.md A3 to A7. Some of them echo the key that was sent, as Google's do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keyrot_middleware.testing.asked import Asked

__all__ = [
    "api_key_invalid",
    "cache_storage",
    "error",
    "file_denied",
    "ip_blocked",
    "method_blocked",
    "plain",
    "rate_limit_exceeded",
    "referrer_blocked",
    "service_disabled",
    "suspended",
    "token_unsupported",
]

_TYPE = "type.googleapis.com/google.rpc."
_SERVICE = "generativelanguage.googleapis.com"
_CONSOLE = "https://console.developers.google.com/apis/api/generativelanguage.googleapis.com"

Body = Callable[[Asked], Any]


def error(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    """Write Google's error object; without details there is no `details` at all."""
    inner: dict[str, Any] = {"code": code, "message": message, "status": status}
    if details:
        inner["details"] = list(details)
    return {"error": inner}


def plain(code: int, status: str, message: str) -> Body:
    """Return a body without details."""
    return lambda _asked: error(code, status, message)


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
    return lambda _asked: body


def token_unsupported(asked: Asked) -> dict[str, Any]:
    """Write the 401 of an auth key that was used like an OAuth token."""
    message = (
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login "
        "cookie or other valid authentication credential. See "
        "https://developers.google.com/identity/sign-in/web/devconsole-project."
    )
    info = {
        "@type": f"{_TYPE}ErrorInfo",
        "reason": "ACCESS_TOKEN_TYPE_UNSUPPORTED",
        "metadata": {"method": asked.route.rpc, "service": _SERVICE},
    }
    return error(401, "UNAUTHENTICATED", message, info)


def suspended(asked: Asked) -> dict[str, Any]:
    """Write the 403 of a suspended consumer, which echoes the key three times."""
    echo = f"api_key:{asked.value}"
    message = f"Permission denied: Consumer '{echo}' has been suspended."
    info = _info(
        "CONSUMER_SUSPENDED", consumer=asked.consumer, service=_SERVICE, containerInfo=echo
    )
    return error(403, "PERMISSION_DENIED", message, info, _localized(message))


def service_disabled(asked: Asked) -> dict[str, Any]:
    """Write the 403 of a project in which the API is not enabled."""
    number = asked.consumer.removeprefix("projects/")
    url = f"{_CONSOLE}/overview?project={number}"
    message = (
        f"Generative Language API has not been used in project {number} before or it is disabled. "
        f"Enable it by visiting {url} then retry. If you enabled this API recently, wait a few "
        "minutes for the action to propagate to our systems and retry."
    )
    info = _info(
        "SERVICE_DISABLED",
        containerInfo=number,
        consumer=asked.consumer,
        activationUrl=url,
        service=_SERVICE,
        serviceTitle="Generative Language API",
    )
    return error(403, "PERMISSION_DENIED", message, info, _localized(message))


def method_blocked(asked: Asked) -> dict[str, Any]:
    """Write the 403 of a key that is restricted to other methods."""
    message = f"Requests to this API {_SERVICE} method {asked.route.rpc} are blocked."
    info = _info(
        "API_KEY_SERVICE_BLOCKED",
        consumer=asked.consumer,
        service=_SERVICE,
        apiName=_SERVICE,
        methodName=asked.route.rpc,
    )
    return error(403, "PERMISSION_DENIED", message, info, _localized(message))


def referrer_blocked(asked: Asked) -> dict[str, Any]:
    """Write the 403 of a key that is restricted to the pages of a site."""
    message = "Requests from referer <empty> are blocked."
    info = _info(
        "API_KEY_HTTP_REFERRER_BLOCKED",
        consumer=asked.consumer,
        service=_SERVICE,
        httpReferrer="<empty>",
    )
    return error(403, "PERMISSION_DENIED", message, info, _localized(message))


def ip_blocked(asked: Asked) -> dict[str, Any]:
    """Write the 403 of a key that is restricted to other addresses."""
    message = (
        "The provided API key has an IP address restriction. The originating IP address of the "
        "call (127.0.0.1) violates this restriction."
    )
    info = _info(
        "API_KEY_IP_ADDRESS_BLOCKED",
        consumer=asked.consumer,
        service=_SERVICE,
        callerIp="127.0.0.1",
    )
    return error(403, "PERMISSION_DENIED", message, info, _localized(message))


def file_denied(asked: Asked) -> dict[str, Any]:
    """Write the 403 of a file that is another project's, or gone; one text for both."""
    file_id = (asked.resource or asked.route.name or "files/xxxx").partition("/")[2]
    message = f"You do not have permission to access the File {file_id} or it may not exist."
    return error(403, "PERMISSION_DENIED", message)


def rate_limit_exceeded(asked: Asked) -> dict[str, Any]:
    """Write the older 429, which has an ErrorInfo and no QuotaFailure."""
    metric, limit = "Generate Content API requests per minute", "GenerateContent request limit"
    message = (
        f"Quota exceeded for quota metric '{metric}' and limit '{limit} per minute for a region' "
        f"of service '{_SERVICE}' for consumer 'project_number:{asked.consumer[9:]}'."
    )
    info = _info(
        "RATE_LIMIT_EXCEEDED",
        service=_SERVICE,
        quota_location="us-west4",
        quota_limit_value="0",
        quota_limit="GenerateContentRequestsPerMinutePerProjectPerRegion",
        quota_metric=f"{_SERVICE}/generate_content_requests",
        consumer=asked.consumer,
    )
    return error(429, "RESOURCE_EXHAUSTED", message, info)


def cache_storage(asked: Asked) -> dict[str, Any]:
    """Write the 429 of explicit caching where the tier has none of it."""
    message = (
        "TotalCachedContentStorageTokensPerModelFreeTier limit exceeded for model "
        f"{asked.bucket or 'gemini-2.5-flash'}: limit=0, requested={asked.tokens}"
    )
    return error(429, "RESOURCE_EXHAUSTED", message)
