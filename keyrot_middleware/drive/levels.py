"""How the keys of a pool are, in numbers: for metrics."""

from __future__ import annotations

from ..core.model import Candidate
from ..state.base import Used
from ..telemetry.levels import KeyLevel, QuotaLevel
from .health import pool_views
from .pool import Pool

__all__ = ["levels"]


def levels(pool: Pool) -> list[KeyLevel]:
    """Report how each key of *pool* is; reads the state, so that a shared one does I/O."""
    found = []
    for key, seen in pool_views(pool):
        used = tuple(quota for used in seen.known.used for quota in _quotas(key, used))
        found.append(KeyLevel(key.key_id, seen.overall.state, used))
    return found


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
