"""What a page, commands, metrics and alerts read of one pool, and what an operator may change.

docs/page.md lists the fields of each answer. One look serves all for a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, cast

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
    Pair,
    ShareKind,
    make_history,
    project_entry,
    share_entry,
)
from ..core.answering import Answered
from ..core.counting import ModelNames
from ..core.judgement import (
    AVAILABLE,
    DISABLED_BY_HAND,
    KEY_STATES,
    Availability,
    JudgedReplies,
    Judgement,
    UnknownReply,
    judge,
    judge_replies,
)
from ..core.ledger import KeyHealth
from ..core.model import (
    DEFAULT_PLATFORM,
    NANO,
    NO_BUDGET,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    Scope,
    Verdict,
    WorkloadBudget,
    project_name,
)
from ..core.selection import Selector
from ..core.windows import DAY_S, HOUR_S, next_midnight
from ..errors import KeyrotError
from ..forks import process_name
from ..locks import Lock
from ..prices import is_installed
from ..runtime.activity_recorder import ActivityRecorder
from ..runtime.call_settings import CallSettings, Said, read_said, read_settings
from ..runtime.pool import Pool
from ..runtime.processes import Processes, find_processes
from ..runtime.rotations import emptied_at
from ..settings import TRACE_ID
from ..state import State
from ..state.base import OtherVersionError
from . import view
from .calls_now import judge_calls, judge_of, read_runs
from .view import HealthStatus, Look, Row, clock, iso, model_label, sentence_of

FRESH_S = 1.0
"""How long the keys are not read again: each open page of ten thousand keys reads every 2 s."""
NAMED = 3
"""Keys that a sentence names."""
LIMIT_MAX = 500
"""Keys in one answer."""
LEFT_KEYS = 100
"""Keys of which it is said what is left of each limit."""
DISABLED_S = int(30 * DAY_S)
"""How long a key stays off that was switched off by hand, unless it is enabled before."""
_SPANS = {1: HOUR, 24: DAY}
_OF_DAY = ("input_tokens", "output_tokens", "estimated_tokens", "unpriced_calls")
_OF_HOUR = ("calls", "failed_calls", "requests", "failures", "waits")
_OF_CALLS = COUNTERS[3:]
"""Counters that belong to no single key: a call may try several."""
_AN_HOUR_ONLY = (
    f"In a pool of more than {LARGE_POOL} keys, a key and a project are counted for one hour only."
)


@dataclass(slots=True, kw_only=True)
class PoolReport:
    """What a page and the commands show of one pool. All methods block."""

    name: str
    state: State
    state_url: str
    """Without user and password."""
    rows: Callable[[], list[Row]]
    """How all configured keys are; may raise KeyrotError."""
    activity: ActivityRecorder
    selector: Callable[[], Selector]
    """The keys in the order in which calls try them."""
    now: Callable[[], float]
    on_reset: Callable[[str], None] | None = None
    """Resets a key; None: the state does."""
    models: ModelNames | None = None
    """The model names that calls count separately; None: not known from here."""
    trace_url: str | None = None
    """Where a trace is shown, with `{trace_id}` in it."""
    problem: Callable[[], str] = str
    """Why this process does not read its keys.json; for a state that it alone uses."""
    own: CallSettings = field(default_factory=CallSettings)
    """With what calls are made, if no process says it."""
    _cost_known: bool = field(default_factory=is_installed)
    _lock: Lock = field(default_factory=Lock)
    _last: tuple[float, Look] | None = None
    """The last look, and when it was by `monotonic()`."""

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
        seen = self.look()
        at, rows = seen.at, seen.rows
        matching = [row for row in rows if _matches(row, query.casefold(), state)]
        if by := SORTS.get(sort.removeprefix("-")):
            matching.sort(key=by, reverse=sort.startswith("-"))
        shown = matching[offset : offset + limit]
        projects = dict.fromkeys(filter(None, (project_name(row.key.project) for row in shown)))
        wanted = [row.key.key_id for row in shown] + [project_entry(name) for name in projects]
        log = self.activity.read()
        activity = log.view(wanted, at)
        summary = self.summary(seen, activity)
        unpriced = bool(summary["today"]["unpriced_calls"])
        summary["today"]["unpriced_models"] = [*log.unpriced("model", at)] if unpriced else []
        summary["projects"] = self._projects(shown, activity)
        summary["workloads"] = self._workloads(log.unpriced("workload", at) if unpriced else {})
        return {
            "pool": self.name,
            "shared": not self.state.is_local,
            "state_url": self.state_url,
            "degraded": self.state.degraded,
            "at": iso(at),
            "cost_known": self._cost_known,
            "has_records": any(_is_recorded(row.known) for row in rows),
            "summary": summary,
            "total": len(matching),
            "offset": offset,
            "limit": limit,
            "keys": [self._key(row, activity, at) for row in shown],
        }

    def what_is_left(self) -> dict[str, Any]:
        """Return what is left of each limit, and until when: by model of today, and by key.

        docs/serve.md lists the fields. Of a large pool only the first `LEFT_KEYS` keys are there,
        problems first.

        Raises:
            KeyrotError: The state cannot be read.
        """
        seen = self.look()
        rows, zone = seen.rows, self.activity.zone
        models = [
            {**_judged(one, seen), "left": view.left_of_all(rows, one, seen.at, zone)}
            for one in seen.calls
        ]
        keys = [
            {
                "key_id": row.key.key_id,
                "state": row.overall.state,
                "available_at": iso(row.overall.at),
                "ends_by": row.overall.ends_by,
                "left": {name: view.left_of(row, name, seen.at, zone) for name in row.models},
            }
            for row in rows[:LEFT_KEYS]
        ]
        return {
            "pool": self.name,
            "at": iso(seen.at),
            "degraded": self.state.degraded,
            "models": models,
            "total_keys": len(rows),
            "keys": keys,
        }

    def attempts(self, *, key: str = "", limit: int = 100) -> dict[str, Any]:
        """Return the latest calls, newest first; with *key*, those that used this key."""
        log = self.activity.read()
        calls = log.view((), self.now()).calls
        if key:
            tried = [call for call in calls if any(a.key_id == key for a in call.attempts)]
            older = [call for call in log.failures(key) if call not in tried]
            calls = sorted([*tried, *older], key=lambda call: -call.at)
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
        span, now, log = _SPANS[hours], self.now(), self.activity.read()
        of_requests = bool(name) and by in ("key", "project")
        unknown = view.UNKNOWN if self.state.degraded else None
        if of_requests and span is not HOUR and len(self.look().rows) > LARGE_POOL:
            unknown = _AN_HOUR_ONLY
        counts = make_history([()] * span.slots)
        shares: dict[str, list[int]] = {}
        entry = {"": POOL, "key": name, "project": project_entry(name)}.get(by if name else "")
        if by in ("model", "workload"):
            shares = log.shares(cast(ShareKind, by), span, now)
            entry = share_entry(cast(ShareKind, by), name) if name else POOL
        if not unknown:
            counts = log.history(entry or POOL, span, now)
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
        seen, selector = self.look(), self.selector()
        now, rows, settings = seen.at, seen.rows, self.settings(seen.at)
        info = settings.info(model.removeprefix("models/"), workload or None, platform)
        info = info._replace(tokens=max(tokens, 1))
        order = selector.ranking(info)
        counted = info if self.models is None else self.models.preview(info, now)
        keys = [key for _, key in order]
        blocks, rejected = view.blocks_of(self.state, counted, keys), _rejected(rows)
        log = self.activity.read()
        pair = Pair(platform, info.model, workload)
        runs = read_runs(log, now)(pair, log.pairs(now))
        following, next_model = settings.next_models.get(info.model), None
        if following and following != info.model:
            judge_pair = judge_of(self.state, selector, log, settings, rejected, now=now)
            next_model = judge_pair(pair._replace(model=following))
        judged = judge(
            info,
            keys,
            blocks,
            now=now,
            rejected=rejected,
            runs=runs,
            wait_s=settings.wait_s,
            next_model=next_model,
        )
        able = [one for one in order if one[1].key_id not in blocks.keys() | rejected.keys()]
        next_keys = self._next_keys(able, counted, selector)
        place = {key.key_id: group + 1 for group, key in order}
        turn = {key.key_id: number for number, (_, key) in enumerate(order)}
        key_rows = []
        for row in sorted(rows, key=lambda row: turn.get(row.key.key_id, len(turn))):
            key_id, here = row.key.key_id, row.overall
            if key_id in place:
                here = view.of_key(row.known, blocks.get(key_id))
            if row.key.platform != platform:
                here = Availability("limited", None, "platform")
            text = view.sentence(row, here, counted.model)
            if here == AVAILABLE:
                text = "available; comes later"
                if key_id in next_keys:
                    text = "would get the call" if len(next_keys) == 1 else "may get the call"
            key_rows.append(
                {
                    "key_id": key_id,
                    "project": project_name(row.key.project),
                    "position": place.get(key_id),
                    "may_get_it": key_id in next_keys,
                    "available": here == AVAILABLE,
                    "reason": here.reason,
                    "sentence": text,
                    "available_at": iso(here.at),
                    "ends_by": here.ends_by,
                }
            )
        by = info.replaced_by or _answered_by(seen, info)
        sentence = _verdict(next_keys, judged, now)
        if by:
            sentence += f" {providers.how_answered(platform, info.model, by)}."
        return {
            "model": info.model,
            "answered_by": by or None,
            "tokens": tokens,
            "workload": info.workload,
            "at": iso(now),
            "key_id": next_keys[0] if next_keys else None,
            "next_model": judged.next_model or None,
            "answer": judged.answer,
            "sentence": sentence,
            "keys": key_rows,
        }

    def reset(self, key_id: str) -> str:
        """Make a key available again; return a sentence. Raises KeyError for an unknown id."""
        self._last = None
        try:
            self._reset(self._find(key_id))
        except OtherVersionError:  # a record cannot be read: this may end it
            (key,) = self.state.with_values([self.selector().keys[key_id]])
            self.state.reset(key)
        after = self._find(key_id)
        return f"key {key_id} is reset; it is now: {view.sentence(after, after.overall)}"

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
        is_unknown = not self.state.is_local and key.record == key_id
        if is_unknown or row.overall.state == "unresolved":
            raise KeyrotError(
                f"no process of the pool has a value for key {key_id} yet, so there is nothing to "
                'switch; "active": false in keys.json keeps it from all of them'
            )
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
        lease = Lease(*own, "", "disable", 0, 0, at=0.0, record=key.record)
        until = self.state.settle(lease, Outcome(LeaseOutcome.ABANDONED, verdict)) or until
        self._last = None
        return (
            f"key {key_id} is disabled until {clock(until, self.now())}, until it is enabled, "
            "or until its value changes"
        )

    # ----------------------------------------------------------------------------------------------

    def settings(self, now: float) -> CallSettings:
        """Return with what calls are made, as the processes of the pool say."""
        return read_settings(self._read_said(), now, self.own)

    def _read_said(self) -> list[Said]:
        return [] if self.state.is_local else read_said(self.state)

    def look(self, *, anew: bool = False) -> Look:
        """Return how the pool is; one look serves all for `FRESH_S`, but one that must be *anew*.

        Raises:
            KeyrotError: The state cannot be read.
        """
        with self._lock:
            last = self._last
            if last is None or anew or monotonic() - last[0] > FRESH_S:
                last = self._last = monotonic(), self._look()
            return last[1]

    def _look(self) -> Look:
        at, rows, said = self.now(), self.rows(), self._read_said()
        settings, selector = read_settings(said, at, self.own), self.selector()
        calls = judge_calls(self.state, selector, self.activity, settings, _rejected(rows), now=at)
        runs_out = view.forecast(rows, self.activity, at)
        rows.sort(key=lambda row: view.URGENCY.index(row.overall.state))
        view.quote(rows, self.activity.read())
        processes = find_processes(self.state, said, at)
        if not said and (problem := self.problem()):
            processes = Processes(unread=(process_name(),), problem=problem)
        log = self.activity.read()
        held = log.limits(at)
        for row in rows:
            row.held = held.get(row.key.key_id, {})
        emptied = emptied_at(self.state, at)
        return Look(at, rows, calls, runs_out, emptied, processes, log.answers(at))

    def summary(self, seen: Look, activity: ActivityView) -> dict[str, Any]:
        """Return what is said of the whole pool."""
        rows, degraded = seen.rows, self.state.degraded
        states = Counter(row.overall.state for row in rows)
        hour = activity.histories.get(POOL) or make_history([])
        today = activity.today.get(POOL) or DayUsage()
        end = next_midnight(seen.at - DAY_S - HOUR_S, self.activity.zone)
        later = next_midnight(end, self.activity.zone)
        amounts = {name: getattr(today, name) for name in _OF_DAY}
        cost = {"cost_usd": today.cost_usd if self._cost_known else None}
        last_hour = {n: None if degraded else sum(getattr(hour, n)) for n in _OF_HOUR}
        return {
            "keys": len(rows),
            "available": states["available"],
            "states": {state: states[state] for state in KEY_STATES},
            "calls": [_judged(one, seen) for one in seen.calls],
            "answers": [_answer(one) for one in seen.answers],
            "last_hour": last_hour,
            "today": dict.fromkeys(amounts | cost) if degraded else amounts | cost,
            "processes": {
                "running": len(seen.processes.names),
                "differ": [*seen.processes.differing],
                "differences": [*seen.processes.differences],
                "keys_file": seen.processes.problem or None,
            },
            "midnight": iso(later if later <= seen.at else end),
            "headline": {
                **view.headline(seen, last_hour, degraded=degraded),
                "unknown": [] if degraded else self._unknown_replies(seen),
            },
        }

    def _unknown_replies(self, seen: Look) -> list[str]:
        """Return what providers replied today that no row knows, so that people can report it."""
        platforms = {row.key.key_id: row.key.platform for row in seen.rows}
        counts: Counter[tuple[str, str]] = Counter()
        for one in self._unknown_today(seen):
            if one.key_id in platforms:
                counts[platforms[one.key_id], one.said] += one.refused[0]
        judged = self.replies(seen) if counts else []
        lines = view.lines_of_replies(judged, counts, able_platforms(seen))
        for whose in judged:
            counts.pop((whose.platform, whose.said), None)
        for (platform, said), n in counts.most_common(view.SENTENCES):
            lines.append(f"{view.replies_not_known(n, platform)}: {said}")
        return lines[: view.SENTENCES]

    def _unknown_today(self, seen: Look) -> list[UnknownReply]:
        """Return what keys were replied today; when is not said."""
        counted = self.activity.read().shares("unknown", DAY, seen.at)
        names = [(name.partition("\n"), count) for name, (count, *_) in counted.items()]
        return [UnknownReply(key_id, said, {0: n}) for (key_id, _, said), n in names]

    def replies(self, seen: Look) -> list[JudgedReplies]:
        """Judge whose the replies of the last hour are that no row knows.

        And those before, if a key is set aside for them.
        """
        replies = self.activity.read().unknown(seen.at)
        known = {row.key.key_id: row.known for row in seen.rows}
        fresh = {one.key_id for one in replies}
        aside = {key_id for key_id, one in known.items() if one.set_aside is not None} - fresh
        if aside:
            replies += [one for one in self._unknown_today(seen) if one.key_id in aside]
        return judge_replies(replies, [row.key for row in seen.rows], known, seen.at)

    def _find(self, key_id: str) -> Row:
        for row in self.look().rows:
            if row.key.key_id == key_id:
                return row
        raise KeyError(key_id)

    def _reset(self, row: Row) -> None:
        if self.on_reset is not None and row.overall.state not in ("unresolved", "disabled"):
            self.on_reset(row.key.key_id)
        else:  # the pool is other processes', or no call of this one uses the key
            self.state.reset(row.key)
        self._last = None

    def _next_keys(
        self, able: Sequence[tuple[int, Candidate]], info: CallInfo, selector: Selector
    ) -> list[str]:
        """Return the key that a call would get; several, where chance or a conversation decides."""
        first = [key for group, key in able if group == able[0][0]]
        if selector.strategy == "sticky" or not first:
            return [key.key_id for key in first]
        if selector.strategy == "fill":
            return [first[0].key_id]
        return view.least_used(first, self.state.snapshot(first), info.model)

    def _key(self, row: Row, activity: ActivityView, now: float) -> dict[str, Any]:
        key = row.key
        history = activity.histories.get(key.key_id) or make_history([()] * MINUTES)
        today = activity.today.get(key.key_id) or DayUsage()
        return {
            **view.describe(row, now),
            "tokens_today": {
                "input": today.input_tokens,
                "output": today.output_tokens,
                "cached": today.cached_tokens,
            },
            "usd_today": today.cost_usd if self._cost_known else None,
            "unpriced_calls_today": today.unpriced_calls,
            "allowed_actions": _allowed_actions(row),
            "history": {
                "from": iso((now // 60 - MINUTES + 1) * 60),
                "requests": list(history.requests),
                "failures": list(history.failures),
            },
        }

    def _projects(self, shown: list[Row], activity: ActivityView) -> dict[str, Any]:
        """Return what each project of the keys that are shown has cost today, and its budget."""
        projects: dict[str, Any] = {}
        for row in shown:
            name, usd = project_name(row.key.project), view.budgets(row.key, row.known)
            if name is None and not usd:
                continue  # the key has all there is
            today = activity.today.get(project_entry(name) if name else row.key.key_id, DayUsage())
            entry = {"usd_today": self._spent(row, today), "usd": usd}
            entry["unpriced_calls_today"] = today.unpriced_calls
            projects.setdefault(name or f"key {row.key.key_id}", entry)
        return projects

    def _workloads(self, unpriced: Mapping[str, int]) -> dict[str, Any]:
        """Return what each workload that has a budget has spent of it."""
        named = [
            WorkloadBudget(name, "", "", usd=one.usd)
            for name, one in self.settings(self.now()).terms.items()
            if name and one.usd != NO_BUDGET
        ]
        known = self.state.snapshot(named) if named else {}
        return {
            one.key_id: {
                "usd": view.budgets(one, known[one.key_id]),
                "unpriced_calls_today": unpriced.get(one.key_id, 0),
            }
            for one in named
        }

    def _spent(self, row: Row, today: DayUsage) -> float | None:
        """Return what the project of a key has cost today; its budget knows best."""
        spent = row.known.spent.day
        if spent or (spent is not None and not today.unpriced_calls):
            return spent / NANO
        return today.cost_usd if self._cost_known else None

    def _call(self, call: CallRecord) -> dict[str, Any]:
        url = None
        if self.trace_url is not None and call.trace_id:
            url = self.trace_url.replace(TRACE_ID, call.trace_id)
        usage = {name: getattr(call.usage, name) for name in _OF_USAGE}
        attempts = [
            {n: getattr(one, n) for n in _OF_ATTEMPT} | {"seconds": round(one.seconds, 4)}
            for one in call.attempts
        ]
        return {
            "id": f"{call.at:.6f}_{call.seconds:.6f}",
            "at": iso(call.at),
            "seconds": round(call.seconds, 4),
            **{name: getattr(call, name) for name in ("model", "outcome", "waited")},
            **{name: getattr(call, name) or None for name in ("workload", "trace_id")},
            "trace_url": url,
            **usage,
            "attempts": attempts,
        }


_OF_USAGE = ("input_tokens", "output_tokens", "cost_usd", "estimated")
_OF_ATTEMPT = ("key_id", "code", "failure", "message")


def source_of(pool: Pool) -> PoolReport:
    """Return the report of this process's *pool*."""
    return PoolReport(
        name=pool.name,
        state=pool.state,
        state_url=pool.state_url,
        rows=partial(pool_rows, pool),
        activity=pool.activity,
        selector=lambda: pool.selector,
        now=pool.clock.time,
        on_reset=pool.reset,
        models=pool.models,
        trace_url=pool.trace_url,
        own=pool.call_settings,
        problem=lambda: pool.keys_problem,
    )


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
    unresolved = pool.secrets.unresolved
    missing = {k.key_id: unresolved.get(k.key_id, "") for k in keys if k.key_id not in selector}
    return view.look(pool.state, keys, missing)


def pool_health(pool: Pool) -> tuple[dict[str, HealthStatus], list[str]]:
    """Return the health of each key of this process's *pool*, and the lines of its headline.

    Keys without a value are there too.
    """
    report = source_of(pool)
    seen = report.look()
    lines = view.lines_of(report.summary(seen, pool.activity.read().view((), seen.at))["headline"])
    return {row.key.key_id: view.describe(row, seen.at) for row in seen.rows}, lines


SORTS: Mapping[str, Callable[[Row], Any]] = {
    "key": lambda row: row.key.key_id,
    "project": lambda row: project_name(row.key.project) or "",
    "state": lambda row: view.URGENCY.index(row.overall.state),
    "limit": lambda row: -max((part for _, _, part in view.utilization(row)), default=0.0),
    "requests": lambda row: -row.known.success_count - row.known.error_count,
}
"""By what keys can be sorted; most used first."""


def _allowed_actions(row: Row) -> list[str]:
    if row.key.disabled:
        return []  # it is switched on where it was switched off
    if row.overall.state == "unresolved":
        return ["reset"]
    return ["enable"] if row.overall.reason == DISABLED_BY_HAND else ["reset", "disable"]


def _is_recorded(known: KeyHealth) -> bool:
    return any((known.last_used, known.error_count, known.cooldown_until, known.used))


def _matches(row: Row, query: str, state: str) -> bool:
    if state and row.overall.state != state:
        return False
    used = (used.bucket for used in row.known.used)
    texts = (row.key.key_id, project_name(row.key.project) or "", row.key.model or "", *used)
    return not query or any(query in text.casefold() for text in texts)


def able_platforms(seen: Look) -> set[str]:
    """Return the platforms of which a key is available."""
    return {row.key.platform for row in seen.rows if row.overall.state == "available"}


def _answered_by(seen: Look, info: CallInfo) -> str:
    """Return which other model has answered such calls lately, or ""."""
    mine = (one.by for one in seen.answers if one[:2] == (info.platform, info.model))
    return next(mine, "")


def _rejected(rows: Sequence[Row]) -> dict[str, str]:
    """Return in which class keys were cut off by what only a person ends, by id."""
    return {row.key.key_id: row.known.rejection for row in rows if row.known.rejection is not None}


def _judged(one: Judgement, seen: Look) -> dict[str, Any]:
    """Return a judgement as JSON has it."""
    at = None if one.block is None or view.is_well(one) else one.block.until
    return {
        **{name: getattr(one, name) for name in _OF_JUDGEMENT},
        "available": one.able,
        "available_at": iso(at),
        "sentence": sentence_of(one, seen.at),
        "runs_out_at": iso(seen.runs_out.get(one.model)),
    }


def _answer(one: Answered) -> dict[str, Any]:
    """Return which model has answered another, as JSON has it."""
    by = providers.replaced_by(one.platform, one.model)
    return {**one._asdict(), "one_limit": by == one.by}


_OF_JUDGEMENT = ("model", "workload", "answer", "is_trouble", "keys", "ends_by")


_WOULD = {
    "due": "would try a refused key again",
    "waits": "would wait for a key",
    "busy": "would wait for another call's end",
}
"""What a call does that gets no key at once."""


def _verdict(next_keys: list[str], one: Judgement, now: float) -> str:
    about = f"A call to {one.model}" if one.model else "A call"
    if one.next_model and not next_keys:
        why = sentence_of(one._replace(next_model=""), now)
        return f"{about} would go on to {model_label(one.next_model)} now. {why}"
    if not next_keys:
        return f"{about} {_WOULD.get(one.answer, 'would get no key')} now. {sentence_of(one, now)}"
    text = f"key {next_keys[0]}"
    if len(next_keys) > 1:
        more = f" and {len(next_keys) - NAMED} more" if len(next_keys) > NAMED else ""
        text = f"one of {len(next_keys)} keys now: {', '.join(next_keys[:NAMED])}{more}"
    text += "" if len(next_keys) > 1 else " now"
    if one.answer in ("failing", "refused"):  # the bad news first
        return f"{about} may fail. {sentence_of(one, now)} It would get {text}."
    more = "" if view.is_well(one) else f" But {sentence_of(one, now)}"
    return f"{about} would get {text}.{more}"
