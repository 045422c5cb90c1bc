"""Watch a pool, and deliver what an operator wants to know; see events.py and docs/alerts.md.

Calls report an exhausted pool and a rejected key as they happen; everything else is found by a look
at the pool every few seconds, in a thread that exists only if the program wants events. Of one
event and key there is one message in ten minutes; with a shared state, one for all processes.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf, isfinite
from typing import NamedTuple

from ..core.availability import REJECTED
from ..core.commands import Settle, Sleep
from ..core.flow import Exhausted
from ..core.model import Block, CallInfo, Candidate
from ..core.text import one_line, utc
from ..events import EventName, PoolEvent
from ..exits import time_left
from ..forks import after_fork
from ..guard import handle_internal_error
from ..runtime.pool import Pool
from ..telemetry.log_text import format_time
from .alert_receivers import Receiver, restore_loggers
from .health import KeyView, pool_views, quota_utilization

__all__ = ["AlertWatcher"]

_log = logging.getLogger("keyrot_middleware")

LOOK_S = 2.0
"""Seconds between two looks at the pool."""
LOOK_SHARE = 20
"""A look that takes long is followed by a pause so many times as long: 5 % of one core at most."""
REPEAT_S = 600.0
"""The shortest time between two messages about the same event and key."""
SAME_S = 5.0
"""A message of another process within this time before our last check is about the same thing."""
NOTICE_S = 30.0
"""A call does not report again what was reported so recently."""
NOTICED_MAX = 1_000
STOP_S = 2.0
"""How long uninstall() waits for what is being delivered."""
QUOTA_SHARE = 0.8
_MODEL = re.compile(r"[A-Za-z0-9._/:-]{1,200}")
_WINDOWS = {
    "rpm": "requests per minute (RPM)",
    "tpm": "input tokens per minute (TPM)",
    "rpd": "requests per day (RPD)",
}


class _Found(NamedTuple):
    """Something that may become an event."""

    event: EventName
    key_id: str | None
    at: float
    text: str
    reason: str | None = None
    available_at: float | None = None


class _Exhaustion(NamedTuple):
    """What a call found when no key was available."""

    at: float
    model: str
    blocks: Mapping[str, Block]


_Condition = tuple[EventName, str | None, str]
"""What lasts until it ends: an event, a key, and a window of a model where there are several."""


class AlertWatcher:
    """Finds the events of one pool and hands them to receivers; a `PoolEventListener`."""

    def __init__(self, pool: Pool, receivers: Sequence[Receiver]) -> None:
        """Start nothing yet."""
        self._pool, self._receivers = pool, receivers
        self._on = False
        self._noticed: dict[tuple[str, str], float] = {}
        self._dropped = False
        self._reported: set[_Condition] = set()
        """Conditions that hold and were reported, here or by another process."""
        self._is_first_look = not pool.state.is_local
        """At the first look at a shared state; what holds then was reported by others."""
        self._is_degraded = False
        """It was reported that the shared state is unreachable."""
        self._postponed: dict[tuple[EventName, str | None], float] = {}
        """When a condition may be reported whose event was sent before, epoch seconds."""
        self._rejected: set[str] = set()
        """Keys that were rejected and are not available again yet."""
        self._exhausted: _Exhaustion | None = None
        """The last reported one, until a key is available again."""
        self._look_at = -inf
        """When to look next, by `time.monotonic()`."""
        self._looked_at: float | None = None
        """When the last look was, epoch seconds."""
        self._renew()
        after_fork(self, AlertWatcher._in_child)

    def start(self) -> None:
        """Start the thread."""
        self._on = True
        self._exit = weakref.finalize(self, _at_exit, weakref.ref(self))
        self._start_thread()

    def stop(self, wait_s: float = STOP_S) -> None:
        """Stop the thread; wait so long for what is being delivered."""
        if not self._on:
            return
        self._on = False
        self._exit.detach()
        until = time.monotonic() + wait_s
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(wait_s)
        for receiver in self._receivers:
            receiver.close(until)
        restore_loggers()

    # In the thread of a call ---------------------------------------------------------------------

    def keep_running(self) -> None:
        """Start the thread again if it has ended although nobody stopped it."""
        if not self._on or self._thread.is_alive():
            return
        with self._lock, suppress(RuntimeError):  # no thread can be started
            if not self._thread.is_alive():
                self._start_thread()

    def on_change(self, info: CallInfo, command: Settle | Sleep, reply: object) -> None:
        """Notice a rejected key."""
        verdict = command.outcome.verdict if isinstance(command, Settle) else None
        if verdict is None or verdict.failure not in REJECTED:
            return
        assert isinstance(command, Settle)  # noqa: S101 - narrowed above
        key_id = command.lease.key_id
        if self._is_new("key_rejected", key_id, command.at):
            until = reply if isinstance(reply, int | float) else None
            self._notice(_rejection(key_id, command.at, verdict.failure, until))

    def on_exhausted(self, info: CallInfo, error: Exhausted) -> None:
        """Notice that no key was available."""
        found = error.unavailable
        if self._is_new("pool_exhausted", "", found.at):
            self._notice(_Exhaustion(found.at, info.quota_model, found.blocks))

    def _is_new(self, event: str, key_id: str, at: float) -> bool:
        before = self._noticed.get((event, key_id))
        if before is not None and 0 <= at - before < NOTICE_S:
            return False
        if len(self._noticed) >= NOTICED_MAX:
            self._noticed = {}
        self._noticed[event, key_id] = at
        return True

    def _notice(self, found: _Found | _Exhaustion) -> None:
        if len(self._queue) == self._queue.maxlen:
            self._dropped = True
        self._queue.append(found)
        self._wake.set()

    # In the thread of the watcher ----------------------------------------------------------------

    def turn(self) -> float | None:
        """Do what is due; return the seconds until the next look, None if stopped."""
        on = self._on
        try:
            self.report_noticed()
            if on and time.monotonic() >= self._look_at:
                began = time.monotonic()
                self._look_at = began + LOOK_S  # in case it fails
                self.look()
                took = time.monotonic() - began
                self._look_at = began + took + max(LOOK_S, LOOK_SHARE * took)
        except Exception:
            handle_internal_error("alerts")
        return max(self._look_at - time.monotonic(), 0.0) if on else None

    def report_noticed(self) -> None:
        """Report what calls have noticed."""
        while self._queue:
            found = self._queue.popleft()
            if isinstance(found, _Exhaustion):
                if self._claim("pool_exhausted", None) == 0:
                    self._exhausted = found
                    self._send(_exhaustion(found))
                continue
            if found.key_id is not None:
                self._rejected.add(found.key_id)
            condition: _Condition = (found.event, found.key_id, "")
            if condition not in self._reported and self._report(found, lasts=True):
                self._reported.add(condition)
        if self._dropped:
            self._dropped = False
            text = "pool %s: more events than the alerts can take; the oldest are dropped"
            _log.warning(text, self._pool.name)

    def look(self) -> None:
        """Compare the pool with what was reported."""
        pool, degraded = self._pool, self._pool.state.degraded
        views = pool_views(pool)
        now = pool.clock.time()
        self._compare_state(now)
        if not degraded and not pool.state.degraded:  # else what others found is not in the views
            found = _conditions(views, now)
            if self._is_first_look:
                self._is_first_look = False
                self._reported |= found.keys()
            self._reported &= found.keys()
            self._compare_keys(views, found, now)
        self._looked_at = now

    def _compare_state(self, now: float) -> None:
        if self._pool.state.degraded:
            if not self._is_degraded:
                text = "the shared state is unreachable; this process uses in-process limits"
                found = _Found("state_degraded", None, now, text)
                self._is_degraded = self._report(found, lasts=True)
        elif self._is_degraded:
            self._is_degraded = False
            text = "the shared state is reachable again; limits are shared again"
            self._report(_Found("state_recovered", None, now, text))

    def _compare_keys(
        self,
        views: Iterable[tuple[Candidate, KeyView]],
        found: dict[_Condition, _Found],
        now: float,
    ) -> None:
        new: dict[tuple[EventName, str | None], set[_Condition]] = {}
        for condition in found.keys() - self._reported:
            new.setdefault(condition[:2], set()).add(condition)
        for conditions in new.values():
            parts = [found[one] for one in sorted(conditions, key=str)]
            text = f"{parts[0].text}{''.join(f', and {_window(part)}' for part in parts[1:])}"
            if self._report(parts[0]._replace(text=text), lasts=True):
                self._reported |= conditions
        self._rejected |= {one[1] for one in found if one[0] == "key_rejected" and one[1]}
        keys = {}
        for key, view in views:
            keys[key.key_id] = view
            if key.key_id in self._rejected and view.overall.state == "available":
                self._rejected.discard(key.key_id)
                self._report(_return(key.key_id, now))
        self._rejected &= keys.keys()
        self._compare_exhausted(keys, now)

    def _compare_exhausted(self, keys: dict[str, KeyView], now: float) -> None:
        """Report the first key that is available again after the pool was exhausted."""
        exhausted = self._exhausted
        for key_id in exhausted.blocks if exhausted is not None else ():
            view = keys.get(key_id)
            if view is None or exhausted is None:
                continue
            if view.models.get(exhausted.model, view.overall).state == "available":
                self._exhausted = None
                self._report(_return(key_id, now))
                return

    def _report(self, found: _Found, *, lasts: bool = False) -> bool:
        """Send an event, unless it was sent within ten minutes, here or by another process.

        Args:
            found: The event.
            lasts: What it is about lasts. If the earlier event was about something else, this one
                is to be reported again as soon as the ten minutes are over.

        Returns:
            Whether it counts as reported.
        """
        name, now = (found.event, found.key_id), self._pool.clock.time()
        if 0 < self._postponed.get(name, now) - now <= REPEAT_S:
            return False
        self._postponed.pop(name, None)
        left = self._claim(*name)
        if left == 0:
            self._send(found)
        elif lasts:
            since = LOOK_S if self._looked_at is None else now - self._looked_at
            if REPEAT_S - left > since + SAME_S:
                self._postponed[name] = now + left
                return False
        return True

    def _claim(self, event: EventName, key_id: str | None) -> float:
        return self._pool.state.claim(f"{event}:{key_id or ''}", REPEAT_S)

    def _send(self, found: _Found) -> None:
        pool, until = self._pool.name, found.available_at
        event = PoolEvent(
            event=found.event,
            pool=pool,
            key_id=found.key_id,
            at=utc(found.at),
            reason=found.reason,
            sentence=one_line(f"pool {pool}: {found.text}."),
            available_at=utc(until) if until is not None and isfinite(until) else None,
        )
        for receiver in self._receivers:
            receiver.put(event)

    def _start_thread(self) -> None:
        name = f"keyrot-alerts-{self._pool.name}"
        args = (weakref.ref(self), self._wake)
        self._thread = threading.Thread(target=_run, args=args, name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._wake.set).atexit = False

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._queue: deque[_Found | _Exhaustion] = deque(maxlen=NOTICED_MAX)

    def _in_child(self) -> None:
        """Watch in a forked child too; what its parent has noticed is the parent's to report."""
        self._renew()
        if self._on:
            self._start_thread()


def _run(alive: weakref.ref[AlertWatcher], wake: threading.Event) -> None:
    """Look while the pool exists; hold no reference to it while asleep."""
    while (watcher := alive()) is not None and (pause := watcher.turn()) is not None:
        del watcher
        wake.wait(pause)
        wake.clear()


def _at_exit(alive: weakref.ref[AlertWatcher]) -> None:
    watcher = alive()
    if watcher is not None:
        watcher.stop(time_left())


# What a look finds, and in which words -----------------------------------------------------------


def _conditions(views: Iterable[tuple[Candidate, KeyView]], now: float) -> dict[_Condition, _Found]:
    """Return what holds now and is worth an event."""
    found: dict[_Condition, _Found] = {}
    windows: set[tuple[str, str, str]] = set()
    """Of projects; the first key of a project stands for it."""
    spent: set[str] = set()
    """Projects that have spent their budget."""
    for key, view in views:
        key_id, overall = key.key_id, view.overall
        if overall.state == "rejected":
            event = _rejection(key_id, now, overall.reason, overall.at)
            found["key_rejected", key_id, ""] = event
        block = next((o for o in (overall, *view.models.values()) if o.reason == "usd"), None)
        if block is not None and key.project not in spent:
            spent.add(key.project)
            text = f"the budget of the project of key {key_id} is spent{_until(block.at)}"
            event = _Found("budget_reached", key_id, now, text, "usd", block.at)
            found["budget_reached", key_id, ""] = event
        for used in view.known.used:
            for quota in quota_utilization(key, used):
                window = (key.project, quota.model, quota.quota)
                if quota.ratio < QUOTA_SHARE or window in windows:
                    continue
                windows.add(window)
                share = f"{quota.ratio:.0%} of its {_WINDOWS[quota.quota]}"
                text = f"key {key_id} has used {share} for {_model(quota.model)}"
                event = _Found("quota_80_percent", key_id, now, text, quota.quota)
                found["quota_80_percent", key_id, f"{quota.quota} {quota.model}"] = event
    return found


def _window(found: _Found) -> str:
    return found.text.partition(" has used ")[2]


def _rejection(key_id: str, at: float, failure: str | None, until: float | None) -> _Found:
    text = f"Google rejects key {key_id} ({failure}); replace its value"
    return _Found("key_rejected", key_id, at, text, failure, until)


def _return(key_id: str, now: float) -> _Found:
    return _Found("key_available_again", key_id, now, f"key {key_id} is available again")


def _exhaustion(found: _Exhaustion) -> _Found:
    blocks = found.blocks.values()
    first = min(blocks, key=lambda block: block.until, default=None)
    until = None if first is None or not isfinite(first.until) else first.until
    text = f"no key is available for {_model(found.model)}{_until(until)}"
    return _Found(
        "pool_exhausted", None, found.at, text, None if first is None else first.reason, until
    )


def _model(name: str) -> str:
    """Return the name of a model; not one with which a user of the program addresses a channel."""
    if not name:
        return "a call"
    return name if _MODEL.fullmatch(name) else "a model with an unusual name"


def _until(at: float | None) -> str:
    return "" if at is None or not isfinite(at) else f" until {format_time(at)}"
