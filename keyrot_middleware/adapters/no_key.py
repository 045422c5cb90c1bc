"""Why no key could serve a call, as an error of Google's.

The body is a whole error, with a RetryInfo, and its message says the true cause of each key: often
only the text of the body reaches the program. Frameworks also sniff words in it, which is why the
message avoids some (`_SNIFFED`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from math import ceil, inf, isfinite
from typing import Any, NamedTuple

from ..core.failures import REJECTIONS
from ..core.model import OTHER_PROJECT, OTHER_TIER, Block
from ..errors import rejection_code

_SNIFFED = ("timeout", "403", "500", "502", "503")
_SHOWN = 10
"""Keys named in the message; all of them are in `reasons`."""

_TYPE = "type.googleapis.com/google.rpc."


LastRefusal = tuple[int, str | None, Any]
"""Code, status and body with which Google rejected a key."""


class NoKey(NamedTuple):
    """Why no key could serve a call."""

    code: int
    body: Any
    """An error as Google writes it, or the one with which it rejected the last key."""
    until: float
    """When the first key is expected back, epoch seconds; `inf` for never."""
    retry_in: int | None
    """Seconds until then, rounded up, at least 1; None for never."""
    reasons: dict[str, str]
    """Why each key cannot serve, and until when, by key id."""


NO_KEY = (
    "there is no Gemini API key to send this with: set GEMINI_API_KEYS or GEMINI_API_KEY, write a "
    "keys.json, or give the client an api_key other than keyrot-pool; keyrot check shows what is "
    "found"
)


NO_EXPRESS_KEY = (
    "there is no key for Vertex AI in express mode to send this with: write a keys.json that has "
    'one with "platform": "vertex_express", or give the client an api_key other than keyrot-pool'
)


def error_body(code: int, text: str) -> dict[str, Any]:
    """Return *text* as the body of an error of Google."""
    status = "UNAUTHENTICATED" if code == 401 else "FAILED_PRECONDITION"
    return {"error": {"code": code, "message": f"keyrot: {text}", "status": status}}


def why_no_key(
    pool: str,
    blocks: Mapping[str, Block],
    now: float,
    last: LastRefusal | None,
    *,
    has_untried_keys: bool = False,
) -> NoKey:
    """Return why no key could serve a call.

    Args:
        pool: The pool's name.
        blocks: Why each key cannot serve.
        now: Epoch seconds.
        last: What rejected the last key; used when all are rejected, and this process saw it.
        has_untried_keys: A limit on the attempts ended the call, so other keys may be available.
    """
    until = min((block.until for block in _returning(blocks) or blocks.values()), default=inf)
    retry_in = max(ceil(until - now), 1) if isfinite(until) else None
    reasons = {key_id: _reason(block) for key_id, block in blocks.items()}
    if not _returning(blocks) and last is not None:  # else another process may have seen it
        return NoKey(last[0], _google_body(last[2]), until, retry_in, reasons)
    which = "that was tried " if has_untried_keys else ""
    intro = f"No Gemini API key of pool {pool!r} {which}is available."
    body = _body(pool, blocks, reasons, until, now, intro)
    return NoKey(body["error"]["code"], body, until, retry_in, reasons)


def _google_body(details: Any) -> Any:
    """Return Google's body; for an async stream the SDK has it as the text of a `message`."""
    try:
        body = json.loads(details["message"])
    except (KeyError, TypeError, ValueError):
        return details
    return body if isinstance(body, dict) and "error" in body else details


def _reason(block: Block) -> str:
    if block.reason == OTHER_TIER:
        return f"{OTHER_TIER}: not one that this call may use (KEYROT_TIERS, workload)"
    if block.reason == OTHER_PROJECT:
        return f"{OTHER_PROJECT}: not the one that this call may use (project)"
    if not isfinite(block.until):
        return block.reason
    at = f"{datetime.fromtimestamp(block.until, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if block.reason in REJECTIONS:
        return f"{block.reason}, rejected; replace its value; tried again at {at}"
    return f"{block.reason} until {at}"


def _returning(blocks: Mapping[str, Block]) -> list[Block]:
    """List the blocks that end by themselves: those of keys that Google does not reject."""
    return [b for b in blocks.values() if b.reason not in REJECTIONS and isfinite(b.until)]


def _body(  # noqa: PLR0917 - one caller
    pool: str,
    blocks: Mapping[str, Block],
    reasons: Mapping[str, str],
    retry_at: float,
    now: float,
    intro: str,
) -> dict[str, Any]:
    shown = "; ".join(f"{key_id}: {why}" for key_id, why in list(reasons.items())[:_SHOWN])
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    message = (
        f"{intro} {shown}{more}."
        if shown
        else (f"Pool {pool!r} has no Gemini API key that may serve this call.")
    )
    details: list[dict[str, Any]] = []
    returning = _returning(blocks)
    why = {block.reason for block in returning}
    if returning and why <= {"rpd", "quota_day", "usd"}:
        violation = {"quotaMetric": "keyrot/requests", "quotaId": "KeyPoolRequestsPerDay"}
        if why == {"usd"}:
            violation = {"quotaMetric": "keyrot/usd", "quotaId": "KeyPoolUsdPerDay"}
        details.append({"@type": f"{_TYPE}QuotaFailure", "violations": [violation]})
    if returning:
        details.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": _delay(retry_at - now)})
    code, status = rejection_code(() if returning else [block.reason for block in blocks.values()])
    return {"error": {"code": code, "message": message, "status": status, "details": details}}


def _delay(seconds: float) -> str:
    """Round up to whole seconds, past numbers that are taken for another error's code."""
    whole = max(ceil(seconds), 1)
    while any(word in str(whole) for word in _SNIFFED):
        whole += 1
    return f"{whole}s"
