"""Report to a program, and to the services that Apprise knows, what is the matter with a pool.

A *fact* is what is so for a while: a model that fails, a key that is rejected. What is on is kept
as a list in the state, for the whole pool. A look compares it with the judgements: what is new has
begun, what is gone has ended, also after a deploy. One process reports each: who could take a
*note*, a key of one request a minute, which stays taken until the end of the fact.

Looks and deliveries are done by one thread, which exists while there is something to do. A receiver
that hangs delays the others by its time limit, and no call.
"""

from __future__ import annotations

import atexit
import importlib
import inspect
import logging
import re
import shlex
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from typing import Any

from pydantic import SecretStr

from .. import providers
from ..core.activity import CallRecord
from ..core.failures import ENDED_BY_VALUE, KEY_REJECTIONS, UNKNOWN_REFUSAL
from ..core.judgement import JudgedReplies, Judgement
from ..core.model import USD_REASONS, CallInfo, project_name
from ..core.windows import HOUR_S, next_midnight, next_month
from ..core.wording import one_line, remaining, utc
from ..errors import ConfigError, EventName, MissingExtraError, PoolEvent, handle_internal_error
from ..forks import after_fork, time_left
from ..providers import of as provider_of
from ..providers.keys import display
from ..runtime.pool import Pool
from ..runtime.processes import LASTS_S, Processes
from ..settings import ENV_NAMES
from ..telemetry import CallObserver
from ..telemetry.otel import suppress_instrumentation
from .facts import Fact, keep_fact, read_facts
from .report import PoolReport, able_platforms, source_of
from .report_once import may_report
from .view import (
    WHAT_IS_LOST,
    Look,
    Row,
    clock,
    counts_as,
    end_of,
    limit_windows,
    model_label,
    notice_of,
    parts,
    refusal,
    sentence_of,
    sentence_of_keys_file,
    sentence_of_processes,
    sentence_of_replies,
    spent_of,
    whom,
)

_log = logging.getLogger("keyrot_middleware")

REPEAT_S = 600.0
"""A fact about calls that begins again so soon after its report is not reported at once."""
AGAIN_S = 60.0
"""How long such a fact has to last; then it is: the last word must not be that it has ended."""
LOOK_S = 2.0
"""How long after a call that failed, and while facts are on, the pool is looked at."""
IDLE_S = 60.0
"""How long after another call."""
STOP_S = 2.0
"""How long uninstall() waits for what is being delivered."""
TRIES = 3
RETRY_S = 1.0
"""The pause before the second try of a delivery; it doubles."""
TIMEOUT_MAX_S = 10.0
"""The longest time limit of one connection or answer that a URL may ask for with cto= and rto=."""
THREAD_NAME = "keyrot-alert"
QUOTA_SHARE = 0.8
_LOGGERS = ("apprise", "urllib3.connectionpool")
_ENDS: dict[str, tuple[EventName, str]] = {
    "pool_exhausted": ("key_available_again", "is served again"),
    "workload_degraded": ("key_available_again", "has keys of its own again"),
    "key_rejected": ("key_available_again", "is no longer rejected"),
    "project_blocked": ("key_available_again", "is no longer refused"),
    "model_failing": ("model_recovered", "succeeds again"),
    "replies_not_known": ("key_available_again", "has no key set aside any more"),
    "state_degraded": ("state_recovered", "is reachable again; limits are shared again"),
    "keys_file_unreadable": ("keys_file_read_again", "is read again"),
}
"""How the end of a fact is reported; other ends are not."""
_OF_PROCESS = "state_degraded"
"""Each process finds it for itself, and no list has it."""
_REFUSALS = frozenset({"key_rejected", "project_blocked"})
"""What only a success or a person ends."""
_NEXT_CALL = "the next call shows whether it works"
_OF_CALLS = frozenset({"pool_exhausted", "workload_degraded", "model_failing"})
_GOOD = frozenset(event for event, _ in _ENDS.values())
_BAD = frozenset(_ENDS) - {
    *("workload_degraded", "state_degraded", "replies_not_known", "keys_file_unreadable")
}
"""Which events are successes and failures for Apprise, in their color or icon; others warn."""


@dataclass(slots=True)
class Receiver:
    """Who gets events."""

    name: str
    """For log lines; holds no secret."""
    deliver: Callable[[PoolEvent], object]
    tries: int = 1
    events: Collection[EventName] | None = None
    """Which ones; None: all."""
    is_failing: bool = False

    def put(self, event: PoolEvent, closed: threading.Event) -> None:
        """Deliver an event; log the first failure after a success, whose text may hold a secret."""
        if self.events is not None and event.event not in self.events:
            return
        for attempt in range(1 if self.is_failing else self.tries):
            if attempt and closed.wait(RETRY_S * 2.0 ** (attempt - 1)):
                return
            try:
                self.deliver(event)
            except BaseException as error:  # a function may raise SystemExit too
                failed = type(error).__name__
            else:
                self.is_failing = False
                return
        if not self.is_failing:
            text = "%s failed (%s); more failures are logged after a success"
            _log.warning(text, self.name, failed)
        self.is_failing = True


def open_receivers(
    on_event: Callable[[PoolEvent], object] | None,
    urls: Sequence[SecretStr],
    events: Collection[EventName],
) -> list[Receiver]:
    """Return the receivers of a pool; an empty list if nothing wants its events.

    Args:
        on_event: A function of the program.
        urls: Of Apprise.
        events: Which events are sent to the URLs.

    Raises:
        ConfigError: A URL or the function cannot be used.
        MissingExtraError: Apprise is not installed.
    """
    call = getattr(on_event, "__call__", None)  # noqa: B004 - an object may have an async one
    is_async = inspect.iscoroutinefunction(on_event) or inspect.iscoroutinefunction(call)
    if on_event is not None and (is_async or call is None):
        shown = "an async function" if is_async else display(on_event)
        raise ConfigError(
            f"install(on_event=…): found {shown}; allowed: a function of one PoolEvent."
        )
    receivers = [] if on_event is None else [Receiver("on_event", on_event)]
    if not urls:
        return receivers
    variable = ENV_NAMES["alerts"]
    try:
        apprise: Any = importlib.import_module("apprise")
    except ImportError:
        raise MissingExtraError(wanted_by=variable, package="apprise", extra="alerts") from None
    for number, url in enumerate(urls, 1):
        # No variable holds the text of a URL: error reporters show those of a traceback.
        log = logging.getLogger("apprise")  # it logs what is wrong in a URL
        before, log.disabled = log.disabled, True
        with warnings.catch_warnings(action="ignore"):  # of deprecated modules that it imports
            service = apprise.Apprise.instantiate(url.get_secret_value())
        log.disabled = before
        name = f"{variable}, entry {number}"
        if service is None:
            raise ConfigError(
                f"{name}: Apprise cannot use this URL (not shown); allowed: URLs of Apprise, as "
                "mailto://, slack://, discord:// and json://"
            )
        service.socket_connect_timeout = min(service.socket_connect_timeout, TIMEOUT_MAX_S)
        service.socket_read_timeout = min(service.socket_read_timeout, TIMEOUT_MAX_S)
        receivers.append(Receiver(name, partial(_send, service), TRIES, events))
    return receivers


def _send(service: Any, event: PoolEvent) -> None:
    title, name = f"keyrot: {event.event} in pool {event.pool}", event.event
    is_good = name in _GOOD and event.reason is None  # by a person: nothing has succeeded yet
    kind = "success" if is_good else "failure" if name in _BAD else "warning"
    with suppress_instrumentation():
        message = {"title": title, "body": event.sentence, "body_format": "text"}
        sent = service.notify(notify_type=kind, **message)
    if not sent:
        raise ConnectionError("the receiver did not take it")


class _NothingOfAlerts(logging.Filter):
    """Drops what is logged while an alert is delivered: Apprise and urllib3 log URLs."""

    def filter(self, record: logging.LogRecord) -> bool:
        return threading.current_thread().name != THREAD_NAME


_FILTER = _NothingOfAlerts()


class Alerts(CallObserver):
    """Finds the facts of one pool, and reports their beginnings and ends; observes its calls."""

    def __init__(self, pool: Pool, receivers: Sequence[Receiver]) -> None:
        """Report from now on; `pool.background` has to hold it."""
        self._pool, self._receivers, self._report = pool, receivers, source_of(pool)
        self._kept: dict[str, Fact] = {}
        """The last step of each fact, as the list had it."""
        self._renew()
        after_fork(self, Alerts._renew)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_FILTER)
        atexit.register(self._close, time_left)

    def _renew(self) -> None:
        self._look_at = inf
        """When the pool is looked at, by `time.monotonic()`."""
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def stop(self) -> None:
        """Wait a little for what is being delivered."""
        atexit.unregister(self._close)
        self._close(lambda: STOP_S)
        if not any(thread.name == THREAD_NAME for thread in threading.enumerate()):
            for name in _LOGGERS:
                logging.getLogger(name).removeFilter(_FILTER)

    def _close(self, patience: Callable[[], float]) -> None:
        self._closed.set()
        with self._changed:
            self._changed.notify()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(patience())

    # In the thread of a call ----------------------------------------------------------------------

    def observe(self, info: CallInfo) -> CallObserver:
        """Look at the pool after a call."""
        return self

    def finish(self, error: BaseException | None, record: CallRecord) -> None:
        """Look soon if something may have begun or ended."""
        is_news = error is not None or any(one.failure for one in record.attempts)
        is_on = self._pool.state.degraded or any(one.is_on for one in [*self._kept.values()])
        self.look_in(LOOK_S if is_news or is_on else IDLE_S)

    def on_keys_read(self) -> None:
        """Look soon: keys.json was read, or could not be."""
        self.look_in(LOOK_S)

    def look_in(self, seconds: float) -> None:
        """Look at the pool in some seconds, or before."""
        at = time.monotonic() + seconds
        if self._look_at <= at:
            return
        with self._changed:
            self._look_at = min(self._look_at, at)
            self._changed.notify()
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                with suppress(RuntimeError):  # no thread can be started; the next call tries again
                    thread.start()
                    self._thread = thread

    # In the background ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._look_at < inf and not self._closed.is_set():
                    if (left := self._look_at - time.monotonic()) <= 0:
                        break
                    self._changed.wait(left)
                if self._look_at == inf:
                    self._thread = None
                    return
                self._look_at = inf
            try:
                self.look()
            except Exception:
                handle_internal_error("alerts")

    def look(self) -> None:
        """Look at the pool, and report what has begun and ended."""
        self._compare(find_facts(self._pool, self._report, self._kept, anew=True))
        if any(fact.is_on for fact in self._kept.values()) and not self._closed.is_set():
            self.look_in(IDLE_S)

    def _compare(self, facts: dict[str, Fact]) -> None:
        now, state = self._pool.clock.time(), self._pool.state
        own = {name: fact for name, fact in self._kept.items() if fact.event == _OF_PROCESS}
        if not state.degraded:
            self._kept = read_facts(state) | own
        for fact in facts.values():
            if fact.text:
                self._report_if_new(fact, now)
        for name, fact in [*self._kept.items()]:
            if not fact.is_on or name in facts:
                continue
            if name in own or may_report(state, f"{name} end", now, name):
                self._keep(fact._replace(is_on=False))
                if self._is_end_reported(fact, now):
                    self._report_end(fact, now)

    def _report_end(self, fact: Fact, now: float) -> None:
        """Report an end; that of a refusal by a person, after which nothing has succeeded, as such.

        That one keeps its reason, and says what the person has done.
        """
        event, text = _ENDS[fact.event]
        lasted = remaining(now - fact.since).removeprefix("in ")
        text = f"{fact.what} {text}, after {lasted}"
        by_person = fact.event in _REFUSALS and self._successes(fact) <= fact.successes
        if by_person:
            rows, more = self._rows_of(fact), ""
            if not rows:
                verb = "removed"
            elif all(row.overall.state == "disabled" for row in rows):
                verb = "switched off"
            else:
                verb, more = "reset or replaced", f"; {_NEXT_CALL}"
            text = f"a person {verb} {fact.what}, after {lasted}{more}"
        gone = fact._replace(until=None, command="", reason=fact.reason if by_person else None)
        self._send_event(gone, event, text)

    def _successes(self, fact: Fact) -> int:
        """Return how many requests succeeded with the keys that a refusal is about."""
        return sum(row.known.success_count for row in self._rows_of(fact))

    def _rows_of(self, fact: Fact) -> list[Row]:
        """Return the keys that a refusal is about."""
        reason = fact.reason
        if fact.event not in _REFUSALS or reason is None:
            return []
        rows: Sequence[Row] = self._report.look().rows
        if reason in KEY_REJECTIONS:
            rows = [row for row in rows if row.key.key_id == fact.key_id]
        return [row for row in rows if whom(row.key, reason) == fact.what]

    def _is_end_reported(self, fact: Fact, now: float) -> bool:
        """Return whether the beginning was reported, and it is known to have ended."""
        if fact.event not in _ENDS or fact.reported_at != fact.since:
            return False
        if fact.event in _OF_CALLS:  # of a model that nobody has called for a day nothing is known
            return any(one.model == fact.model for one in self._pool.activity.read().pairs(now))
        return fact.event != "replies_not_known" or fact.reason is not None

    def _report_if_new(self, fact: Fact, now: float) -> None:
        """Report what has begun, and what began again soon after its report and has lasted."""
        name, state = fact.name, self._pool.state
        before = self._kept.get(name)
        if before is not None and before.is_on:
            late = before.reported_at != before.since and now - before.since >= AGAIN_S
            if late and may_report(state, f"{name} late", now, f"{name} late"):
                self._keep(before._replace(reported_at=before.since))
                self._send_event(fact, fact.event, fact.text)
        elif may_report(state, name, now):
            reported_at = now if before is None or fact.key_id else before.reported_at
            reported_at = now if now - reported_at >= REPEAT_S else reported_at
            kept = fact._replace(text="", since=now, reported_at=reported_at)
            self._keep(kept._replace(successes=self._successes(fact)))
            if reported_at == now:
                self._send_event(fact, fact.event, fact.text)

    def _keep(self, fact: Fact) -> None:
        self._kept[fact.name] = fact
        if fact.event != _OF_PROCESS:
            keep_fact(self._pool.state, fact)

    def _send_event(self, fact: Fact, event: EventName, text: str) -> None:
        pool, now, until = self._pool, self._pool.clock.time(), fact.until
        command = f" Type: {fact.command}" if fact.command else ""
        sent = PoolEvent(
            event=event,
            pool=pool.name,
            key_id=fact.key_id,
            at=utc(now),
            reason=fact.reason,
            sentence=one_line(f"pool {pool.name}: {text}.{command}"),
            available_at=utc(until) if until is not None and isfinite(until) else None,
            since=utc(fact.since or now),
            model=fact.model,
            workload=fact.workload,
        )
        for receiver in self._receivers:
            receiver.put(sent, self._closed)


def find_facts(
    pool: Pool, report: PoolReport, kept: Mapping[str, Fact], *, anew: bool = False
) -> dict[str, Fact]:
    """Return what is the matter with a pool, by name, for alerts and for metrics.

    One without a text begins nothing: what has begun goes on.

    Args:
        pool: Of this process.
        report: Its report.
        kept: What was on before.
        anew: Whether an earlier look must not serve.
    """
    facts: dict[str, Fact] = {}
    found = _find(pool, report, kept, anew)
    for fact in sorted(found, key=lambda one: (not one.text, one.key_id or "")):
        facts.setdefault(fact.name, fact)  # a text counts, and of several that of the first key
    return facts


def _find(pool: Pool, report: PoolReport, kept: Mapping[str, Fact], anew: bool) -> Iterator[Fact]:
    seen = None if pool.state.degraded else report.look(anew=anew)
    if seen is None or pool.state.degraded:  # it was lost while it was looked at
        text = "the shared state cannot be used; this process uses in-process limits"
        yield Fact("state_degraded", "the shared state", text, command="keyrot status")
        yield from [one for one in kept.values() if one.is_on]
        return
    midnight = next_midnight(seen.at, pool.policy.zone)
    for one in seen.calls:
        others = [each for each in seen.calls if each.model == one.model and each is not one]
        is_whole = all(each.runs.failing for each in others)
        yield from _of_call(one, seen.at, is_whole=is_whole)
    for answer in seen.answers:
        model, text = answer.model, providers.how_answered(*answer[:3])
        command = f"keyrot explain {model}" if model == model_label(model) else ""
        yield Fact(
            "model_replaced",
            _unmarked(model),
            _unmarked(text),
            None,
            None,
            None,
            model,
            None,
            command,
        )
    for row in seen.rows:
        yield from _of_key(row, seen.at, pool.policy.zone)
    for replies in report.replies(seen):
        if replies.lately or not replies.is_nobodys:
            yield _of_replies(replies, able_platforms(seen))
    yield from _of_pool(seen, kept, midnight)
    yield from _of_processes(seen.processes)


def _of_processes(processes: Processes) -> Iterator[Fact]:
    """Yield in what processes differ, and that some do not read their keys.json."""
    if processes.differing:
        lasts = processes.lasted_s >= LASTS_S  # not the moments of a rolling update
        text = _unmarked(sentence_of_processes(processes)).removesuffix(".") if lasts else ""
        yield Fact("processes_differ", "the processes", text, command="keyrot status")
    if processes.problem:
        text = _unmarked(sentence_of_keys_file(processes))
        yield Fact("keys_file_unreadable", "keys.json", text, command="keyrot check")


def _of_pool(seen: Look, kept: Mapping[str, Fact], midnight: float) -> Iterator[Fact]:
    """Yield what is the matter with all keys, or with the state."""
    if seen.emptied_at is not None:
        text = f"the shared state was emptied: {WHAT_IS_LOST}"
        yield Fact("state_emptied", "the shared state", text)
    for model, at in seen.runs_out.items():
        fact = Fact("quota_forecast", model)
        before = kept.get(fact.name)
        most = 2 * HOUR_S if before is not None and before.is_on else HOUR_S
        if seen.at < at <= seen.at + most:
            out = f"will have no requests per day (RPD) left for {model_label(model)}"
            text = f"at the rate of the last hour, it {out} at {clock(at, seen.at)}"
            yield Fact(*fact[:2], text, None, "rpd", midnight, model, None, "keyrot status")


def _of_call(one: Judgement, now: float, *, is_whole: bool) -> Iterator[Fact]:
    """Yield what is the matter with calls of a model and a workload.

    One without a text begins nothing: what has begun goes on.

    Args:
        one: The judgement.
        now: Epoch seconds.
        is_whole: The calls of no other workload of the model succeed.
    """
    block, (failing, _, shortage) = one.block, one.runs
    until = None if block is None else block.until

    def fact(event: EventName, is_own: bool, has_begun: bool) -> Fact:
        model, workload = model_label(one.model), one.workload if is_own else None
        what = f"{model} in workload {one_line(workload)}" if workload else model
        said, reason = one._replace(workload=workload), block and block.reason
        if event == "model_failing" and failing is not None:
            workload = None if is_whole else one.workload
            said, reason = one._replace(workload=workload, answer="failing"), failing.failure
        command = f"keyrot explain {model}" if model == one.model else ""
        if command and workload:
            command += f" --workload {shlex.quote(workload)}"
        text = _unmarked(sentence_of(said, now)).removesuffix(".") if has_begun else ""
        return Fact(event, what, text, None, reason, until, one.model, workload, command)

    if failing is not None:
        yield fact("model_failing", False, failing.is_on)
    if one.is_spare and one.able and not (failing and failing.is_on):
        yield fact("workload_degraded", True, until is None or until - now >= HOUR_S)
    elif one.answer in ("no", "due", "busy") or shortage is not None:
        has_begun = one.answer == "no" and shortage is not None  # a call got no key, not only may
        yield fact("pool_exhausted", one.is_own, has_begun)
        if one.workload:
            yield fact("pool_exhausted", True, one.is_own and has_begun)
            yield fact("workload_degraded", True, False)


def _unmarked(text: str) -> str:
    """Return words that nobody here has read without what a receiver takes for markup."""
    return " ".join(_MARKUP.sub(" ", text).split())


_MARKUP = re.compile(r"[<>@\[\]*`|~#]|://")
SAID_MAX = 100
"""How much is quoted of words that nobody here has read."""


def _of_replies(one: JudgedReplies, able: Collection[str]) -> Fact:
    """Return what is the matter with replies that no row knows: of a gateway, or an account.

    One of words that are nobody's has no reason, and its end is not reported.
    """
    said = _unmarked(one.said)
    said = said if len(said) <= SAID_MAX else f"{said[:SAID_MAX]}…"
    what = one.owner or f"{provider_of(one.platform).title} ({said})"
    text = sentence_of_replies(one._replace(said=said), one.replies, able) if one.is_news else ""
    reason = None if one.is_nobodys else UNKNOWN_REFUSAL
    return Fact("replies_not_known", what, text, reason=reason, command="keyrot status")


def _of_end(row: Row, now: float) -> Iterator[Fact]:
    """Yield that a key ends within 30, 7 or 1 days, or has ended: each is a fact of its own."""
    key, days = row.key, notice_of(row.key, now)
    if days is None:
        return
    what = f"key {key.key_id} within {days} days" if days else f"key {key.key_id} since its end"
    command = f"keyrot rotate {key.key_id}"
    yield Fact("key_expires", what, end_of(row, now), key.key_id, command=command)


def _of_key(row: Row, now: float, zone: str) -> Iterator[Fact]:
    """Yield what is the matter with a key, its project and its billing account."""
    key, here, known = row.key, row.overall, row.known
    yield from _of_end(row, now)
    project, key_id = project_name(key.project) or key.key_id, key.key_id
    midnight, month_end = next_midnight(now, zone), next_month(now, zone)
    if (why := known.rejection) is not None and here.state != "disabled":
        is_own = why in KEY_REJECTIONS
        event: EventName = "key_rejected" if is_own else "project_blocked"
        verb = "rotate" if why in ENDED_BY_VALUE else "reset"
        what, command = whom(key, why), f"keyrot {verb} {key_id}"
        yield Fact(event, what, refusal(row, why), key_id, why, here.at, None, None, command)
    for reason, limit, spent in zip(USD_REASONS[1:], key.usd[1:], known.spent[1:], strict=True):
        if limit is not None and (spent or 0) >= limit:
            of, end = ("month", month_end) if reason == "usd_month" else ("day", midnight)
            text = f"project {project} has spent {spent_of(spent, limit)} of the {of}"
            text, what = f"{text}, until {clock(end, now)}", f"project {project}, {of}"
            command = "keyrot status"
            yield Fact("budget_reached", what, text, key_id, reason, end, command=command)
    for used in known.used:
        if counts_as(key, used.bucket) != used.bucket:
            continue  # it counts with the model that answers it
        ratio = parts(key, used).get("rpd", 0.0)
        if ratio >= QUOTA_SHARE:
            model = model_label(used.bucket)
            day = limit_windows(key, used)["rpd"]
            share = f"{day['used']:,} of {day['limit']:,} requests of the day (RPD) for {model}"
            text = f"project {project} has used {share}, until {clock(midnight, now)}"
            what = f"{project} {model}"
            args = key_id, "rpd", midnight, used.bucket, None, "keyrot status"
            yield Fact("quota_80_percent", what, text, *args)
