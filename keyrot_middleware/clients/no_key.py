"""Why no key could serve a call, in words."""

from __future__ import annotations

import json
from math import ceil, inf, isfinite
from typing import Any, NamedTuple

from ..core.failures import FOR_GOOD, MODEL_REFUSALS, REJECTIONS
from ..core.flow import Exhausted
from ..core.judgement import describe_block, judge
from ..core.model import CallInfo
from ..providers.base import Provider
from ..runtime.pool import Pool

_DAYS = {"rpd": "rpd", "quota_day": "rpd", "usd": "usd", "usd_month": "usd"}
"""How the body names a block of a day or longer."""
_SHOWN = 10
"""Keys named in the message; all of them are in `reasons`."""


class NoKey(NamedTuple):
    """Why no key could serve a call."""

    code: int
    body: Any
    """An error as the provider writes it, or the one with which it rejected the last key."""
    until: float
    """When the first key is expected back, epoch seconds; `inf` for never."""
    retry_in: int | None
    """Seconds until then, rounded up, at least 1; None for never."""
    reasons: dict[str, str]
    """Why each key cannot serve, and until when, by key id."""


def why_no_key(pool: Pool, exhausted: Exhausted, provider: Provider) -> NoKey:
    """Return why no key of a pool could serve a call, in words and as an error of its provider."""
    blocks, now = exhausted.unavailable.blocks, exhausted.unavailable.at
    first = judge(CallInfo("", ""), (), blocks, now=now, rejected={}).block
    until = inf if first is None else first.until
    retry_in = max(ceil(until - now), 1) if isfinite(until) else None
    said, model = pool.last_sentence, exhausted.model
    reasons = {
        key_id: describe_block(block, said(key_id, block.reason, model))
        for key_id, block in blocks.items()
    }
    ending = [b for b in blocks.values() if b.reason not in FOR_GOOD and isfinite(b.until)]
    if not blocks and provider.platform not in pool.selector.platforms:
        only = f" of KEYROT_TIERS ({', '.join(sorted(pool.tiers))})" if pool.tiers else ""
        lacks = f"pool {pool.name!r} has no {provider.title} API key{only}"
        body = provider.error_body(401, f"keyrot: {lacks}; {provider.no_key}")
        return NoKey(401, body, until, retry_in, reasons)
    if not ending:
        ids = [k for k, b in blocks.items() if b.reason in REJECTIONS]
        is_model = any(block.reason in MODEL_REFUSALS for block in blocks.values())
        last = pool.last_refusal(ids, exhausted.model if is_model else "")
        if last is not None:  # else another process may have seen it
            return NoKey(last[0], _whole_body(last[2]), until, retry_in, reasons)
    text = f"Pool {pool.name!r} has no {provider.title} API key that may serve this call."
    if reasons:
        which = "that was tried " if exhausted.has_untried_keys else ""
        shown = "; ".join(f"{key_id}: {why}" for key_id, why in list(reasons.items())[:_SHOWN])
        more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        text = f"No {provider.title} API key of pool {pool.name!r} {which}is available. "
        text += f"{shown}{more}."
    code, reason = 429, ""
    if not ending:
        code, reason = provider.rejection_code(block.reason for block in blocks.values())
    elif first is not None and not first.note:  # a share of a day is not the provider's
        reason = _DAYS.get(first.reason, "")
    wait_s = until - now if ending else None
    body = provider.error_body(code, text, reason=reason, retry_in_s=wait_s)
    return NoKey(code, body, until, retry_in, reasons)


def _whole_body(details: Any) -> Any:
    """Return the body; for an async stream the SDK has it as the text of a `message`."""
    try:
        body = json.loads(details["message"])
    except (KeyError, TypeError, ValueError):
        return details
    return body if isinstance(body, dict) and "error" in body else details
