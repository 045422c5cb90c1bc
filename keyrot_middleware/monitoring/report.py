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
from typing import Any, Protocol

from ..core.activity import MINUTES, POOL, ActivityView, CallRecord, DayUsage, project_entry
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
    project_label,
    smaller_limit,
)
from ..core.model_names import ModelNames
from ..core.selection import Selector
from ..core.text import utc
from ..core.windows import DAY_S
from ..errors import KeyrotError
from ..keys_file import DISABLED_IN_FILE, OUTSIDE_TIERS
from ..prices import is_installed
from ..runtime.pool import Pool
from ..state.base import KeyHealth, State, Used
from .health import VERB, KeyView, blocks_of, counts_today, iso, pool_views

__all__ = ["PoolReport", "StatusSource", "source_of"]

FRESH_S = 1.0
"""How long the keys are not read again: each open page of ten thousand keys reads every 2 s."""
NAMED = 3
"""Keys that a sentence names."""
LIMIT_MAX = 500
"""Keys in one answer."""
DISABLED_S = 30 * DAY_S
"""How long a key stays off that was switched off by hand, unless it is enabled before."""
_WINDOWS = {
    "rpm": ("requests", "this minute"),
    "tpm": ("input tokens", "this minute"),
    "rpd": ("requests", "today"),
}


class StatusSource(Protocol):
    """Where a page or a command takes its status from. All methods block."""

    def status(
        self, *, offset: int = 0, limit: int = 100, query: str = "", state: str = ""
    ) -> dict[str, Any]:
        """Return the pool and a part of its keys.

        Args:
            offset: How many keys to skip.
            limit: How many keys to return at most.
            query: Only keys whose id, project or model contains this, in any case.
            state: Only keys in this state.

        Raises:
            KeyrotError: The state cannot be read, or an argument is wrong.
        """

    def attempts(self, *, key: str = "", limit: int = 100) -> dict[str, Any]:
        """Return the latest calls, newest first; with *key*, those that used this key."""

    def explain(self, model: str, tokens: int = 0, workload: str = "") -> dict[str, Any]:
        """Return which key a call would get now, and why each other would not be used."""

    def reset(self, key_id: str) -> str:
        """Make a key available again; return a sentence. Raises KeyError for an unknown id."""

    def set_active(self, key_id: str, active: bool) -> str:
        """Switch a key on or off; return a sentence. Raises KeyError for an unknown id."""

    def check(self, key_id: str) -> str:
        """Send one request with a key; return a sentence. Raises KeyError for an unknown id."""


@dataclass(slots=True)
class _Look:
    """All keys as they were at one moment."""

    at: float
    keys: list[tuple[Candidate, KeyView]]
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
        activity: Callable[[Iterable[str], float], ActivityView],
        selector: Callable[[], Selector],
        now: Callable[[], float],
        on_reset: Callable[[str], None] | None = None,
        check: Callable[[str], str] | None = None,
        missing: Mapping[str, str] | None = None,
        models: ModelNames | None = None,
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
        """
        self._name, self._state, self._state_url = name, state, state_url
        self._views, self._activity, self._selector = views, activity, selector
        self._now, self._on_reset, self._check = now, on_reset, check
        self._missing = missing if missing is not None else {}
        self._models = models
        self._cost_known = is_installed()
        self._lock = threading.Lock()
        self._last: _Look | None = None

    def status(
        self, *, offset: int = 0, limit: int = 100, query: str = "", state: str = ""
    ) -> dict[str, Any]:
        """Return the pool and a part of its keys; see `StatusSource.status`."""
        _check_page(offset, limit, state)
        look = self._look()
        found = [pair for pair in look.keys if _matches(*pair, query.casefold(), state)]
        shown = found[offset : offset + limit]
        projects = dict.fromkeys(project_label(key.project) for key, _ in shown)
        wanted = [key.key_id for key, _ in shown] + [project_entry(name) for name in projects]
        activity = self._activity(wanted, look.at)
        summary = _summary(look.keys, activity, cost_known=self._cost_known)
        summary["projects"] = self._projects(shown, activity)
        return {
            "pool": self._name,
            "shared": not self._state.is_local,
            "state_url": self._state_url,
            "degraded": self._state.degraded,
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
        calls = self._activity((), self._now()).calls
        some = [call for call in calls if not key or any(a.key_id == key for a in call.attempts)]
        return {"calls": [_call(call) for call in some[: max(limit, 0)]]}

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
        keys = []
        for key, view in sorted(
            look.keys, key=lambda one: place.get(one[0].key_id, len(place) + 1)
        ):
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
                    "project": project_label(key.project),
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
        key, _ = self._find(key_id)
        try:
            if self._on_reset is not None:
                self._on_reset(key_id)
            else:
                self._state.reset(key)
        except KeyError:  # it has no value, so no call uses it
            self._state.reset(key)
        self._forget()
        return f"key {key_id} is reset: its cooldowns and learned limits are forgotten"

    def set_active(self, key_id: str, active: bool) -> str:
        """Switch a key on or off; see `StatusSource.set_active`."""
        key, view = self._find(key_id)
        if key.disabled:
            raise KeyrotError(f"key {key_id} is disabled: {key.disabled}; change it there")
        if view.overall.state == "unresolved":
            raise KeyrotError(f"key {key_id} has no value, so no call uses it")
        if active:
            self.reset(key_id)
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
                last = self._last = _Look(self._now(), self._views(), monotonic())
            return last

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
            "project": project_label(key.project),
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
            "usd_per_day": key.usd_per_day,
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
            name, spent = project_label(key.project), view.known.spent_usd
            if spent is None and self._cost_known:
                spent = activity.today.get(project_entry(name), DayUsage()).cost_usd
            found.setdefault(name, {"usd_today": spent, "usd_per_day": key.usd_per_day})
        return found

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
        activity=pool.activity.view,
        selector=lambda: pool.selector,
        now=pool.clock.time,
        on_reset=pool.reset,
        check=check,
        missing=pool.secrets.unresolved,
        models=pool.models,
    )


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
    texts = (key.key_id, project_label(key.project), key.model or "", *view.models)
    return not query or any(query in text.casefold() for text in texts)


def _summary(
    keys: list[tuple[Candidate, KeyView]], activity: ActivityView, *, cost_known: bool
) -> dict[str, Any]:
    states = Counter(view.overall.state for _, view in keys)
    models: dict[str, list[int]] = {}
    for _, view in keys:
        for model, here in view.models.items():
            counts = models.setdefault(model, [0, 0])
            counts[0] += here == AVAILABLE
            counts[1] += 1
    hour = activity.histories.get(POOL)
    today = activity.today.get(POOL) or DayUsage()
    return {
        "keys": len(keys),
        "available": states["available"],
        "states": {state: states[state] for state in KEY_STATES},
        "models": {
            model: {"available": able, "keys": count} for model, (able, count) in models.items()
        },
        "last_hour": {
            "requests": sum(hour.requests) if hour else 0,
            "failures": sum(hour.failures) if hour else 0,
            "waits": activity.waits,
        },
        "today": {
            "input_tokens": today.input_tokens,
            "output_tokens": today.output_tokens,
            "cost_usd": today.cost_usd if cost_known else None,
        },
    }


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


def _call(call: CallRecord) -> dict[str, Any]:
    return {
        "at": iso(call.at),
        "model": call.model,
        "seconds": round(call.seconds, 4),
        "outcome": call.outcome,
        "waited": call.waited,
        "attempts": [
            {
                "key_id": attempt.key_id,
                "code": attempt.code,
                "failure": attempt.failure,
                "seconds": round(attempt.seconds, 4),
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
