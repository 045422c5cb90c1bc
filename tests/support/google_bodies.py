"""Error bodies as Google sent them (docs/gemini-api.md), keys and project numbers replaced.

Each row of failures.jsonl has a body (what it is, its HTTP code, if any) and the verdict on it: its
class and code, and what differs from "raise, penalize no key". docs/failures.md has the sources of
the verdicts, docs/gemini-api.md#errors of the bodies.
"""

import json
from pathlib import Path
from typing import Any

from keyrot_middleware.core.model import CallInfo

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


def delay(text: str) -> dict[str, Any]:
    return {"@type": f"{RPC}RetryInfo", "retryDelay": text}


def violation(
    quota_id: str, value: str | None, metric: str = "m", model: str | None = "gemini-3.1-flash-lite"
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


FREE_RPD = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
FREE_RPM = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
FREE_TPM = "GenerateContentInputTokensPerModelPerMinute-FreeTier"
FREE_TPD = "GenerateContentInputTokensPerModelPerDay-FreeTier"
PAID_TPM = "GenerateContentPaidTierInputTokensPerModelPerMinute"

_FILE = Path(__file__).parents[1] / "providers" / "gemini" / "failures.jsonl"
FAILURES = [json.loads(line) for line in _FILE.read_text("utf-8").splitlines()]
BODIES: dict[str, Any] = {row["what"]: row["body"] for row in FAILURES}
NOW = 1_795_551_320.0  # 2026-11-24 20:15:20 UTC
CALL = CallInfo("gemini-3.1-flash-lite", "generateContent", tokens=100)

FREE_MINUTE, PAID_DAY, LIMIT_ZERO = (BODIES[w] for w in ("free minute", "paid day", "limit 0"))
INVALID, OLD_FORM, EXHAUSTED = (BODIES[w] for w in ("invalid", "minute, old form", "exhausted"))
NOT_VALID, PREPAY = INVALID["error"]["message"], BODIES["prepay"]["error"]["message"]
