"""What a state in memory tells of its keys, in one pass over what it knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..core.model import Candidate
from ..core.windows import Cooldown, Quota
from .base import KeyHealth, Used

__all__ = ["overview"]

_Resting = dict[tuple[str, str], tuple[str, Cooldown]]
"""By `key`, `project` or `billing` and its id: the scope and cooldown that ends last; of several
that end together the one that is about all calls, and not about a model or method."""


def overview(
    keys: Iterable[Candidate],
    known: Mapping[str, KeyHealth],
    quotas: Mapping[tuple[str, str], Quota],
    cooldowns: Mapping[tuple[str, ...], Cooldown],
    now: float,
) -> dict[str, KeyHealth]:
    """Describe *keys* as of *now*, by id; the cost grows with what is known, not its square."""
    used: dict[str, list[Used]] = {}
    for (project, bucket), quota in quotas.items():
        quota.roll(now)
        used.setdefault(project, []).append(
            Used(bucket, *quota.used, quota.day_requests, quota.learned)
        )
    resting = _resting(cooldowns, now)
    return {
        key.key_id: _describe(key, known.get(key.key_id, KeyHealth()), used, resting)
        for key in keys
    }


def _resting(cooldowns: Mapping[tuple[str, ...], Cooldown], now: float) -> _Resting:
    latest: _Resting = {}
    for name, cooldown in cooldowns.items():
        who = name[0].partition("_")[0], name[1]
        if cooldown.runs(now) and (
            who not in latest or _end(name[0], cooldown) > _end(*latest[who])
        ):
            latest[who] = name[0], cooldown
    return latest


def _describe(
    key: Candidate, known: KeyHealth, used: dict[str, list[Used]], resting: _Resting
) -> KeyHealth:
    health = KeyHealth(known.last_used, known.success_count, known.error_count)
    health.last_error = known.last_error
    health.used = used.get(key.project, ())
    mine = (("billing", key.billing_account), ("project", key.project), ("key", key.record))
    found = [resting[who] for who in mine if who in resting]
    if found:
        health.cooldown_scope, cooldown = max(found, key=lambda one: _end(*one))
        health.cooldown_until, health.cooldown_reason = cooldown.until, cooldown.failure
    return health


def _end(scope: str, cooldown: Cooldown) -> tuple[float, bool]:
    """Tell when a cooldown ends, and whether it is about all calls of whom it rests."""
    return cooldown.until, "_" not in scope
