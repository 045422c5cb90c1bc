"""Bodies of 429: which quota was overrun, and what Google says about when to come back.

Sources: GEMINI.md A1. The daily one of the free tier names the next minute though the day is spent.
Names that no public recording shows are made after their neighbours: all paid requests a minute,
and embeddings other than the free tier's requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from keyrot_middleware.testing.asked import Asked
from keyrot_middleware.testing.quota import Kind, seconds_to_midnight, seconds_to_minute

__all__ = ["go_duration", "limit_zero", "over_quota", "quota_body"]

Known = Literal["rpm", "tpm", "rpd", "tpd"]
_DOMAIN = "generativelanguage.googleapis.com"
_TYPE = "type.googleapis.com/google.rpc."
_DOCS = "https://ai.google.dev/gemini-api/docs/rate-limits"
_INTRO = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    f"information on this error, head to: {_DOCS}. To monitor your current usage, head to: "
    "https://ai.dev/rate-limit. "
)
# (embedding?, free tier?, limit) -> (metric, quota id).
_NAMES: dict[tuple[bool, bool, Known], tuple[str, str]] = {
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
# What a scripted error names where the project has no limit of that kind (GEMINI.md B3).
_USUAL: dict[bool, dict[Known, int]] = {
    True: {"rpm": 5, "tpm": 250_000, "rpd": 20},
    False: {"rpm": 1_000, "tpm": 1_000_000, "rpd": 10_000},
}


def go_duration(seconds: float) -> str:
    """Write a time as Google's messages do: `4h59m27.7s`, `48.939935699s`, `900ms`."""
    if seconds < 1:
        return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    text = f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours:.0f}h{minutes:.0f}m{text}"
    return f"{minutes:.0f}m{text}" if minutes else text


def quota_body(
    asked: Asked, kinds: Sequence[Known], *, free: bool, retry_s: float, zero: bool = False
) -> dict[str, Any]:
    """Write the body of a 429 with Help, QuotaFailure and RetryInfo.

    Args:
        asked: The request that is refused.
        kinds: The limits it overran, in the order of the violations.
        free: Whether the quotas of the free tier are named.
        retry_s: What RetryInfo says; whole seconds there, all of it in the message.
        zero: Whether the limits are 0, whose `quotaValue` Google leaves out.
    """
    violations = [_violation(asked, kind, free=free, zero=zero) for kind in kinds]
    lines = "".join(_line(violation) for violation in violations)
    message = f"{_INTRO}\n{lines}Please retry in {go_duration(retry_s)}."
    link = {"description": "Learn more about Gemini API quotas", "url": _DOCS}
    details = [
        {"@type": f"{_TYPE}Help", "links": [link]},
        {"@type": f"{_TYPE}QuotaFailure", "violations": violations},
        {"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{int(retry_s)}s"},
    ]
    error = {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}
    return {"error": error}


def _violation(asked: Asked, kind: Known, *, free: bool, zero: bool) -> dict[str, Any]:
    embedding = "embed" in asked.route.verb.lower() and (True, free, kind) in _NAMES
    metric, quota_id = _NAMES[embedding, free, kind]
    violation: dict[str, Any] = {
        "quotaMetric": f"{_DOMAIN}/{metric}",
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": asked.bucket or "gemini-2.5-flash"},
    }
    if not zero:
        own = getattr(asked.limits, kind)
        violation["quotaValue"] = str(_USUAL[free][kind] if own is None else own)
    return violation


def _line(violation: dict[str, Any]) -> str:
    limit, model = violation.get("quotaValue", "0"), violation["quotaDimensions"]["model"]
    metric = violation["quotaMetric"]
    return f"* Quota exceeded for metric: {metric}, limit: {limit}, model: {model}\n"


def _retry(asked: Asked, kinds: Sequence[Kind], *, free: bool) -> float:
    if "rpd" in kinds and not free:
        return seconds_to_midnight(asked.now)
    # A free day that is spent names the minute's end all the same (GEMINI.md A1).
    return seconds_to_minute(asked.now) if asked.wait_s is None else asked.wait_s


def limit_zero(asked: Asked) -> dict[str, Any]:
    """Write the 429 of a model that is not offered to the project: every limit is 0."""
    kinds: list[Known] = ["rpd", "rpm", "tpm", "tpd"] if asked.free else ["rpd", "rpm", "tpm"]
    retry_s = seconds_to_minute(asked.now)
    return quota_body(asked, kinds, free=asked.free, retry_s=retry_s, zero=True)


def over_quota(*kinds: Kind, free: bool | None = None) -> Callable[[Asked], dict[str, Any]]:
    """Return a body of 429 that names the given limits, or those that the request overran.

    Args:
        kinds: The limits to name; if none are given, `asked.broken` says which.
        free: The tier to name; the key's own if None.
    """

    def body(asked: Asked) -> dict[str, Any]:
        named = kinds or asked.broken
        if not kinds and any(getattr(asked.limits, kind) == 0 for kind in named):
            return limit_zero(asked)
        tier = asked.free if free is None else free
        return quota_body(asked, named, free=tier, retry_s=_retry(asked, named, free=tier))

    return body
