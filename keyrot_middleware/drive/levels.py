"""How the keys of a pool are, in numbers: for metrics."""

from __future__ import annotations

from ..core.model import Candidate
from ..state.base import KeyHealth, Used
from ..telemetry.levels import KeyLevel, QuotaLevel
from .health import retired
from .pool import Pool

__all__ = ["levels"]


def levels(pool: Pool) -> list[KeyLevel]:
    """Tell how each key of *pool* is; asks the state, so that a shared one does I/O."""
    keys, now = pool.roster.keys, pool.clock.time()
    known = pool.state.snapshot(keys.values())
    return [_level(keys[key_id], state, now) for key_id, state in known.items()]


def _level(key: Candidate, state: KeyHealth, now: float) -> KeyLevel:
    resting = state.cooldown_until is not None and state.cooldown_until > now
    used = tuple(quota for used in state.used for quota in _quotas(key, used))
    return KeyLevel(key.key_id, retired(state), resting, used)


def _quotas(key: Candidate, used: Used) -> list[QuotaLevel]:
    """Lay what was used beside each limit that is known; what Google told beats the keys file."""
    have = (used.requests_minute, used.tokens_minute, used.requests_day)
    told = zip(("rpm", "tpm", "rpd"), have, used.limits[:3], key.limits[:3], strict=True)
    found = []
    for name, count, learned, configured in told:
        limit = configured if learned is None else learned
        if limit is not None:
            found.append(QuotaLevel(used.bucket, name, count / limit if limit > 0 else 1.0))
    return found
