"""The state of each key of a pool, for `status()`, `get_health_status()` and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import NamedTuple, TypedDict

from ..core.availability import AVAILABLE, Availability, KeyState, availability
from ..core.model import Block, CallInfo, Candidate, Platform, project_name, smaller_limit
from ..core.text import utc
from ..runtime.pool import Pool
from ..state.base import KeyHealth, State, Used
from ..telemetry.metrics import KeySnapshot, QuotaUtilization

__all__ = [
    "HealthStatus",
    "KeyView",
    "ModelUsage",
    "blocks_of",
    "counts_today",
    "describe",
    "health",
    "iso",
    "levels",
    "pool_views",
    "quota_utilization",
    "views",
    "without_value",
]

VERB = "generateContent"
"""The method of the call that "a call sent now" stands for."""
AT_ONCE = 500
"""Keys of which the state is asked in one step."""
NO_VALUE = "no value"
"""Why a key is unresolved."""


class ModelUsage(TypedDict):
    """What a project has used of one model, and whether its key is available for it."""

    requests_minute: int
    tokens_minute: int
    requests_day: int
    learned: dict[str, int]
    """Limits reported by Google: `rpm`, `tpm`, `rpd`."""
    available: bool
    available_at: str | None


class HealthStatus(TypedDict):
    """The health of one key. Times are ISO 8601 in UTC."""

    model: str | None
    project: str | None
    """As in keys.json, and as `project()` takes it; None: the key has none. `project()` takes the
    id of such a key."""
    platform: Platform
    """Whose calls it serves: `gemini_api` or `vertex_express`."""
    state: KeyState
    """`available`, `limited`, `cooling_down`, `rejected`, `unresolved` or `disabled`."""
    active: bool
    """False: rejected, without a value, or switched off; `disabled_reason` says why."""
    available: bool
    """A call sent now would get this key, for at least one of the models it is used with."""
    available_at: str | None
    """When what blocks the key ends; None: it is available, or the time is not known."""
    reason: str | None
    """Why it is not available, such as `quota_minute`; None: it is."""
    last_used: str | None
    success_count: int
    error_count: int
    in_cooldown: bool
    cooldown_until: str | None
    disabled_reason: str | None
    limits: dict[str, int | None]
    used: dict[str, ModelUsage]


class KeyView(NamedTuple):
    """What the state knows of one key, and whether it is available, by model and in all."""

    known: KeyHealth
    models: Mapping[str, Availability]
    """Of each model that the key is used with, and its own."""
    overall: Availability


def health(pool: Pool) -> dict[str, HealthStatus]:
    """Return the health of each key of *pool* by its id; keys without a value too."""
    pool.settle_abandoned()
    return describe(pool_views(pool), pool.clock.time())


def describe(keys: Iterable[tuple[Candidate, KeyView]], now: float) -> dict[str, HealthStatus]:
    """Return the health of each of *keys* by its id."""
    return {key.key_id: _describe(key, seen, now) for key, seen in keys}


def pool_views(pool: Pool) -> list[tuple[Candidate, KeyView]]:
    """Return the view of each configured key of *pool*, keys without a value included."""
    selector = pool.selector.keys
    skipped = pool.secrets.duplicates.keys() - pool.secrets.unresolved.keys()
    keys = [
        selector.get(key.key_id, key)
        for key in (selector.values() if pool.configured is None else pool.configured)
        if key.key_id in selector or key.key_id not in skipped
    ]
    found = views(pool.state, keys)
    unresolved = [key.key_id for key in keys if not key.disabled and key.key_id not in selector]
    found |= {key_id: without_value(found[key_id]) for key_id in unresolved}
    return [(key, found[key.key_id]) for key in keys]


def views(state: State, keys: Iterable[Candidate]) -> dict[str, KeyView]:
    """Return which of *keys* `acquire` would lease now, for the smallest request.

    A key is available if it is for its own model, or for any model that its project is used with.
    Of a key that is used with none, what blocks it for every model counts.
    """
    keys = list(keys)
    known = state.snapshot(keys)
    wanting: dict[str, list[Candidate]] = {}
    for key in keys:
        for model in _models(key, known[key.key_id]):
            wanting.setdefault(model, []).append(key)
    blocks = {
        model: blocks_of(state, CallInfo(model, VERB, tokens=1), some)
        for model, some in wanting.items()
    }
    found = {key.key_id: _view(key, known[key.key_id], blocks) for key in keys}
    for key in keys:
        if key.disabled:
            overall = Availability("disabled", None, key.disabled)
            found[key.key_id] = _out(found[key.key_id], overall)
    return found


def blocks_of(state: State, info: CallInfo, keys: list[Candidate]) -> dict[str, Block]:
    """Ask for a part of the keys at a time: calls must not wait for all of a large pool."""
    found: dict[str, Block] = {}
    for start in range(0, len(keys), AT_ONCE):
        found |= state.get_blocks(info, keys[start : start + AT_ONCE])
    return found


def without_value(seen: KeyView) -> KeyView:
    """Return the view of a key that has no value."""
    return _out(seen, Availability("unresolved", None, NO_VALUE))


def _out(seen: KeyView, overall: Availability) -> KeyView:
    """Replace the availability of every model by *overall*."""
    return seen._replace(models=dict.fromkeys(seen.models, overall), overall=overall)


def _models(key: Candidate, known: KeyHealth) -> list[str]:
    used = [used.bucket for used in known.used if used.bucket]
    return list(dict.fromkeys([key.model, *used] if key.model else used)) or [""]


def _view(key: Candidate, known: KeyHealth, blocks: Mapping[str, dict[str, Block]]) -> KeyView:
    mine = {model: blocks[model].get(key.key_id) for model in _models(key, known)}
    used = {used.bucket for used in known.used if counts_today(used)} | {key.model}
    # A model of yesterday says nothing of today, unless it is still blocked.
    matter = [block for model, block in mine.items() if block is not None or model in used]
    models = {model: availability([block]) for model, block in mine.items() if model}
    return KeyView(known, models, availability(matter))


def counts_today(used: Used) -> bool:
    """Return whether anything was sent to the model in the windows of now."""
    return bool(used.requests_minute or used.tokens_minute or used.requests_day)


def _describe(key: Candidate, seen: KeyView, now: float) -> HealthStatus:
    known, (state, at, reason) = seen.known, seen.overall
    until = known.cooldown_until
    out = state in ("rejected", "unresolved", "disabled")
    return {
        "model": key.model,
        "project": project_name(key.project),
        "platform": key.platform,
        "state": state,
        "active": not out,
        "available": state == "available",
        "available_at": iso(at),
        "reason": None if state == "available" else reason,
        "last_used": iso(known.last_used),
        "success_count": known.success_count,
        "error_count": known.error_count,
        "in_cooldown": until is not None and until > now,
        "cooldown_until": iso(until),
        "disabled_reason": reason if out else None,
        "limits": key.limits._asdict(),
        "used": {used.bucket: _usage(used, seen) for used in known.used},
    }


def _usage(used: Used, seen: KeyView) -> ModelUsage:
    here = seen.models.get(used.bucket, seen.overall)
    return {
        "requests_minute": used.requests_minute,
        "tokens_minute": used.tokens_minute,
        "requests_day": used.requests_day,
        "learned": {k: v for k, v in used.limits._asdict().items() if v is not None},
        "available": here == AVAILABLE,
        "available_at": iso(here.at),
    }


def iso(moment: float | None) -> str | None:
    """Write epoch seconds as ISO 8601 in UTC; None for never, and for what has no end."""
    if moment is None or not isfinite(moment):
        return None
    return utc(moment).isoformat().replace("+00:00", "Z")


# How the keys of a pool are, in numbers: for metrics -------------------------------------------


def levels(pool: Pool) -> list[KeySnapshot]:
    """Report how each key of *pool* is; reads the state, so that a shared one does I/O."""
    found = []
    for key, seen in pool_views(pool):
        used = tuple(quota for used in seen.known.used for quota in quota_utilization(key, used))
        if key.usd_per_day is not None:
            spent = (seen.known.spent_usd or 0.0) / key.usd_per_day
            used = (*used, QuotaUtilization("", "usd", spent))
        found.append(KeySnapshot(key.key_id, seen.overall.state, used))
    return found


def quota_utilization(key: Candidate, used: Used) -> list[QuotaUtilization]:
    """Pair each known limit with its use."""
    have = (used.requests_minute, used.tokens_minute, used.requests_day)
    rows = zip(("rpm", "tpm", "rpd"), have, used.limits[:3], key.limits[:3], strict=True)
    found = []
    for name, count, learned, configured in rows:
        limit = smaller_limit(configured, learned)
        if limit is not None:
            found.append(QuotaUtilization(used.bucket, name, count / limit if limit > 0 else 1.0))
    return found
