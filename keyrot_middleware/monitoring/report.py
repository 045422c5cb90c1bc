"""What a pool reports to people: its keys, its last calls, and which key a call would get.

The web page, `keyrot status` and `keyrot explain` show the same dictionaries, of this process's
pool or of a shared state seen from outside. docs/page.md lists their fields. Times are ISO 8601 in
UTC; what is not known is None. No value of a key is in any of them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Protocol, cast

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
    History,
    ShareKind,
    Span,
    make_history,
    project_entry,
    share_entry,
)
from ..core.availability import AVAILABLE, DISABLED_BY_HAND, KEY_STATES, Availability, availability
from ..core.model import (
    GEMINI_API,
    NO_LIMITS,
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Platform,
    Scope,
    Verdict,
    project_name,
    smaller_limit,
)
from ..core.model_names import ModelNames
from ..core.selection import Selector
from ..core.text import short_time, utc
from ..core.windows import DAY_S
from ..errors import KeyrotError
from ..keys_file import DISABLED_IN_FILE, OUTSIDE_TIERS
from ..prices import is_installed
from ..runtime.pool import Pool
from ..settings import TRACE_ID
from ..state.base import KeyHealth, State, Used
from .headline import headline_of, lines_of
from .health import (
    VERB,
    HealthStatus,
    KeyView,
    blocks_of,
    counts_today,
    describe,
    iso,
    pool_views,
)

__all__ = ["PoolReport", "StatusSource", "pool_health", "source_of"]

FRESH_S = 1.0
"""How long the keys are not read again: each open page of ten thousand keys reads every 2 s."""
NAMED = 3
"""Keys that a sentence names."""
LIMIT_MAX = 500
"""Keys in one answer."""
DISABLED_S = 30 * DAY_S
"""How long a key stays off that was switched off by hand, unless it is enabled before."""
_URGENCY = {
    state: place
    for place, state in enumerate(
        ("rejected", "unresolved", "cooling_down", "limited", "available", "disabled")
    )
}
"""In which order keys are listed: problems first."""
_WITHOUT_CALLS = ("unresolved", "disabled")
"""States in which a key could not serve any call."""
_SPANS = {1: HOUR, 24: DAY}
_OF_CALLS = ("calls", "failed_calls", "waits", "input_tokens", "output_tokens", "nano_usd")
"""Counters that belong to no single key: a call may try several."""
_ENTRIES: Mapping[str, Callable[[str], str]] = {
    "": lambda _: POOL,
    "key": str,
    "project": project_entry,
    "model": partial(share_entry, "model"),
    "workload": partial(share_entry, "workload"),
}
"""Under which name each is counted."""
_WINDOWS = {
    "rpm": ("requests", "this minute"),
    "tpm": ("input tokens", "this minute"),
    "rpd": ("requests", "today"),
}


SORTS: Mapping[str, Callable[[Candidate, KeyView], Any]] = {
    "key": lambda key, _: key.key_id,
    "project": lambda key, _: project_name(key.project) or "",
    "state": lambda _, view: _URGENCY[view.overall.state],
    "limit": lambda key, view: (
        -max((_share(key, view.known, used.bucket) for used in view.known.used), default=0.0)
    ),
    "requests": lambda _, view: -view.known.success_count - view.known.error_count,
}
"""By what keys can be sorted; most used first."""


class StatusSource(Protocol):
    """Where a page or a command takes its status from. All methods block."""

    def status(
        self, *, offset: int = 0, limit: int = 100, query: str = "", state: str = "", sort: str = ""
    ) -> dict[str, Any]:
        """Return the pool and a part of its keys.

        Args:
            offset: How many keys to skip.
            limit: How many keys to return at most.
            query: Only keys whose id, project or model contains this, in any case.
            state: Only keys in this state.
            sort: One of `SORTS`, or with `-` before it; problems first by default.

        Raises:
            KeyrotError: The state cannot be read, or an argument is wrong.
        """

    def attempts(self, *, key: str = "", limit: int = 100) -> dict[str, Any]:
        """Return the latest calls, newest first; with *key*, those that used this key."""

    def history(self, *, by: str = "", name: str = "", hours: int = 1) -> dict[str, Any]:
        """Return how many requests and calls there were in each part of the last hours.

        Args:
            by: `key`, `project`, `model` or `workload`; "" for the whole pool.
            name: Which one; "" for the whole pool.
            hours: 1 or 24.

        Raises:
            KeyrotError: The state cannot be read, or an argument is wrong.
        """

    def explain(self, model: str, tokens: int = 0, workload: str = "") -> dict[str, Any]:
        """Return which key a call would get now, and why each other would not be used."""

    def reset(self, key_id: str) -> str:
        """Make a key available again; return a sentence. Raises KeyError for an unknown id."""

    def set_active(self, key_id: str, active: bool) -> str:
        """Switch a key on or off; return a sentence. Raises KeyError for an unknown id."""

    def check(self, key_id: str) -> str:
        """Send one request with a key; return a sentence. Raises KeyError for an unknown id."""


class ActivitySource(Protocol):
    """What calls did lately; see `runtime.activity.Activity`."""

    def view(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Return the activity of *key_ids* and of the pool."""

    def history(self, entry: str, span: Span, now: float) -> History:
        """Return the counts of a key, a project, a model, a workload or the pool."""

    def shares(self, kind: ShareKind, span: Span, now: float) -> dict[str, list[int]]:
        """Return the counts of each model, or of each workload."""

    def failures(self, key_id: str) -> list[CallRecord]:
        """Return the last calls in which a key failed, the latest first."""


@dataclass(slots=True)
class _Look:
    """All keys as they were at one moment, problems first."""

    at: float
    keys: list[tuple[Candidate, KeyView]]
    models: dict[str, dict[str, Availability]]
    """By model in use: whether each key that could serve it is available, by key id."""
    read_at: float


class PoolReport:
    """A `StatusSource` over a state and the keys in it."""

    def __init__(
        self,
        *,
        name: str,
        state: State,
        state_url: str,
        views: Callable[[], list[tuple[Candidate, KeyView]]],
        activity: ActivitySource,
        selector: Callable[[], Selector],
        now: Callable[[], float],
        on_reset: Callable[[str], None] | None = None,
        check: Callable[[str], str] | None = None,
        missing: Mapping[str, str] | None = None,
        models: ModelNames | None = None,
        trace_url: str | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            name: Of the pool.
            state: What its processes know.
            state_url: Without user and password.
            views: Returns all configured keys and how they are; may raise KeyrotError.
            activity: Returns what calls did lately.
            selector: Returns the keys in the order in which calls try them.
            now: The time, epoch seconds.
            on_reset: Resets a key; by default the state's own reset.
            check: Sends one request with a key, and returns a sentence.
            missing: Why a key has no value, by its id.
            models: The model names that calls count separately; None: not known from here.
            trace_url: Where a trace is shown, with `{trace_id}` in it; None: nowhere.
        """
        self._name, self._state, self._state_url = name, state, state_url
        self._views, self._activity, self._selector = views, activity, selector
        self._now, self._on_reset, self._check = now, on_reset, check
        self._missing = missing if missing is not None else {}
        self._models, self._trace_url = models, trace_url
        self._cost_known = is_installed()
        self._lock = threading.Lock()
        self._last: _Look | None = None

    def status(
        self, *, offset: int = 0, limit: int = 100, query: str = "", state: str = "", sort: str = ""
    ) -> dict[str, Any]:
        """Return the pool and a part of its keys; see `StatusSource.status`."""
        _check_page(offset, limit, state)
        look = self._look()
        found = [pair for pair in look.keys if _matches(*pair, query.casefold(), state)]
        if by := SORTS.get(sort.removeprefix("-")):
            found.sort(key=lambda pair: by(*pair), reverse=sort.startswith("-"))
        shown = found[offset : offset + limit]
        projects = dict.fromkeys(filter(None, (project_name(key.project) for key, _ in shown)))
        wanted = [key.key_id for key, _ in shown] + [project_entry(name) for name in projects]
        activity = self._activity.view(wanted, look.at)
        degraded = self._state.degraded
        summary = _summary(look, activity, cost_known=self._cost_known, degraded=degraded)
        summary["projects"] = self._projects(shown, activity)
        return {
            "pool": self._name,
            "shared": not self._state.is_local,
            "state_url": self._state_url,
            "degraded": degraded,
            "at": iso(look.at),
            "cost_known": self._cost_known,
            "has_records": any(_is_recorded(view.known) for _, view in look.keys),
            "summary": summary,
            "total": len(found),
            "offset": offset,
            "limit": limit,
            "keys": [self._key(key, view, activity, look.at) for key, view in shown],
        }

    def attempts(self, *, key: str = "", limit: int = 100) -> dict[str, Any]:
        """Return the latest calls; see `StatusSource.attempts`."""
        calls = self._activity.view((), self._now()).calls
        if key:
            calls = [call for call in calls if any(a.key_id == key for a in call.attempts)]
            known = {(call.at, call.seconds) for call in calls}
            older = self._activity.failures(key)
            calls += [call for call in older if (call.at, call.seconds) not in known]
            calls.sort(key=lambda call: -call.at)
        return {"calls": [self._call(call) for call in calls[: max(limit, 0)]]}

    def history(self, *, by: str = "", name: str = "", hours: int = 1) -> dict[str, Any]:
        """Return how many requests and calls there were; see `StatusSource.history`."""
        if by not in _ENTRIES:
            raise KeyrotError(f"by: allowed are {', '.join(filter(None, _ENTRIES))}")
        if hours not in _SPANS:
            raise KeyrotError("hours: allowed are 1 and 24")
        span, now = _SPANS[hours], self._now()
        of_requests = bool(by and name) and by in ("key", "project")
        is_kept = not of_requests or span is HOUR or len(self._look().keys) <= LARGE_POOL
        counts = make_history([()] * span.slots)
        if is_kept:
            entry = _ENTRIES[by](name) if name else POOL
            counts = self._activity.history(entry, span, now)
        shares: dict[str, list[int]] = {}
        if by in ("model", "workload"):
            shares = self._activity.shares(cast(ShareKind, by), span, now)
        most = sorted(shares, key=lambda one: (-shares[one][COUNTERS.index("calls")], one))
        return {
            "by": by,
            "name": name,
            "hours": hours,
            "at": iso(now),
            "from": iso(span.numbers(now)[0] * span.step_s),
            "step_s": span.step_s,
            "is_kept": is_kept,
            "series": {
                counter: None if of_requests and counter in _OF_CALLS else list(values)
                for counter, values in zip(COUNTERS, counts, strict=True)
            },
            "shares": [
                {"name": one, **dict(zip(COUNTERS, shares[one], strict=True))} for one in most
            ],
        }

    def explain(
        self,
        model: str,
        tokens: int = 0,
        workload: str = "",
        platform: Platform = GEMINI_API,
    ) -> dict[str, Any]:
        """Return which key a call would get now; see `StatusSource.explain`.

        Args:
            model: As in a call.
            tokens: Its input tokens.
            workload: Whose keys are preferred; "" for none.
            platform: That of its client.
        """
        if tokens < 0:
            raise KeyrotError("tokens: allowed are whole numbers from 0")
        look, selector = self._look(), self._selector()
        name, work = model.removeprefix("models/"), workload or None
        info = CallInfo(  # as in views()
            name, VERB, max(tokens, 1), workload=work, platform=platform
        )
        order = selector.ranking(info)
        counted = info if self._models is None else self._models.preview(info, self._now())
        blocks = blocks_of(self._state, counted, [key for _, key in order])
        next_keys = self._next_keys(order, blocks, counted, selector)
        chosen = next_keys[0] if next_keys else None
        place = {key.key_id: group + 1 for group, key in order}
        turn = {key.key_id: number for number, (_, key) in enumerate(order)}
        keys = []
        for key, view in sorted(look.keys, key=lambda one: turn.get(one[0].key_id, len(turn))):
            here = view.overall
            if key.key_id in place:
                here = availability([blocks.get(key.key_id)])
            sentence = self._sentence(key, view, here, look.at, info.model)
            if key.platform != platform:
                here = Availability("limited", None, "platform")
                sentence = f"serves calls of platform {key.platform} only"
            elif here == AVAILABLE:
                sentence = "available; comes later"
                if key.key_id in next_keys:
                    sentence = "would get the call" if len(next_keys) == 1 else "may get the call"
            keys.append(
                {
                    "key_id": key.key_id,
                    "project": project_name(key.project),
                    "position": place.get(key.key_id),
                    "available": here == AVAILABLE,
                    "reason": here.reason,
                    "sentence": sentence,
                    "available_at": iso(here.at),
                }
            )
        return {
            "model": info.model,
            "tokens": tokens,
            "workload": info.workload,
            "at": iso(look.at),
            "key_id": chosen,
            "sentence": _verdict(next_keys, info.model, keys),
            "keys": keys,
        }

    def reset(self, key_id: str) -> str:
        """Make a key available again; see `StatusSource.reset`."""
        self._forget()
        key, before = self._find(key_id)
        self._reset(key_id, key)
        _, after = self._find(key_id)
        now = self._sentence(key, after, after.overall, self._now())
        return f"key {key_id} is reset: {_forgotten(before)}; it is now: {now}"

    def _reset(self, key_id: str, key: Candidate) -> None:
        try:
            if self._on_reset is not None:
                self._on_reset(key_id)
            else:
                self._state.reset(key)
        except KeyError:  # it has no value, so no call uses it
            self._state.reset(key)
        self._forget()

    def set_active(self, key_id: str, active: bool) -> str:
        """Switch a key on or off; see `StatusSource.set_active`."""
        key, view = self._find(key_id)
        if key.disabled:
            raise KeyrotError(f"key {key_id} is disabled: {key.disabled}; change it there")
        if view.overall.state == "unresolved":
            raise KeyrotError(f"key {key_id} has no value, so no call uses it")
        if active:
            self._reset(key_id, key)
            return f"key {key_id} is enabled"
        until = self._now() + DISABLED_S
        verdict = Verdict(
            DISABLED_BY_HAND, scope=Scope.KEY, until=until, has_known_end=True, may_wait=False
        )
        self._state.settle(_by_hand(key), Outcome(LeaseOutcome.ABANDONED, verdict))
        self._forget()
        return (
            f"key {key_id} is disabled until {_clock(until, self._now())}, until it is enabled, "
            "or until its value changes"
        )

    def check(self, key_id: str) -> str:
        """Send one request with a key; see `StatusSource.check`."""
        self._find(key_id)
        if self._check is None:
            raise KeyrotError("keys cannot be checked from here; run `keyrot check --live`")
        return self._check(key_id)

    # ----------------------------------------------------------------------------------------------

    def _look(self) -> _Look:
        """Return how all keys are; one look serves all who ask within `FRESH_S`."""
        with self._lock:
            last = self._last
            if last is None or monotonic() - last.read_at > FRESH_S:
                last = self._last = self._read()
            return last

    def _read(self) -> _Look:
        now, keys = self._now(), self._views()
        keys.sort(key=lambda pair: _URGENCY[pair[1].overall.state])
        return _Look(now, keys, _by_model(self._state, keys), monotonic())

    def _forget(self) -> None:
        with self._lock:
            self._last = None

    def _find(self, key_id: str) -> tuple[Candidate, KeyView]:
        for found in self._look().keys:
            if found[0].key_id == key_id:
                return found
        raise KeyError(key_id)

    def _next_keys(
        self,
        order: Sequence[tuple[int, Candidate]],
        blocks: Mapping[str, Block],
        info: CallInfo,
        selector: Selector,
    ) -> list[str]:
        """Return the key that a call would get; several, where chance or a conversation decides."""
        able = [(group, key) for group, key in order if key.key_id not in blocks]
        first = [key for group, key in able if group == able[0][0]]
        if selector.sticky or not first:
            return [key.key_id for key in first]
        if not selector.spread:
            return [first[0].key_id]
        known = self._state.snapshot(first)
        shares = {key.key_id: _share(key, known[key.key_id], info.model) for key in first}
        least = min(shares.values())
        return [key_id for key_id, share in shares.items() if share == least]

    def _key(
        self, key: Candidate, view: KeyView, activity: ActivityView, now: float
    ) -> dict[str, Any]:
        known, overall = view.known, view.overall
        history, today = activity.histories.get(key.key_id), activity.today.get(key.key_id)
        today = today or DayUsage()
        return {
            "key_id": key.key_id,
            "project": project_name(key.project),
            "platform": key.platform,
            "model": key.model,
            "tier": key.tier,
            "priority": key.priority,
            "state": overall.state,
            "reason": overall.reason,
            "sentence": self._sentence(key, view, overall, now),
            "available": overall.state == "available",
            "available_at": iso(overall.at),
            "cooldown_until": iso(known.cooldown_until),
            "cooldown_reason": known.cooldown_reason,
            "cooldown_scope": known.cooldown_scope,
            "last_error": known.last_error,
            "last_used": iso(known.last_used),
            "success_count": known.success_count,
            "error_count": known.error_count,
            "used": _used(key, view),
            "tokens_today": {"input": today.input_tokens, "output": today.output_tokens},
            "usd_today": today.cost_usd if self._cost_known else None,
            "usd_spent": self._spent(key, view, activity),
            "usd_per_day": key.usd_per_day,
            "allowed_actions": _allowed_actions(key, view, can_check=self._check is not None),
            "history": {
                "from": iso((now // 60 - MINUTES + 1) * 60),
                "requests": list(history.requests) if history else [0] * MINUTES,
                "failures": list(history.failures) if history else [0] * MINUTES,
            },
        }

    def _projects(
        self, shown: list[tuple[Candidate, KeyView]], activity: ActivityView
    ) -> dict[str, Any]:
        """Return what each project of the keys that are shown has cost today, and its budget."""
        found: dict[str, Any] = {}
        for key, view in shown:
            name, budget = project_name(key.project), key.usd_per_day
            if name is None and budget is None:
                continue  # the key has all there is
            spent = self._spent(key, view, activity)
            found.setdefault(
                name or f"key {key.key_id}", {"usd_today": spent, "usd_per_day": budget}
            )
        return found

    def _spent(self, key: Candidate, view: KeyView, activity: ActivityView) -> float | None:
        """Return what the project of a key has cost today."""
        if view.known.spent_usd is not None or not self._cost_known:
            return view.known.spent_usd
        name = project_name(key.project)
        entry = key.key_id if name is None else project_entry(name)
        return activity.today.get(entry, DayUsage()).cost_usd

    def _call(self, call: CallRecord) -> dict[str, Any]:
        url = None
        if self._trace_url is not None and call.trace_id:
            url = self._trace_url.replace(TRACE_ID, call.trace_id)
        usage = call.usage
        return {
            **_call(call),
            "id": f"{call.at:.6f}",
            "trace_url": url,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cost_usd": usage.cost_usd,
        }

    def _sentence(
        self, key: Candidate, view: KeyView, here: Availability, now: float, model: str = ""
    ) -> str:
        """Say in a sentence how a key is; for one *model*, or for all."""
        when = f"; available again at {_clock(here.at, now)}" if here.at is not None else ""
        match here.state:
            case "available":
                return "available now"
            case "limited" if here.reason == "concurrency":
                return "all requests that max_concurrency allows are under way"
            case "limited" if here.reason == "usd_reserved":
                return "requests under way may spend the rest of the budget of the day"
            case "limited" if here.reason == "usd":
                return f"the budget of the day is spent{when}"
            case "limited":
                return f"{_full_window(key, view, str(here.reason), model)}{when}"
            case "cooling_down" if here.reason == "probe":
                return "one request is under way to see whether the key works again"
            case "cooling_down":
                return f"cooling down after {here.reason}{when}"
            case "rejected":
                again = f"; tried again at {_clock(here.at, now)}" if here.at is not None else ""
                return f"Google rejects the key ({here.reason}); replace its value{again}"
            case "unresolved":
                why = self._missing.get(key.key_id)
                return f"no value: {why}" if why else "the secret store has no value for it"
            case _:
                off = {DISABLED_IN_FILE: "switched off in keys.json", OUTSIDE_TIERS: OUTSIDE_TIERS}
                return f"{off.get(here.reason or '', 'switched off by hand')}{when}"


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
        views=partial(_settled_views, pool),
        activity=pool.activity,
        selector=lambda: pool.selector,
        now=pool.clock.time,
        on_reset=pool.reset,
        check=check,
        missing=pool.secrets.unresolved,
        models=pool.models,
        trace_url=pool.trace_url,
    )


def pool_health(pool: Pool) -> tuple[dict[str, HealthStatus], list[str]]:
    """Return the health of each key of this process's *pool*, and the lines of its headline."""
    now, keys = pool.clock.time(), _settled_views(pool)
    look = _Look(now, keys, _by_model(pool.state, keys), monotonic())
    activity = pool.activity.view((), now)
    summary = _summary(look, activity, cost_known=False, degraded=pool.state.degraded)
    lines = lines_of(summary["headline"], lambda at: f"at {short_time(at)}")
    return describe(keys, now), list(lines)


def _settled_views(pool: Pool) -> list[tuple[Candidate, KeyView]]:
    pool.settle_abandoned()
    return pool_views(pool)


def _is_recorded(known: KeyHealth) -> bool:
    return any((known.last_used, known.error_count, known.cooldown_until, known.used))


def _check_page(offset: int, limit: int, state: str) -> None:
    if offset < 0 or not 0 <= limit <= LIMIT_MAX:
        raise KeyrotError(f"offset: allowed from 0; limit: allowed from 0 to {LIMIT_MAX}")
    if state and state not in KEY_STATES:
        raise KeyrotError(f"state: allowed are {', '.join(KEY_STATES)}")


def _matches(key: Candidate, view: KeyView, query: str, state: str) -> bool:
    if state and view.overall.state != state:
        return False
    texts = (key.key_id, project_name(key.project) or "", key.model or "", *view.models)
    return not query or any(query in text.casefold() for text in texts)


def _by_model(
    state: State, keys: list[tuple[Candidate, KeyView]]
) -> dict[str, dict[str, Availability]]:
    """Return by model in use whether each key that could serve it is available.

    A key that was not used with a model has used nothing of it: what blocks it for every model
    counts.
    """
    users: dict[str, set[Platform]] = {}
    for key, view in keys:
        for model in view.models:
            users.setdefault(model, set()).add(key.platform)
    able = [(key, view) for key, view in keys if view.overall.state not in _WITHOUT_CALLS]
    others = [key for key, view in able if users.keys() - view.models.keys()]
    blocks = blocks_of(state, CallInfo("", VERB, tokens=1), others) if others else {}
    return {
        model: {
            key.key_id: view.models.get(model) or availability([blocks.get(key.key_id)])
            for key, view in able
            if key.platform in users[model]
        }
        for model in sorted(users)
    }


def _next(found: Mapping[str, Availability]) -> dict[str, Any]:
    """Return the key that is available first, and when, of those that are not."""
    times = [(one.at, key_id) for key_id, one in found.items() if one.at is not None]
    at, key_id = min(times, default=(None, None))
    return {"key_id": key_id, "available_at": iso(at)}


def _summary(
    look: _Look, activity: ActivityView, *, cost_known: bool, degraded: bool
) -> dict[str, Any]:
    keys = look.keys
    states = Counter(view.overall.state for _, view in keys)
    hour = activity.histories.get(POOL) or make_history([])
    today = activity.today.get(POOL) or DayUsage()
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
        "keys": len(keys),
        "available": states["available"],
        "states": {state: states[state] for state in KEY_STATES},
        "next": _next(
            {
                key.key_id: view.overall
                for key, view in keys
                if view.overall.state not in _WITHOUT_CALLS
            }
        ),
        "models": {
            model: {
                "available": sum(one == AVAILABLE for one in found.values()),
                "keys": len(found),
                "next": _next(found),
            }
            for model, found in look.models.items()
        },
        "last_hour": dict.fromkeys(last_hour) if degraded else last_hour,
        "today": dict.fromkeys(amounts) if degraded else amounts,
    }
    return {**summary, "headline": headline_of(summary)}


def _used(key: Candidate, view: KeyView) -> dict[str, Any]:
    """Return what is used of each limit, by model."""
    blocked = [model for model, here in view.models.items() if here != AVAILABLE]
    counted = {used.bucket: used for used in view.known.used if counts_today(used)}
    found = {}
    for model in dict.fromkeys((*blocked, *counted)):
        here = view.models.get(model, view.overall)
        found[model] = {
            "available": here == AVAILABLE,
            "available_at": iso(here.at),
            "reason": here.reason,
            **_windows(key.limits, counted.get(model) or Used(model, 0, 0, 0)),
        }
    return found


def _windows(configured: Limits, used: Used) -> dict[str, dict[str, Any]]:
    amounts = (used.requests_minute, used.tokens_minute, used.requests_day)
    found = {}
    for name, amount, learned, own in zip(
        ("rpm", "tpm", "rpd"), amounts, used.limits[:3], configured[:3], strict=True
    ):
        limit = smaller_limit(own, learned)
        source = None if limit is None else "configured" if limit == own else "learned"
        found[name] = {"used": amount, "limit": limit, "source": source}
    return found


def _full_window(key: Candidate, view: KeyView, reason: str, model: str) -> str:
    """Say which window is full: `RPM is used up: 5 of 5 requests this minute`."""
    unit, period = _WINDOWS.get(reason, ("", ""))
    for used in view.known.used:
        if model and used.bucket != model:
            continue
        window = _windows(key.limits, used).get(reason)
        if window and window["limit"] is not None and window["used"] >= window["limit"]:
            amounts = f"{window['used']:,} of {window['limit']:,} {unit} {period}"
            return f"{reason.upper()} is used up: {amounts}"
    return f"{reason.upper()} is used up"


def _share(key: Candidate, known: KeyHealth, model: str) -> float:
    """Return how much of the scarcest limit is used; see `QuotaWindows.utilization`."""
    used = next((used for used in known.used if used.bucket == model), Used(model, 0, 0, 0))
    if key.limits is NO_LIMITS and used.limits == NO_LIMITS:
        return used.requests_minute / key.weight
    windows = _windows(key.limits, used).values()
    known_shares = [window["used"] / window["limit"] for window in windows if window["limit"]]
    return max(known_shares) if known_shares else used.requests_minute / key.weight


def _verdict(next_keys: list[str], model: str, keys: list[dict[str, Any]]) -> str:
    about = f"A call to {model}" if model else "A call"
    if len(next_keys) == 1:
        return f"{about} would get key {next_keys[0]} now."
    if next_keys:
        more = f" and {len(next_keys) - NAMED} more" if len(next_keys) > NAMED else ""
        names = ", ".join(next_keys[:NAMED])
        return f"{about} would get one of {len(next_keys)} keys now: {names}{more}."
    times = [key["available_at"] for key in keys if key["available_at"] is not None]
    soonest = f" The first is available again at {min(times)}." if times else ""
    return f"{about} would get no key now: none of {len(keys)} is available.{soonest}"


def _allowed_actions(key: Candidate, view: KeyView, *, can_check: bool) -> list[str]:
    """Return what may be done with a key by hand."""
    found = ["check"] if can_check and view.overall.state != "unresolved" else []
    if key.disabled:
        return found  # it is switched on where it was switched off
    if view.overall.state == "unresolved":
        return ["reset"]
    is_off = view.overall.reason == DISABLED_BY_HAND
    return [*(["enable"] if is_off else ["reset", "disable"]), *found]


def _forgotten(before: KeyView) -> str:
    """Say what a reset has forgotten."""
    known, parts = before.known, []
    if known.cooldown_until is not None:
        what = "rejection" if before.overall.state == "rejected" else "cooldown"
        reach = {"project": " of its project", "billing": " of its billing account"}
        scope = known.cooldown_scope or ""
        of = next((text for name, text in reach.items() if name in scope), "")
        parts.append(f"the {what}{of} ({known.cooldown_reason})")
    learned = sum(limit is not None for used in known.used for limit in used.limits[:3])
    if learned:
        parts.append(f"{learned} learned limit{'s' if learned > 1 else ''}")
    if not parts:
        return "there was no cooldown and no learned limit to forget"
    return f"{' and '.join(parts)} {'are' if len(parts) > 1 or learned > 1 else 'is'} forgotten"


def _call(call: CallRecord) -> dict[str, Any]:
    return {
        "at": iso(call.at),
        "model": call.model,
        "seconds": round(call.seconds, 4),
        "outcome": call.outcome,
        "waited": call.waited,
        "workload": call.workload or None,
        "trace_id": call.trace_id or None,
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


def _by_hand(key: Candidate) -> Lease:
    """Make a lease of *key* under which nothing was booked."""
    own = (key.key_id, key.project, key.billing_account)
    return Lease(*own, "", VERB, 0, 0, at=0.0, record=key.record)


def _clock(at: float, now: float) -> str:
    """Write a time: of today `12:30:41 UTC`, else with the date."""
    written = utc(at)
    same_day = written.date() == utc(now).date()
    return f"{written:%H:%M:%S} UTC" if same_day else f"{written:%Y-%m-%d %H:%M} UTC"
