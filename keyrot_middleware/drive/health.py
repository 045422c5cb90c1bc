"""How the keys of a pool are, in words and ISO times: for `status()` and `get_health_status()`."""

from __future__ import annotations

from math import isfinite
from typing import Any

from ..core.model import Candidate
from ..core.text import utc
from ..state.base import KeyHealth
from .pool import Pool

__all__ = ["health", "iso", "retired"]


def health(pool: Pool) -> dict[str, dict[str, Any]]:
    """Tell how each key of *pool* is, by its id.

    Returns:
        Per key `model, project, active, last_used, success_count, error_count, in_cooldown,
        cooldown_until, disabled_reason, limits, used`; times are ISO 8601 in UTC or None. `limits`
        are the key's own; `used` says per model bucket what its project has used in the minute
        and the day, with the limits learned from Google.
    """
    now = pool.clock.time()
    keys = pool.roster.keys
    known = pool.state.snapshot(keys.values())
    return {key_id: _describe(keys[key_id], state, now) for key_id, state in known.items()}


def _describe(key: Candidate, state: Any, now: float) -> dict[str, Any]:
    until = state.cooldown_until
    out = retired(state)
    return {
        "model": key.model,
        "project": key.project,
        "active": not out,
        "last_used": iso(state.last_used),
        "success_count": state.success_count,
        "error_count": state.error_count,
        "in_cooldown": until is not None and until > now,
        "cooldown_until": iso(until),
        "disabled_reason": state.cooldown_reason if out else None,
        "limits": key.limits._asdict(),
        "used": {
            used.bucket: {
                "requests_minute": used.requests_minute,
                "tokens_minute": used.tokens_minute,
                "requests_day": used.requests_day,
                "learned": {k: v for k, v in used.limits._asdict().items() if v is not None},
            }
            for used in state.used
        },
    }


def retired(state: KeyHealth) -> bool:
    """Tell whether a key is out of service for every call until it is replaced."""
    until, whole = state.cooldown_until, state.cooldown_scope in ("key", "project", "billing")
    return until is not None and not isfinite(until) and whole


def iso(moment: float | None) -> str | None:
    """Write epoch seconds as ISO 8601 in UTC; None for never, and for what has no end."""
    if moment is None or not isfinite(moment):
        return None
    return utc(moment).isoformat().replace("+00:00", "Z")
