"""Every way in which the Gemini API was seen to answer, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from keyrot_middleware.testing import key_errors, quota_errors, request_errors
from keyrot_middleware.testing.key_errors import api_key_invalid, plain
from keyrot_middleware.testing.scripted import JSON, Scripted

__all__ = ["Reply"]

_EXHAUSTED = "RESOURCE_EXHAUSTED"
_SPEND = "https://ai.google.dev/gemini-api/docs/billing"
_PREPAY = (
    "Your prepayment credits are depleted. Please go to AI Studio at    "
    "https://ai.studio/projects to manage your project and billing. Learn more at "
    f"{_SPEND}#prepay."
)


def _denied(message: str) -> Scripted:
    return Scripted(403, plain(403, "PERMISSION_DENIED", message))


def _bad(message: str) -> Scripted:
    return Scripted(400, plain(400, "INVALID_ARGUMENT", message), charged=True)


def _exhausted(message: str, code: int = 429) -> Scripted:
    return Scripted(code, plain(code, _EXHAUSTED, message))


class Reply:
    """Names of replies for `FakeGemini.script()`; each has its body from GEMINI.md A1 to A12.

    Any member can be bent: `Reply.OVERLOADED.in_stream(after=2)`, `Reply.OK.delayed(0.5)`,
    `Reply.KEY_INVALID.list_wrapped()`, `Reply.EXHAUSTED.as_interactions()`.
    """

    OK: Final = Scripted()
    CONTINUATION: Final = Scripted(continues=True)

    # 429 with QuotaFailure: the tier is the key's own, or the one in the name.
    QUOTA: Final = Scripted(429, quota_errors.over_quota())
    QUOTA_MINUTE: Final = Scripted(429, quota_errors.over_quota("rpm"))
    QUOTA_MINUTE_FREE: Final = Scripted(429, quota_errors.over_quota("rpm", free=True))
    QUOTA_MINUTE_PAID: Final = Scripted(429, quota_errors.over_quota("rpm", free=False))
    QUOTA_TOKENS: Final = Scripted(429, quota_errors.over_quota("tpm"))
    QUOTA_TOKENS_FREE: Final = Scripted(429, quota_errors.over_quota("tpm", free=True))
    QUOTA_TOKENS_PAID: Final = Scripted(429, quota_errors.over_quota("tpm", free=False))
    QUOTA_DAY: Final = Scripted(429, quota_errors.over_quota("rpd"))
    QUOTA_DAY_FREE: Final = Scripted(429, quota_errors.over_quota("rpd", free=True))
    QUOTA_DAY_PAID: Final = Scripted(429, quota_errors.over_quota("rpd", free=False))
    LIMIT_ZERO: Final = Scripted(429, quota_errors.limit_zero)

    # 429 in its other forms, and 402.
    EXHAUSTED: Final = _exhausted("Resource has been exhausted (e.g. check quota).")
    CAPACITY: Final = _exhausted(
        "Resource exhausted. Please try again later. Please refer to https://cloud.google.com/"
        "vertex-ai/generative-ai/docs/error-code-429 for more details."
    )
    HELP_ONLY: Final = Scripted(429, request_errors.help_only)
    RATE_LIMIT_EXCEEDED: Final = Scripted(429, key_errors.rate_limit_exceeded)
    CACHE_STORAGE: Final = Scripted(429, key_errors.cache_storage)
    SPEND_CAP_PROJECT: Final = _exhausted(
        "Your project has exceeded its monthly spending cap. Please go to AI Studio at "
        "https://ai.studio/spend to manage your project spend cap. Learn more at "
        f"{_SPEND}#project-spend-caps. "
    )
    SPEND_CAP_BILLING: Final = _exhausted(
        "Your billing account has exceeded its monthly spending cap. Please go to AI Studio at "
        "https://ai.studio/billing to manage your billing. Learn more at "
        f"{_SPEND}#tier-spend-caps. "
    )
    PREPAY: Final = dataclasses.replace(_exhausted(_PREPAY, 402), spares_reads=True)
    PREPAY_429: Final = dataclasses.replace(_exhausted(_PREPAY), spares_reads=True)

    # The key, its project, its account.
    KEY_INVALID: Final = Scripted(
        400, api_key_invalid("API key not valid. Please pass a valid API key.")
    )
    KEY_EXPIRED: Final = Scripted(
        400, api_key_invalid("API key expired. Please renew the API key.")
    )
    KEY_NOT_FOUND: Final = Scripted(
        400, api_key_invalid("API Key not found. Please pass a valid API key.")
    )
    KEY_INVALID_LIST: Final = KEY_INVALID.list_wrapped()
    TOKEN_UNSUPPORTED: Final = Scripted(401, key_errors.token_unsupported)
    MULTIPLE_KEYS: Final = _bad(
        "Multiple authentication credentials received. Please pass only one."
    )
    UNREGISTERED: Final = _denied(
        "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API consumer identity to call this API."
    )
    KEY_LEAKED: Final = _denied("Your API key was reported as leaked. Please use another API key.")
    KEY_SUSPENDED: Final = Scripted(403, key_errors.suspended)
    SERVICE_DISABLED: Final = Scripted(403, key_errors.service_disabled)
    SERVICE_BLOCKED: Final = Scripted(403, key_errors.method_blocked)
    REFERRER_BLOCKED: Final = Scripted(403, key_errors.referrer_blocked)
    IP_BLOCKED: Final = Scripted(403, key_errors.ip_blocked)
    PROJECT_DENIED: Final = dataclasses.replace(
        _denied("Your project has been denied access. Please contact support."), spares_reads=True
    )
    CALLER_DENIED: Final = _denied("The caller does not have permission")
    FILE_DENIED: Final = Scripted(403, key_errors.file_denied)
    CACHE_DENIED: Final = _denied("CachedContent not found (or permission denied)")
    LOCATION: Final = Scripted(
        400,
        plain(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
    )
    LOCATION_NO_BILLING: Final = Scripted(
        400,
        plain(
            400,
            "FAILED_PRECONDITION",
            "User location is not supported for the API use without a billing account linked.",
        ),
    )

    # The request and the model.
    BAD_REQUEST: Final = _bad("Provided image is not valid.")
    BAD_FIELD: Final = Scripted(400, request_errors.bad_field, charged=True)
    TOO_MANY_TOKENS: Final = _bad(
        "The input token count exceeds the maximum number of tokens allowed (1048576)."
    )
    THOUGHT_SIGNATURE: Final = _bad("Corrupted thought signature.")
    THOUGHT_SIGNATURE_INVALID: Final = _bad("Thought signature is not valid")
    THOUGHT_SIGNATURE_MISSING: Final = _bad(
        "Function call is missing a thought_signature in functionCall parts."
    )
    MODEL_NOT_FOUND: Final = Scripted(404, request_errors.model_not_found)
    NEW_USERS: Final = Scripted(404, request_errors.new_users)
    NOT_FOUND_HTML: Final = Scripted(404, lambda _asked: b"", "text/html; charset=UTF-8")

    # The service.
    CANCELLED: Final = Scripted(499, plain(499, "CANCELLED", "The operation was cancelled."))
    INTERNAL: Final = Scripted(
        500,
        plain(
            500,
            "INTERNAL",
            "An internal error has occurred. Please retry or report in "
            "https://developers.generativeai.google/guide/troubleshooting",
        ),
    )
    OVERLOADED: Final = Scripted(
        503, plain(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")
    )
    HIGH_DEMAND: Final = Scripted(
        503,
        plain(
            503,
            "UNAVAILABLE",
            "This model is currently experiencing high demand. Spikes in demand are usually "
            "temporary. Please try again later.",
        ),
    )
    DEADLINE_503: Final = Scripted(
        503, plain(503, "UNAVAILABLE", "Deadline expired before operation could complete.")
    )
    DEADLINE: Final = Scripted(
        504, plain(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete.")
    )
    BAD_GATEWAY: Final = Scripted(
        502,
        lambda _asked: "<html><title>Error 502 (Server Error)!!1</title></html>",
        "text/html; charset=UTF-8",
    )

    # The transport.
    RESET: Final = Scripted(0, ending="reset")
    CLOSE: Final = Scripted(0, ending="close")
    HANG: Final = Scripted(0, ending="close", delay_s=60.0)
    SLOW: Final = Scripted(gap_s=0.05, delay_s=0.05)

    # Inside a stream, after its first chunk; a unary request gets the HTTP error, or half a body.
    STREAM_OVERLOADED: Final = OVERLOADED.in_stream(1)
    STREAM_EXHAUSTED: Final = _exhausted("Resource exhausted.").in_stream(1)
    STREAM_DROPPED: Final = Scripted(after=1, ending="close")
    STREAM_TRUNCATED: Final = Scripted(after=1)

    @staticmethod
    def custom(
        status: int,
        body: object | Callable[[Any], object] = b"",
        *,
        headers: dict[str, str] | None = None,
        content_type: str = JSON,
    ) -> Scripted:
        """Return a reply of one's own.

        Args:
            status: The HTTP status, 100 to 599.
            body: A JSON value, text, bytes, or a function that makes one of an `Asked`.
            headers: More headers.
            content_type: The header of that name.
        """
        make = body if callable(body) else lambda _asked: body
        return Scripted(status, make, content_type, tuple((headers or {}).items()))

    @staticmethod
    def hang(seconds: float) -> Scripted:
        """Return a reply that says nothing for `seconds`, then closes the connection."""
        return dataclasses.replace(Reply.HANG, delay_s=seconds)

    @staticmethod
    def slow(seconds: float) -> Scripted:
        """Return the ordinary answer, `seconds` before every chunk of it."""
        return dataclasses.replace(Reply.SLOW, gap_s=seconds, delay_s=seconds)

    @staticmethod
    def dropped(after: int) -> Scripted:
        """Return a stream whose connection breaks after so many chunks."""
        return dataclasses.replace(Reply.STREAM_DROPPED, after=after)

    @staticmethod
    def truncated(after: int) -> Scripted:
        """Return a stream that ends properly after so many chunks, without its last one."""
        return dataclasses.replace(Reply.STREAM_TRUNCATED, after=after)

    @staticmethod
    def all() -> dict[str, Scripted]:
        """Return every member by its name."""
        return {name: value for name, value in vars(Reply).items() if isinstance(value, Scripted)}


for _name, _member in Reply.all().items():
    setattr(Reply, _name, dataclasses.replace(_member, name=_name))
