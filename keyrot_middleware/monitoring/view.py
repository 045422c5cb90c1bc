"""How a pool is, for people: its keys, its last calls, and which key a call would get.

The page, `keyrot status`, `keyrot explain`, `status()`, metrics and alerts show this, of this
process's pool or of a shared state seen from outside. docs/page.md lists the fields. Times are
ISO 8601 in UTC; what is not known is None. No value of a key is in any of them.

One rule holds for all: of each model in use, some of the keys that could serve it are available. A
key is available if it is for one of these models; else the block counts that ends first. When the
next key is available is answered without rejected keys: they are tried again, which is no promise.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf, isfinite
from time import monotonic
from typing import Any, TypedDict, cast

from .. import providers
from ..core.activity import (
    COUNTERS,
    DAY,
    HOUR,
    LARGE_POOL,
    MINUTES,
    POOL,
    ActivityView,
    CallRecord,
    DayUsage,
    ShareKind,
    make_history,
    project_entry,
    quota_entry,
    share_entry,
)
from ..core.amounts import NANO
from ..core.availability import AVAILABLE, DISABLED_BY_HAND, KEY_STATES, Availability, availability
from ..core.failures import ENDED_BY_PERSON, KEY_REJECTIONS
from ..core.ledger import KeyHealth, Used
from ..core.model import (
    DEFAULT_PLATFORM,
    DEFAULT_ZONE,
    NO_BUDGET,
    NO_LIMITS,
    USD_REASONS,
    USD_WINDOWS,
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Scope,
    Terms,
    Verdict,
    WorkloadBudget,
    project_name,
    smaller_limit,
)
from ..core.model_names import ModelNames
from ..core.selection import Selector
from ..core.text import plural, short_time, utc
from ..core.windows import DAY_S, HOUR_S, Learned, next_midnight
from ..errors import KeyrotError
from ..keys_file import DISABLED_IN_FILE, OUTSIDE_TIERS
from ..prices import is_installed
from ..runtime.activity import Activity
from ..runtime.pool import Pool
from ..settings import TRACE_ID
from ..state import State
from ..telemetry.metrics import KeySnapshot, QuotaUtilization

VERB = "generateContent"
"""The method of the call that "a call sent now" stands for."""
AT_ONCE = 500
"""Keys of which the state is asked in one step, since calls must not wait for a large pool."""
FRESH_S = 1.0
"""How long the keys are not read again: each open page of ten thousand keys reads every 2 s."""
NAMED = 3
"""Keys that a sentence names."""
MODELS = 4
"""Models without a key that the headline names."""
LIMIT_MAX = 500
"""Keys in one answer."""
DISABLED_S = int(30 * DAY_S)
"""How long a key stays off that was switched off by hand, unless it is enabled before."""
URGENCY = ("rejected", "unresolved", "cooling_down", "limited", "available", "disabled")
"""In which order keys are listed: problems first."""
WINDOWS = {
    "rpm": ("requests", "this minute"),
    "tpm": ("input tokens", "this minute"),
    "rpd": ("requests", "today"),
}
_SENTENCES = {
    "concurrency": "all requests that max_concurrency allows are under way",
    "usd_10m": "the budget of ten minutes is spent",
    "usd": "the budget of the day is spent",
    "usd_month": "the budget of the month is spent",
    "usd_reserved": "requests under way may spend the rest of a budget",
    "probe": "one request is under way to see whether the key works again",
    DISABLED_IN_FILE: "switched off in keys.json",
    OUTSIDE_TIERS: OUTSIDE_TIERS,
}
"""By the reason of a key's state."""
_SPANS = {1: HOUR, 24: DAY}
_OF_CALLS = COUNTERS[3:]
"""Counters that belong to no single key: a call may try several."""
_UNKNOWN = "Not known while the shared state cannot be reached."
_AN_HOUR_ONLY = (
    f"In a pool of more than {LARGE_POOL} keys, a key and a project are counted for one hour only."
)
_NO_CALL = "No call was made."


class ModelUsage(TypedDict):
    """What a project has used of one model, and whether its key is available for it."""

    requests_minute: int
    tokens_minute: int
    requests_day: int
    learned: dict[str, int]
    """Limits reported by Google: `rpm`, `tpm`, `rpd`."""
    sources: dict[str, str]
    """Where each limit that is known is from: `configured`, `learned`, or `google` if it was read
    from its list of quotas."""
    available: bool
    available_at: str | None
    held_back: str | None
    """What other workloads leave to those that are first."""
    runs_out_at: str | None
    """When its requests of the day are used up at the rate of the last hour; None: they last."""


class HealthStatus(TypedDict):
    """The health of one key. Times are ISO 8601 in UTC."""

    model: str | None
    project: str | None
    """As in keys.json, and as `project()` takes it; None: the key has none. `project()` takes the
    id of such a key."""
    platform: str
    """Whose calls it serves: `gemini_api` or `vertex_express`."""
    state: str
    """`available`, `limited`, `cooling_down`, `rejected`, `unresolved` or `disabled`."""
    active: bool
    """False: rejected, without a value, or switched off; `disabled_reason` says why."""
    available: bool
    """A call sent now could get this key, for at least one of the models in use."""
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
    use: float
    """The part of each limit that is the pool's; the limits here are those parts."""
    limits: dict[str, int | None]
    used: dict[str, ModelUsage]
    """By model, of its project."""


@dataclass(slots=True)
class Row:
    """What is known of one key, and whether it is available."""

    key: Candidate
    known: KeyHealth
    models: dict[str, Availability]
    """Of each model in use that it could serve."""
    overall: Availability
    held_back: dict[str, str] = field(default_factory=dict)
    """What others leave to workloads that are first, by model."""
    runs_out: dict[str, float] = field(default_factory=dict)
    """When its project's day ends early, by model; see `forecast`."""

    @property
    def serves(self) -> bool:
        """Return whether it could serve any call: it has a value, and is not switched off."""
        return self.overall.state not in ("unresolved", "disabled")


# The state of keys -------------------------------------------------------------------------------


def look(
    state: State,
    keys: Iterable[Candidate],
    missing: Collection[str] = (),
    others: Terms | None = None,
    now: float = 0.0,
) -> list[Row]:
    """Return how each of *keys* is now, for the smallest request; nothing is reserved.

    Args:
        state: What calls have left.
        keys: All keys of a pool.
        missing: Ids of those that have no value.
        others: What workloads that no setting names may use.
        now: Epoch seconds, if *others* are given.
    """
    keys = list(keys)
    known = state.snapshot(keys)
    able = [key for key in keys if not key.disabled and key.key_id not in missing]
    any_model = blocks_of(state, CallInfo("", VERB, tokens=1), able)
    blocks, in_use = _by_model(state, able, known, any_model)

    def row(key: Candidate) -> Row:
        health = known[key.key_id]
        if key.disabled:
            return Row(key, health, {}, Availability("disabled", None, key.disabled))
        if key.key_id in missing:
            return Row(key, health, {}, Availability("unresolved", None, "no value"))
        mine = {
            model: _of_key(health, blocks[model].get(key.key_id))
            for model, users in in_use.items()
            if key.platform in users
        }
        # Available for one model, or else blocked until it is for the first one.
        whole = min(mine.values(), key=lambda one: (one != AVAILABLE, one.at or inf), default=None)
        whole = whole or _of_key(health, any_model.get(key.key_id))
        return Row(key, health, mine, whole, _held_back(key, health, others, now))

    return [row(key) for key in keys]


def _held_back(
    key: Candidate, health: KeyHealth, others: Terms | None, now: float
) -> dict[str, str]:
    """Say what other workloads leave to those that are first, by model."""
    found = {}
    for used in health.used if others is not None else ():
        limits = _limits(key, used)
        notes = [
            others.note("first", kept.reason, kept.amount, kept.limit)
            for kept in (used.first.kept(limits, now) if used.first else ())
            if others is not None and kept.amount
        ]
        if notes:
            what = f"{notes[0].partition(': ')[0]}: "
            found[used.bucket] = what + ", ".join(note.removeprefix(what) for note in notes)
    return found


def _by_model(
    state: State,
    keys: list[Candidate],
    known: Mapping[str, KeyHealth],
    any_model: Mapping[str, Block],
) -> tuple[dict[str, dict[str, Block]], dict[str, set[str]]]:
    """Return what blocks keys, by model, and the platforms of each model in use.

    A model of yesterday is in use while it is blocked.
    """
    models, in_use = set[str](), dict[str, set[str]]()
    for key in keys:
        for used in known[key.key_id].used:
            if used.bucket:
                models.add(used.bucket)
            if used.bucket and counts_today(used):
                in_use.setdefault(used.bucket, set()).add(key.platform)
    blocks = {model: blocks_of(state, CallInfo(model, VERB, tokens=1), keys) for model in models}
    for model, blocked in blocks.items():
        for key in keys:
            if key.key_id in blocked and key.key_id not in any_model:
                in_use.setdefault(model, set()).add(key.platform)
    return blocks, in_use


def blocks_of(state: State, info: CallInfo, keys: list[Candidate]) -> dict[str, Block]:
    """Return why keys would be refused."""
    found: dict[str, Block] = {}
    for start in range(0, len(keys), AT_ONCE):
        found |= state.get_blocks(info, keys[start : start + AT_ONCE])
    return found


def _of_key(health: KeyHealth, block: Block | None) -> Availability:
    """Return how a key is; one that Google rejected is not available until a request succeeds."""
    here = availability(block)
    if health.rejection is None or here.state in ("rejected", "disabled"):
        return here
    is_own = health.rejection in KEY_REJECTIONS
    return Availability("rejected" if is_own else "cooling_down", here.at, health.rejection)


def counts_today(used: Used) -> bool:
    """Return whether anything was sent to the model in the windows of now."""
    return bool(used.requests_minute or used.tokens_minute or used.requests_day)


def pool_rows(pool: Pool) -> list[Row]:
    """Return how each configured key of *pool* is, keys without a value included."""
    pool.settle_abandoned()
    selector = pool.selector.keys
    skipped = pool.secrets.duplicates.keys() - pool.secrets.unresolved.keys()
    keys = [
        selector.get(key.key_id, key)
        for key in pool.configured
        if key.key_id in selector or key.key_id not in skipped
    ]
    missing = {key.key_id for key in keys} - selector.keys()
    return look(pool.state, keys, missing, pool.terms.get(None), pool.clock.time())


def _health(row: Row, now: float) -> HealthStatus:
    found, known = _describe(row), row.known
    out = row.overall.state in ("rejected", "unresolved", "disabled")
    found |= {
        "active": not out,
        "in_cooldown": known.cooldown_until is not None and known.cooldown_until > now,
        "disabled_reason": row.overall.reason if out else None,
        "limits": row.key.limits.part(row.key.use)._asdict(),
        "used": {used.bucket: _usage(used, row) for used in known.used},
    }
    return cast(HealthStatus, found)


def _describe(row: Row) -> dict[str, Any]:
    """Return what `status()` and the page say of a key in the same words."""
    key, known, (state, at, reason, _) = row.key, row.known, row.overall
    return {
        **{
            name: getattr(key, name) for name in ("key_id", "platform", "model", "tier", "priority")
        },
        "project": project_name(key.project),
        "use": key.use,
        "state": state,
        "reason": reason,
        "available": state == "available",
        "available_at": iso(at),
        "cooldown_until": iso(known.cooldown_until),
        "cooldown_reason": known.cooldown_reason,
        "cooldown_scope": known.cooldown_scope,
        "last_error": known.last_error,
        "last_used": iso(known.last_used),
        "success_count": known.success_count,
        "error_count": known.error_count,
    }


def _usage(used: Used, row: Row) -> ModelUsage:
    here, windows = row.models.get(used.bucket, row.overall), _windows(row.key, used)
    return {
        "requests_minute": used.requests_minute,
        "tokens_minute": used.tokens_minute,
        "requests_day": used.requests_day,
        "learned": {
            k: v for k, v in used.limits.part(row.key.use)._asdict().items() if v is not None
        },
        "sources": {n: one["source"] for n, one in windows.items() if one["source"]},
        "available": here == AVAILABLE,
        "available_at": iso(here.at),
        "held_back": row.held_back.get(used.bucket),
        "runs_out_at": iso(row.runs_out.get(used.bucket)),
    }


def forecast(rows: Sequence[Row], activity: Activity, now: float) -> dict[str, float]:
    """Find out when requests per day are used up at the rate of the last hour, if that is today.

    That of each project is in its rows. The rates of large pools are not known.

    Returns:
        When those of all keys that can serve a model are, by model, epoch seconds.
    """
    end, quotas = next_midnight(now, activity.zone), dict[str, dict[str, list[Row]]]()
    for row in rows if len(rows) <= LARGE_POOL else ():
        name = project_name(row.key.project) or row.key.key_id
        for model in {*row.models, *(used.bucket for used in row.known.used)}:
            quotas.setdefault(model, {}).setdefault(quota_entry(name, model), []).append(row)
    counts = activity.last_hour([name for names in quotas.values() for name in names], now)

    def ends(left: float, count: int) -> float:
        return now + left * HOUR_S / count if count else inf

    found = {}
    for model, names in quotas.items():
        left_in_pool = []
        for name, users in names.items():
            left = min(_left_today(row, model) for row in users)
            for row in users if ends(left, counts[name]) < end else ():
                row.runs_out[model] = ends(left, counts[name])
            if any(_serves_before(end, row.models.get(model)) for row in users):
                left_in_pool.append(left)
        at = ends(sum(left_in_pool), sum(counts[name] for name in names))
        if left_in_pool and at < end:
            found[model] = at
    return found


def _left_today(row: Row, model: str) -> float:
    known = [used for used in row.known.used if used.bucket == model]
    day = _windows(row.key, known[0] if known else Used(model, 0, 0, 0))["rpd"]
    return inf if day["limit"] is None else max(day["limit"] - day["used"], 0)


def _serves_before(end: float, here: Availability | None) -> bool:
    if here is None or here.state == "rejected":
        return False
    return here == AVAILABLE or (here.at is not None and here.at < end)


def levels(pool: Pool) -> list[KeySnapshot]:
    """Report how each key of *pool* is, for metrics; a shared state does I/O."""
    found = []
    for row in pool_rows(pool):
        used = [quota for used in row.known.used for quota in utilization(row.key, used)]
        used += [
            QuotaUtilization("", reason, (spent or 0) / limit)
            for reason, limit, spent in zip(USD_REASONS, row.key.usd, row.known.spent, strict=True)
            if limit is not None
        ]
        found.append(KeySnapshot(row.key.key_id, row.overall.state, tuple(used)))
    return found


def utilization(key: Candidate, used: Used) -> list[QuotaUtilization]:
    """Return the used share of each known limit."""
    return [
        QuotaUtilization(used.bucket, name, one["used"] / one["limit"] if one["limit"] else 1.0)
        for name, one in _windows(key, used).items()
        if one["limit"] is not None
    ]


def _budgets(key: Candidate, known: KeyHealth) -> dict[str, dict[str, float]]:
    """Return what was spent of each budget of a key, US dollars, by window."""
    found = zip(USD_WINDOWS, known.spent, key.usd, strict=True)
    return {
        window: {"spent": (spent or 0) / NANO, "limit": limit / NANO}
        for window, spent, limit in found
        if limit is not None
    }


def _limits(key: Candidate, used: Used) -> Limits:
    """Return the limits in force, as far as they are the pool's."""
    return Learned(0.0, used.limits).smaller(key.limits).part(key.use)


def _windows(key: Candidate, used: Used) -> dict[str, dict[str, Any]]:
    amounts = (used.requests_minute, used.tokens_minute, used.requests_day)
    found = {}
    for name, amount, learned, own, read, limit in zip(
        WINDOWS, amounts, used.limits, key.limits, used.read, _limits(key, used), strict=False
    ):
        sources = {read: "google", own: "configured"}
        source = None if limit is None else sources.get(smaller_limit(own, learned), "learned")
        found[name] = {"used": amount, "limit": limit, "source": source}
    return found


def iso(moment: float | None) -> str | None:
    """Write epoch seconds as ISO 8601 in UTC; None for never, and for what has no end."""
    if moment is None or not isfinite(moment):
        return None
    return utc(moment).isoformat().replace("+00:00", "Z")


# What is said first ------------------------------------------------------------------------------


def headline_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sentences that are said first; docs/page.md lists the fields of a summary."""
    keys, available, hour = summary["keys"], summary["available"], summary["last_hour"]
    models = summary["models"]
    first = {**_next((None, None)), "sentence": f"{available_of(available, keys)}."}
    if not keys:
        first["sentence"] = "This pool has no key."
    elif not available:
        first = _until("No key is available.", summary["next"])
    without = [
        _until(f"No key is available for {name}.", some["next"])
        for name, some in models.items()
        if not some["available"] and (available or len(models) > 1)
    ]
    calls = requests = _UNKNOWN
    if hour["calls"] is not None:
        waits = f"; {hour['waits']:,} waited for a key" if hour["waits"] else ""
        is_well = hour["failures"] and not hour["failed_calls"]
        more = "; a call goes on with another key" if is_well else ""
        calls, requests = _NO_CALL, "No request was sent."
        if hour["calls"]:
            calls = f"{hour['failed_calls']:,} of {plural(hour['calls'], 'call')} failed{waits}."
        if hour["requests"]:
            sent = plural(hour["requests"], "request")
            requests = f"{hour['failures']:,} of {sent} failed{more}."
    return {"keys": first, "models": without[:MODELS], "calls": calls, "requests": requests}


def lines_of(headline: Mapping[str, Any], when: Callable[[str], str]) -> Iterator[str]:
    """Yield the lines of a headline.

    Args:
        headline: The headline.
        when: Writes an ISO time, such as `in 5 min`.
    """
    for one in (headline["keys"], *headline["models"]):
        at, text = one["available_at"], one["sentence"]
        yield text if at is None else f"{text} {one['key_id']} {when(at)}."
    calls, requests = headline["calls"], headline["requests"]
    yield f"Last hour: {calls}{'' if calls in (_UNKNOWN, _NO_CALL) else f' {requests}'}"


def available_of(available: int, keys: int) -> str:
    """Return `1 of 2 keys is available`."""
    verb = "is" if available == 1 else "are"
    return f"{available:,} of {plural(keys, 'key')} {verb} available"


def _until(text: str, first: Mapping[str, Any]) -> dict[str, Any]:
    unknown = "" if first["available_at"] else " It is not known when one will be."
    return {"sentence": f"{text}{unknown}", **first}


def _models_of(rows: Iterable[Row]) -> dict[str, dict[str, Availability]]:
    """Return by model in use how each key is that could serve it, by key id."""
    found: dict[str, dict[str, Availability]] = {}
    for row in rows:
        for model, here in row.models.items():
            found.setdefault(model, {})[row.key.key_id] = here
    return dict(sorted(found.items()))


def _first(found: Mapping[str, Availability]) -> tuple[float | None, str | None]:
    """Return when the first key is available of those that are not, and which; not of rejected."""
    times = [(one.at, i) for i, one in found.items() if one.at is not None]
    return min((pair for pair in times if found[pair[1]].state != "rejected"), default=(None, None))


def _summary(
    rows: list[Row],
    activity: ActivityView,
    runs_out: Mapping[str, float],
    *,
    cost_known: bool,
    degraded: bool,
) -> dict[str, Any]:
    states = Counter(row.overall.state for row in rows)
    hour = activity.histories.get(POOL) or make_history([])
    today = activity.today.get(POOL) or DayUsage()
    zones = {providers.of(row.key.platform).zone for row in rows}
    models = _models_of(rows)
    available = {
        model: sum(one == AVAILABLE for one in found.values()) for model, found in models.items()
    }
    last_hour = {
        "calls": sum(hour.calls),
        "failed_calls": sum(hour.failed_calls),
        "requests": sum(hour.requests),
        "failures": sum(hour.failures),
        "waits": sum(hour.waits),
    }
    amounts = {
        "input_tokens": today.input_tokens,
        "output_tokens": today.output_tokens,
        "cost_usd": today.cost_usd if cost_known else None,
    }
    summary = {
        "keys": len(rows),
        "available": states["available"],
        "states": {state: states[state] for state in KEY_STATES},
        "next": _next(_first({row.key.key_id: row.overall for row in rows})),
        "models": {
            model: {
                "available": available[model],
                "keys": len(found),
                "next": _next(_first(found)),
                "runs_out_at": iso(runs_out.get(model)),
            }
            for model, found in models.items()
        },
        "last_hour": dict.fromkeys(last_hour) if degraded else last_hour,
        "today": dict.fromkeys(amounts) if degraded else amounts,
        "midnight": "Pacific time" if not zones or DEFAULT_ZONE in zones else "UTC",
    }
    return {**summary, "headline": headline_of(summary)}


def _next(first: tuple[float | None, str | None]) -> dict[str, Any]:
    return {"key_id": first[1], "available_at": iso(first[0])}


def pool_health(pool: Pool) -> tuple[dict[str, HealthStatus], list[str]]:
    """Return the health of each key of this process's *pool*, and the lines of its headline.

    Keys without a value are there too.
    """
    now, rows = pool.clock.time(), pool_rows(pool)
    runs_out, activity = forecast(rows, pool.activity, now), pool.activity.view((), now)
    summary = _summary(rows, activity, runs_out, cost_known=False, degraded=pool.state.degraded)
    lines = lines_of(summary["headline"], lambda at: f"at {short_time(at)}")
    return {row.key.key_id: _health(row, now) for row in rows}, list(lines)


# What pages and commands read --------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class PoolReport:
    """What a page and the commands show of one pool. All methods block."""

    name: str
    state: State
    state_url: str
    """Without user and password."""
    rows: Callable[[], list[Row]]
    """How all configured keys are; may raise KeyrotError."""
    activity: Activity
    selector: Callable[[], Selector]
    """The keys in the order in which calls try them."""
    now: Callable[[], float]
    on_reset: Callable[[str], None] | None = None
    """Resets a key; None: the state does."""
    check_key: Callable[[str], str] | None = None
    """Sends one request with a key, and returns a sentence."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why a key has no value, by its id."""
    models: ModelNames | None = None
    """The model names that calls count separately; None: not known from here."""
    trace_url: str | None = None
    """Where a trace is shown, with `{trace_id}` in it."""
    terms: Mapping[str | None, Terms] = field(default_factory=dict)
    """What each workload may use; None: all others."""
    _cost_known: bool = field(default_factory=is_installed)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _last: tuple[float, float, list[Row], dict[str, float]] | None = None
    """The last look: when by `monotonic()`, when by the clock, the keys, and their forecast."""

    def status(
        self, *, offset: int = 0, limit: int = 100, query: str = "", state: str = "", sort: str = ""
    ) -> dict[str, Any]:
        """Return the pool and a part of its keys, problems first.

        Args:
            offset: How many keys to skip.
            limit: How many keys to return at most.
            query: Only keys whose id, project or model contains this, in any case.
            state: Only keys in this state.
            sort: One of `SORTS`, or with `-` before it; problems first by default.

        Raises:
            KeyrotError: The state cannot be read.
        """
        at, rows, runs_out = self._look()
        found = [row for row in rows if _matches(row, query.casefold(), state)]
        if by := SORTS.get(sort.removeprefix("-")):
            found.sort(key=by, reverse=sort.startswith("-"))
        shown = found[offset : offset + limit]
        projects = dict.fromkeys(filter(None, (project_name(row.key.project) for row in shown)))
        wanted = [row.key.key_id for row in shown] + [project_entry(name) for name in projects]
        activity = self.activity.view(wanted, at)
        known, degraded = self._cost_known, self.state.degraded
        summary = _summary(rows, activity, runs_out, cost_known=known, degraded=degraded)
        summary["projects"] = self._projects(shown, activity)
        summary["workloads"] = self._workloads()
        return {
            "pool": self.name,
            "shared": not self.state.is_local,
            "state_url": self.state_url,
            "degraded": degraded,
            "at": iso(at),
            "cost_known": known,
            "has_records": any(_is_recorded(row.known) for row in rows),
            "summary": summary,
            "total": len(found),
            "offset": offset,
            "limit": limit,
            "keys": [self._key(row, activity, at) for row in shown],
        }

    def attempts(self, *, key: str = "", limit: int = 100) -> dict[str, Any]:
        """Return the latest calls, newest first; with *key*, those that used this key."""
        calls = self.activity.view((), self.now()).calls
        if key:
            calls = [call for call in calls if any(a.key_id == key for a in call.attempts)]
            known = {(call.at, call.seconds) for call in calls}
            older = self.activity.failures(key)
            calls += [call for call in older if (call.at, call.seconds) not in known]
            calls.sort(key=lambda call: -call.at)
        return {"calls": [self._call(call) for call in calls[: max(limit, 0)]]}

    def history(self, *, by: str = "", name: str = "", hours: int = 1) -> dict[str, Any]:
        """Return how many requests and calls there were in each part of the last hours.

        Args:
            by: `key`, `project`, `model` or `workload`; "" for the whole pool.
            name: Which one; "" for the whole pool.
            hours: 1 or 24.

        Raises:
            KeyrotError: The state cannot be read.
        """
        entries = {
            "": POOL,
            "key": name,
            "project": project_entry(name),
            "model": share_entry("model", name),
            "workload": share_entry("workload", name),
        }
        span, now = _SPANS[hours], self.now()
        of_requests = bool(name) and by in ("key", "project")
        unknown = _UNKNOWN if self.state.degraded else None
        if of_requests and span is not HOUR and len(self._look()[1]) > LARGE_POOL:
            unknown = _AN_HOUR_ONLY
        counts = make_history([()] * span.slots)
        if not unknown:
            counts = self.activity.history(entries[by] if name else POOL, span, now)
        shares: dict[str, list[int]] = {}
        if by in ("model", "workload"):
            shares = self.activity.shares(cast(ShareKind, by), span, now)
        most = sorted(shares, key=lambda one: (-shares[one][COUNTERS.index("calls")], one))
        of_calls = _OF_CALLS if of_requests else ()
        return {
            "by": by,
            "name": name,
            "hours": hours,
            "at": iso(now),
            "from": iso(span.numbers(now)[0] * span.step_s),
            "step_s": span.step_s,
            "unknown": unknown,
            "series": {
                counter: None if counter in of_calls else list(values)
                for counter, values in zip(COUNTERS, counts, strict=True)
            },
            "shares": [
                {"name": one, **dict(zip(COUNTERS, shares[one], strict=True))} for one in most
            ],
        }

    def explain(
        self, model: str, tokens: int = 0, workload: str = "", platform: str = DEFAULT_PLATFORM
    ) -> dict[str, Any]:
        """Return which key a call would get now, and why each other would not be used.

        Args:
            model: As in a call.
            tokens: Its input tokens.
            workload: Whose keys are preferred; "" for none.
            platform: That of its client.
        """
        if tokens < 0:
            raise KeyrotError("tokens: allowed are whole numbers from 0")
        (now, rows, _), selector = self._look(), self.selector()
        name, work = model.removeprefix("models/"), workload or None
        info = CallInfo(name, VERB, max(tokens, 1), workload=work, platform=platform)
        info = info._replace(terms=self.terms.get(work, self.terms.get(None)))
        order = selector.ranking(info)
        counted = info if self.models is None else self.models.preview(info, now)
        blocks = blocks_of(self.state, counted, [key for _, key in order])
        rejected = {row.key.key_id for row in rows if row.known.rejection is not None}
        able = [one for one in order if one[1].key_id not in blocks.keys() | rejected]
        next_keys = self._next_keys(able, counted, selector)
        place = {key.key_id: group + 1 for group, key in order}
        turn = {key.key_id: number for number, (_, key) in enumerate(order)}
        found = []
        for row in sorted(rows, key=lambda row: turn.get(row.key.key_id, len(turn))):
            key_id, here = row.key.key_id, row.overall
            if key_id in place:
                here = _of_key(row.known, blocks.get(key_id))
            sentence = self._sentence(row, here, now, info.model)
            if row.key.platform != platform:
                here = Availability("limited", None, "platform")
                sentence = f"serves calls of platform {row.key.platform} only"
            elif here == AVAILABLE:
                sentence = "available; comes later"
                if key_id in next_keys:
                    sentence = "would get the call" if len(next_keys) == 1 else "may get the call"
            found.append((row.key, here, sentence))
        soonest = _first({key.key_id: here for key, here, _ in found})
        verdict = _verdict(next_keys, info.model, len(found), iso(soonest[0]))
        last = min((place[key_id] for key_id in next_keys), default=len(place) + 1)
        due = [
            key.key_id
            for key, here, _ in found
            if here.reason in ENDED_BY_PERSON and here.at is None
            if place.get(key.key_id, inf) <= last
        ]
        if due:
            verdict += f" First it tries again {', '.join(due[:NAMED])}, which Google rejected."
        return {
            "model": info.model,
            "tokens": tokens,
            "workload": info.workload,
            "at": iso(now),
            "key_id": next_keys[0] if next_keys else None,
            "sentence": verdict,
            "keys": [
                {
                    "key_id": key.key_id,
                    "project": project_name(key.project),
                    "position": place.get(key.key_id),
                    "available": here == AVAILABLE,
                    "reason": here.reason,
                    "sentence": sentence,
                    "available_at": iso(here.at),
                }
                for key, here, sentence in found
            ],
        }

    def reset(self, key_id: str) -> str:
        """Make a key available again; return a sentence. Raises KeyError for an unknown id."""
        self._last = None
        before = self._find(key_id)
        self._reset(before)
        after = self._find(key_id)
        now = self._sentence(after, after.overall, self.now())
        return f"key {key_id} is reset: {_forgotten(before)}; it is now: {now}"

    def set_active(self, key_id: str, active: bool, for_s: float = DISABLED_S) -> str:
        """Switch a key on, or off *for_s* seconds; return a sentence.

        Raises:
            KeyError: There is no such key.
            KeyrotError: It is switched on where it was switched off.
        """
        row = self._find(key_id)
        key = row.key
        if key.disabled:
            raise KeyrotError(f"key {key_id} is disabled: {key.disabled}; change it there")
        if row.overall.state == "unresolved":
            raise KeyrotError(f"key {key_id} has no value, so no call uses it")
        if active:
            self._reset(row)
            return f"key {key_id} is enabled"
        until = self.now() + for_s
        if row.overall.reason == DISABLED_BY_HAND:
            self._reset(row)  # else a shorter time would not count
        verdict = Verdict(
            DISABLED_BY_HAND, scope=Scope.KEY, until=until, has_known_end=True, may_wait=False
        )
        own = (key_id, key.project, key.billing_account)
        lease = Lease(*own, "", VERB, 0, 0, at=0.0, record=key.record)
        until = self.state.settle(lease, Outcome(LeaseOutcome.ABANDONED, verdict)) or until
        self._last = None
        return (
            f"key {key_id} is disabled until {_clock(until, self.now())}, until it is enabled, "
            "or until its value changes"
        )

    def check(self, key_id: str) -> str:
        """Send one request with a key; return a sentence. Raises KeyError for an unknown id."""
        self._find(key_id)
        if self.check_key is None:
            raise KeyrotError("keys cannot be checked from here; run `keyrot check --live`")
        return self.check_key(key_id)

    # ----------------------------------------------------------------------------------------------

    def _look(self) -> tuple[float, list[Row], dict[str, float]]:
        """Return when the keys were read, how they were, and their forecast.

        One look serves all for `FRESH_S`.
        """
        with self._lock:
            last = self._last
            if last is None or monotonic() - last[0] > FRESH_S:
                at, rows = self.now(), self.rows()
                rows.sort(key=lambda row: URGENCY.index(row.overall.state))
                last = self._last = monotonic(), at, rows, forecast(rows, self.activity, at)
            return last[1:]

    def _find(self, key_id: str) -> Row:
        for row in self._look()[1]:
            if row.key.key_id == key_id:
                return row
        raise KeyError(key_id)

    def _reset(self, row: Row) -> None:
        if self.on_reset is not None and row.serves:
            self.on_reset(row.key.key_id)
        else:  # the pool is other processes', or no call of this one uses the key
            self.state.reset(row.key)
        self._last = None

    def _next_keys(
        self, able: Sequence[tuple[int, Candidate]], info: CallInfo, selector: Selector
    ) -> list[str]:
        """Return the key that a call would get; several, where chance or a conversation decides."""
        first = [key for group, key in able if group == able[0][0]]
        if selector.sticky or not first:
            return [key.key_id for key in first]
        if not selector.spread:
            return [first[0].key_id]
        known = self.state.snapshot(first)
        shares = {key.key_id: _share(key, known[key.key_id], info.model) for key in first}
        least = min(shares.values())
        return [key_id for key_id, share in shares.items() if share == least]

    def _key(self, row: Row, activity: ActivityView, now: float) -> dict[str, Any]:
        key = row.key
        history = activity.histories.get(key.key_id) or make_history([()] * MINUTES)
        today = activity.today.get(key.key_id) or DayUsage()
        return {
            **_describe(row),
            "sentence": self._sentence(row, row.overall, now),
            "used": _used(row),
            "tokens_today": {
                "input": today.input_tokens,
                "output": today.output_tokens,
                "cached": today.cached_tokens,
            },
            "usd_today": today.cost_usd if self._cost_known else None,
            "usd": _budgets(row.key, row.known),
            "allowed_actions": self._allowed_actions(row),
            "history": {
                "from": iso((now // 60 - MINUTES + 1) * 60),
                "requests": list(history.requests),
                "failures": list(history.failures),
            },
        }

    def _allowed_actions(self, row: Row) -> list[str]:
        found = ["check"] if self.check_key and row.overall.state != "unresolved" else []
        if row.key.disabled:
            return found  # it is switched on where it was switched off
        if row.overall.state == "unresolved":
            return ["reset"]
        is_off = row.overall.reason == DISABLED_BY_HAND
        return [*(["enable"] if is_off else ["reset", "disable"]), *found]

    def _projects(self, shown: list[Row], activity: ActivityView) -> dict[str, Any]:
        """Return what each project of the keys that are shown has cost today, and its budget."""
        found: dict[str, Any] = {}
        for row in shown:
            name, budgets = project_name(row.key.project), _budgets(row.key, row.known)
            if name is None and not budgets:
                continue  # the key has all there is
            entry = {"usd_today": self._spent(row, activity), "usd": budgets}
            found.setdefault(name or f"key {row.key.key_id}", entry)
        return found

    def _workloads(self) -> dict[str, Any]:
        """Return what each workload that has a budget has spent of it."""
        found = [
            WorkloadBudget(name, "", "", usd=one.usd)
            for name, one in self.terms.items()
            if name and one.usd != NO_BUDGET
        ]
        known = self.state.snapshot(found) if found else {}
        return {one.key_id: {"usd": _budgets(one, known[one.key_id])} for one in found}

    def _spent(self, row: Row, activity: ActivityView) -> float | None:
        """Return what the project of a key has cost today."""
        if row.known.spent.day is not None or not self._cost_known:
            return None if row.known.spent.day is None else row.known.spent.day / NANO
        name = project_name(row.key.project)
        entry = row.key.key_id if name is None else project_entry(name)
        return activity.today.get(entry, DayUsage()).cost_usd

    def _call(self, call: CallRecord) -> dict[str, Any]:
        url = None
        if self.trace_url is not None and call.trace_id:
            url = self.trace_url.replace(TRACE_ID, call.trace_id)
        return {
            "id": f"{call.at:.6f}_{call.seconds:.6f}",
            "at": iso(call.at),
            "model": call.model,
            "seconds": round(call.seconds, 4),
            "outcome": call.outcome,
            "waited": call.waited,
            "workload": call.workload or None,
            "trace_id": call.trace_id or None,
            "trace_url": url,
            "input_tokens": call.usage.input_tokens,
            "output_tokens": call.usage.output_tokens,
            "cost_usd": call.usage.cost_usd,
            "attempts": [
                {
                    "key_id": attempt.key_id,
                    "code": attempt.code,
                    "failure": attempt.failure,
                    "seconds": round(attempt.seconds, 4),
                    "message": attempt.message,
                }
                for attempt in call.attempts
            ],
        }

    def _sentence(self, row: Row, here: Availability, now: float, model: str = "") -> str:
        """Say in a sentence how a key is; for one *model*, or for all."""
        when = f"; available again at {_clock(here.at, now)}" if here.at is not None else ""
        reason = here.reason or ""
        match here.state:
            case "available":
                return "available now"
            case "limited":
                text = here.note or _SENTENCES.get(reason) or _full_window(row, reason, model)
                return f"{text}{when}"
            case "cooling_down":
                return f"{_SENTENCES.get(reason) or f'cooling down after {reason}'}{when}"
            case "rejected":
                provider = providers.of(row.key.platform)
                quote = f': "{provider.says[reason]}"' if reason in provider.says else ""
                again = f"at {_clock(here.at, now)}" if here.at is not None else "by the next call"
                text = f"{provider.title} rejects the key ({reason}{quote}); replace its value"
                return f"{text}; tried again {again}"
            case "unresolved":
                why = self.missing.get(row.key.key_id)
                return f"no value: {why}" if why else "the secret store has no value for it"
            case _:
                return f"{_SENTENCES.get(reason, 'switched off by hand')}{when}"


def source_of(pool: Pool, *, check: Callable[[str], str] | None = None) -> PoolReport:
    """Return the report of this process's *pool*.

    Args:
        pool: The pool.
        check: Sends one request with a key, and returns a sentence.
    """
    return PoolReport(
        name=pool.name,
        state=pool.state,
        state_url=pool.state_url,
        rows=partial(pool_rows, pool),
        activity=pool.activity,
        selector=lambda: pool.selector,
        now=pool.clock.time,
        on_reset=pool.reset,
        check_key=check,
        missing=pool.secrets.unresolved,
        models=pool.models,
        trace_url=pool.trace_url,
        terms=pool.terms,
    )


SORTS: Mapping[str, Callable[[Row], Any]] = {
    "key": lambda row: row.key.key_id,
    "project": lambda row: project_name(row.key.project) or "",
    "state": lambda row: URGENCY.index(row.overall.state),
    "limit": lambda row: (
        -max((_share(row.key, row.known, used.bucket) for used in row.known.used), default=0.0)
    ),
    "requests": lambda row: -row.known.success_count - row.known.error_count,
}
"""By what keys can be sorted; most used first."""


def _is_recorded(known: KeyHealth) -> bool:
    return any((known.last_used, known.error_count, known.cooldown_until, known.used))


def _matches(row: Row, query: str, state: str) -> bool:
    if state and row.overall.state != state:
        return False
    used = (used.bucket for used in row.known.used)
    texts = (row.key.key_id, project_name(row.key.project) or "", row.key.model or "", *used)
    return not query or any(query in text.casefold() for text in texts)


def _used(row: Row) -> dict[str, Any]:
    """Return by model what the project of a key has used of each limit; of blocked models too."""
    blocked = [model for model, here in row.models.items() if here != AVAILABLE]
    counted = {used.bucket: used for used in row.known.used if counts_today(used)}
    found = {}
    for model in dict.fromkeys((*blocked, *counted)):
        here = row.models.get(model, row.overall)
        found[model] = {
            "available": here == AVAILABLE,
            "available_at": iso(here.at),
            "reason": here.reason,
            "held_back": row.held_back.get(model),
            "runs_out_at": iso(row.runs_out.get(model)),
            **_windows(row.key, counted.get(model) or Used(model, 0, 0, 0)),
        }
    return found


def _full_window(row: Row, reason: str, model: str) -> str:
    """Say which window is full: `RPM is used up: 5 of 5 requests this minute`."""
    unit, period = WINDOWS.get(reason, ("", ""))
    for used in row.known.used:
        if model and used.bucket != model:
            continue
        window = _windows(row.key, used).get(reason)
        if window and window["limit"] is not None and window["used"] >= window["limit"]:
            amounts = f"{window['used']:,} of {window['limit']:,} {unit} {period}"
            part = f" (use {row.key.use:g})" if row.key.use != 1 else ""
            return f"{reason.upper()} is used up: {amounts}{part}"
    return f"{reason.upper()} is used up"


def _share(key: Candidate, known: KeyHealth, model: str) -> float:
    """Return how much of the scarcest limit is used; see `QuotaWindows.utilization`."""
    used = next((used for used in known.used if used.bucket == model), Used(model, 0, 0, 0))
    shares = [one.ratio for one in utilization(key, used)]
    has_limits = key.limits is not NO_LIMITS or used.limits != NO_LIMITS
    return max(shares) if shares and has_limits else used.requests_minute / key.weight


def _verdict(next_keys: list[str], model: str, count: int, soonest: str | None) -> str:
    about = f"A call to {model}" if model else "A call"
    if len(next_keys) == 1:
        return f"{about} would get key {next_keys[0]} now."
    if next_keys:
        more = f" and {len(next_keys) - NAMED} more" if len(next_keys) > NAMED else ""
        names = ", ".join(next_keys[:NAMED])
        return f"{about} would get one of {len(next_keys)} keys now: {names}{more}."
    when = f" The first is available again at {soonest}." if soonest else ""
    return f"{about} would get no key now: none of {count} is available.{when}"


def _forgotten(before: Row) -> str:
    """Say what a reset has forgotten."""
    known, parts = before.known, []
    if known.cooldown_until is not None or known.rejection is not None:
        what = "rejection" if before.overall.state == "rejected" else "cooldown"
        reach = {"project": " of its project", "billing": " of its billing account"}
        scope = known.cooldown_scope or ""
        of = next((text for name, text in reach.items() if name in scope), "")
        parts.append(f"the {what}{of} ({known.cooldown_reason or known.rejection})")
    learned = sum(limit is not None for used in known.used for limit in used.limits[:3])
    if learned:
        parts.append(f"{learned} learned limit{'s' if learned > 1 else ''}")
    if not parts:
        return "there was no cooldown and no learned limit to forget"
    return f"{' and '.join(parts)} {'are' if len(parts) > 1 or learned > 1 else 'is'} forgotten"


def _clock(at: float, now: float) -> str:
    """Write a time: of today `12:30:41 UTC`, else with the date."""
    written = utc(at)
    same_day = written.date() == utc(now).date()
    return f"{written:%H:%M:%S} UTC" if same_day else f"{written:%Y-%m-%d %H:%M} UTC"
