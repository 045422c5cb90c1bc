"""Tell a program, and the services that Apprise knows, what happens to a pool; see docs/alerts.md.

Each event is found where it happens, in a call: its failure, or the success after one. What a
project has used is looked up in the background, after calls that succeeded. Each receiver has a
bounded queue and at most one thread, which exists while there is something to deliver. One that
hangs delays its own events and nothing else. Of one event and key, or model, there is one message
in ten minutes; of what lasts until Pacific midnight, one a day.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from math import inf, isfinite
from typing import Any

from pydantic import SecretStr

from ..core.activity import LARGE_POOL
from ..core.commands import Command, Settle, Sleep
from ..core.failures import KEY_REJECTIONS
from ..core.flow import Exhausted
from ..core.ledger import KeyHealth
from ..core.model import USD_REASONS, CallInfo, Candidate, Lease, LeaseOutcome
from ..core.text import did_you_mean, one_line, utc
from ..core.windows import GUARD_S, HOUR_S, next_midnight
from ..errors import ConfigError, EventName, MissingExtraError, PoolEvent, handle_internal_error
from ..forks import after_fork, time_left
from ..locks import Lock
from ..providers.keys import display
from ..runtime.pool import Pool
from ..settings import ENV_NAMES
from ..telemetry import CallObserver
from ..telemetry.logs import format_time
from ..telemetry.otel import suppress_instrumentation
from .view import VERB, blocks_of, forecast, pool_rows, utilization

_log = logging.getLogger("keyrot_middleware")

REPEAT_S = 600.0
"""The shortest time between two messages about the same event and key or model."""
LOOK_S = 2.0
"""How long after a call it is looked up what its project has used, with other calls' projects."""
STOP_S = 2.0
"""How long uninstall() waits for what is being delivered."""
QUEUE_MAX = 100
"""Events that wait for one receiver; of more, the oldest are dropped."""
TRIES = 3
RETRY_S = 1.0
"""The pause before the second try of a delivery; it doubles."""
TIMEOUT_MAX_S = 10.0
"""The longest time limit of one connection or answer that a URL may ask for with cto= and rto=."""
THREAD_NAME = "keyrot-alert"
QUOTA_SHARE = 0.8
FORECAST_S = 60.0
"""Between two forecasts: each reads the whole pool."""
_NAMES_MAX = 1_000
_MODEL = re.compile(r"[A-Za-z0-9._/:-]{1,200}")
_LOGGERS = ("apprise", "urllib3.connectionpool")
_WINDOWS = {
    "rpm": "requests per minute (RPM)",
    "tpm": "input tokens per minute (TPM)",
    "rpd": "requests per day (RPD)",
}
_TYPES: dict[EventName, str] = {
    "pool_exhausted": "failure",
    "key_rejected": "failure",
    "key_available_again": "success",
    "state_recovered": "success",
}
"""The kind of a notification in Apprise, which decides its color or icon; else a warning."""


class Receiver:
    """Does one thing after the other in a thread of its own."""

    def __init__(
        self,
        name: str,
        deliver: Callable[[Any], object],
        *,
        tries: int = 1,
        events: Collection[EventName] | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            name: For log lines; holds no secret.
            deliver: Delivers an event, or raises.
            tries: How often a delivery is tried.
            events: Which events to deliver; None for all.
        """
        self.name = name
        self._deliver, self._tries, self._events = deliver, tries, events
        self._failing = self._full = False
        self._lock = Lock()
        self._renew()
        after_fork(self, Receiver._renew)  # the parent of a fork delivers its events

    def _renew(self) -> None:
        self._queue: deque[Any] = deque()
        self.closed = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, event: Any) -> None:
        """Deliver *event* later; never blocks."""
        if self._events is not None and event.event not in self._events:
            return
        with self._lock:
            if len(self._queue) >= QUEUE_MAX:
                self._queue.popleft()
                if not self._full:
                    self._full = True
                    text = "%s is too slow: more than %d events wait for it; the oldest are dropped"
                    _log.warning(text, self.name, QUEUE_MAX)
            self._queue.append(event)
            if self._thread is not None and self._thread.is_alive():
                return
            thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
            with suppress(RuntimeError):  # no thread can be started; the next event tries again
                thread.start()
                self._thread = thread

    def close(self, until: float) -> None:
        """Deliver what waits, until `time.monotonic()` is *until*; drop the rest."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(until - time.monotonic(), 0.0))
        self.closed.set()
        with self._lock:
            self._queue.clear()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread, self._full = None, False
                    return
                event = self._queue.popleft()
            for attempt in range(self._tries):
                if attempt and self.closed.wait(RETRY_S * 2.0 ** (attempt - 1)):
                    break
                try:
                    self._deliver(event)
                except BaseException as error:  # a function may raise SystemExit too
                    if attempt == self._tries - 1:
                        self._log_failure(error)
                else:
                    self._failing = False
                    break

    def _log_failure(self, error: BaseException) -> None:
        """Log the first failure after a success; the text of the error may hold a secret."""
        if not self._failing:
            self._failing = True
            text = "%s failed (%s); more failures are logged after a success"
            _log.warning(text, self.name, type(error).__name__)


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
        found = "an async function" if is_async else display(on_event)
        raise ConfigError(
            f"install(on_event=…): found {found}; allowed: a function of one PoolEvent."
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
        scheme = url.get_secret_value().partition("://")[0].lower()
        log = logging.getLogger("apprise")  # it logs what is wrong in a URL
        before, log.disabled = log.disabled, True
        with warnings.catch_warnings(action="ignore"):  # of deprecated modules that it imports
            service = apprise.Apprise.instantiate(url.get_secret_value())
        log.disabled = before
        if service is None:
            known = apprise.NotificationManager().schemas()
            raise ConfigError(_problem(f"{variable}, entry {number}", scheme, known))
        service.socket_connect_timeout = min(service.socket_connect_timeout, TIMEOUT_MAX_S)
        service.socket_read_timeout = min(service.socket_read_timeout, TIMEOUT_MAX_S)
        name = f"{variable}, entry {number} ({scheme}://)"
        receivers.append(Receiver(name, partial(_send, service), tries=TRIES, events=events))
    return receivers


def _problem(where: str, scheme: str, known: list[str]) -> str:
    if scheme in known:
        return (
            f"{where}: Apprise cannot use this {scheme}:// URL (not shown); allowed: the form that "
            "Apprise documents for this service."
        )
    return (
        f"{where}: found the unknown scheme {display(scheme)}; allowed: URLs of Apprise, such as "
        f"mailto://, slack://, discord:// and json://.{did_you_mean(scheme, known)}"
    )


def _send(service: Any, event: PoolEvent) -> None:
    with suppress_instrumentation():
        sent = service.notify(
            title=f"keyrot: {event.event} in pool {event.pool}",
            body=event.sentence,
            notify_type=_TYPES.get(event.event, "warning"),
            body_format="text",
        )
    if not sent:
        raise ConnectionError("the receiver did not take it")


class _NothingOfAlerts(logging.Filter):
    """Drops what is logged while an alert is delivered: Apprise and urllib3 log URLs."""

    def filter(self, record: logging.LogRecord) -> bool:
        return threading.current_thread().name != THREAD_NAME


_FILTER = _NothingOfAlerts()


class Alerts:
    """Finds the events of one pool and hands them to receivers; observes its calls."""

    def __init__(self, pool: Pool, receivers: Sequence[Receiver]) -> None:
        """Report from now on; `pool.background` has to hold it."""
        self._pool, self._receivers = pool, receivers
        self._looks = Receiver("a look at the pool", self._look)
        self._sent: dict[tuple[EventName, str | None], float] = {}
        """Until when an event about a key or a model is not sent again, epoch seconds."""
        self._rejected: dict[str, tuple[float, float]] = {}
        """When keys were rejected for which no request has succeeded since, and when they are
        tried again, epoch seconds."""
        self._exhausted: dict[str, float] = {}
        """When no key was available, by what is said of the calls, until a later one succeeds."""
        self._is_degraded = False
        self._used: dict[str, tuple[str, str]] = {}
        """The projects to look at: a key of each, and the model of its last call."""
        self._forecast_at = 0.0
        """When the next forecast is due, epoch seconds."""
        self._is_queued = False
        """A look will come."""
        after_fork(self, lambda alerts: setattr(alerts, "_is_queued", False))
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_FILTER)
        self._exit = weakref.finalize(self, _at_exit, [self._looks, *receivers])

    def keep_running(self) -> None:
        """Do nothing: each event starts the thread that it needs."""

    def stop(self) -> None:
        """Wait a little for what is being delivered."""
        self._exit.detach()
        _close([self._looks, *self._receivers], STOP_S)
        if not any(thread.name == THREAD_NAME for thread in threading.enumerate()):
            for name in _LOGGERS:
                logging.getLogger(name).removeFilter(_FILTER)

    # In the thread of a call ----------------------------------------------------------------------

    def observe(self, info: CallInfo) -> _AlertCall:
        """Watch for the success of a call."""
        if self._pool.state.degraded is not self._is_degraded:
            self._is_degraded = not self._is_degraded
            if self._is_degraded:
                text = "the shared state is unreachable; this process uses in-process limits"
                self._send("state_degraded", None, text)
            else:
                text = "the shared state is reachable again; limits are shared again"
                self._send("state_recovered", None, text)
        return _AlertCall(self, info)

    def on_change(self, info: CallInfo, command: Settle | Sleep, reply: object) -> None:
        """Report a rejected key, and a workload whose keys are out for the day."""
        verdict = command.outcome.verdict if isinstance(command, Settle) else None
        if verdict is None:
            return
        assert isinstance(command, Settle)  # noqa: S101 - narrowed above
        key_id, until = command.lease.key_id, reply if isinstance(reply, int | float) else None
        if verdict.failure in KEY_REJECTIONS:
            at, again = self._rejected.get(key_id, (0.0, inf))
            if len(self._rejected) < _NAMES_MAX:
                self._rejected[key_id] = command.at, until or 0.0
            if at + GUARD_S < command.lease.at < again:  # no probe: it was reset or replaced
                self._sent.pop(("key_rejected", key_id), None)
                text = f"Google rejects key {key_id} ({verdict.failure}); replace its value"
                self._send("key_rejected", key_id, text, verdict.failure, until)
        elif until is not None and until - command.at >= HOUR_S:
            self.look_at(command.lease.project, key_id, info.quota_model)

    def on_exhausted(self, info: CallInfo, error: Exhausted) -> None:
        """Report that no key is available; rejected keys may never be again."""
        blocks = error.unavailable.blocks.values()
        left = [block for block in blocks if block.reason not in KEY_REJECTIONS] or blocks
        first = min(left, key=lambda block: block.until, default=None)
        until, reason = (None, None) if first is None else (first.until, first.reason)
        is_own = any(block.note or block.reason == "tier" for block in blocks)
        about = _calls(info) if is_own else _model(info.quota_model)
        why = f": {first.note}" if first is not None and first.note else ""
        text = f"no key is available for {about}{_until(until)}{why}"
        if len(self._exhausted) < _NAMES_MAX:
            self._exhausted.setdefault(about, error.unavailable.at)
        is_long = until is not None and isfinite(until) and until - error.unavailable.at > REPEAT_S
        quiet = until if is_long else None
        self._send("pool_exhausted", None, text, reason, until, about=about, quiet=quiet)

    def on_success(self, info: CallInfo, lease: Lease) -> None:
        """Report that a key works again, which was rejected, or without which there was none."""
        key_id = lease.key_id
        served = (_model(info.quota_model), _calls(info)) if self._exhausted else ()
        exhausted = min((self._exhausted.get(one, inf) for one in served), default=inf)
        if lease.at > min(self._rejected.get(key_id, (inf,))[0], exhausted):
            self._rejected.pop(key_id, None)
            for one in served:
                self._exhausted.pop(one, None)
                if until := self._sent.get(("pool_exhausted", one)):
                    self._sent["pool_exhausted", one] = min(until, lease.at + REPEAT_S)
            self._send("key_available_again", key_id, f"key {key_id} is available again")
        self.look_at(lease.project, key_id, info.quota_model)

    def look_at(self, project: str, key_id: str, model: str) -> None:
        """Look up in the background what a project has used."""
        self._used[project] = key_id, model
        if not self._is_queued:
            self._is_queued = True
            self._looks.put(None)

    # In the background ----------------------------------------------------------------------------

    def _look(self, _: None) -> None:
        self._looks.closed.wait(LOOK_S)
        self._is_queued = False  # first, so that a call that comes meanwhile queues the next look
        used, self._used = self._used, {}
        keys, state = self._pool.selector.keys, self._pool.state
        try:
            found = [(keys[key_id], model) for key_id, model in [*used.values()] if key_id in keys]
            known = state.snapshot([key for key, _ in found])
            for key, model in found:
                self._report_use(key, known[key.key_id])
                if key.workload is not None:
                    self._look_at_workload(key.workload, model)
            self._look_ahead(self._pool.clock.time())
        except Exception:
            handle_internal_error("alerts")

    def _report_use(self, key: Candidate, known: KeyHealth) -> None:
        key_id, project = key.key_id, key.project
        pool = self._pool
        midnight = next_midnight(pool.clock.time(), pool.policy.zone)
        for reason, limit, spent in zip(USD_REASONS[1:], key.usd[1:], known.spent[1:], strict=True):
            if limit is not None and (spent or 0) >= limit:
                of = "month" if reason == "usd_month" else "day"
                text = f"the budget of the {of} of the project of key {key_id} is spent"
                about = f"{project} {reason}"
                self._send("budget_reached", key_id, text, reason, about=about, quiet=midnight)
        for used in known.used:
            for model, quota, ratio in utilization(key, used):
                if ratio >= QUOTA_SHARE:
                    share = f"{ratio:.0%} of its {_WINDOWS[quota]} for {_model(model)}"
                    text, about = f"key {key_id} has used {share}", f"{project} {quota} {model}"
                    quiet = midnight if quota == "rpd" else None
                    self._send("quota_80_percent", key_id, text, quota, about=about, quiet=quiet)

    def _look_at_workload(self, workload: str, model: str) -> None:
        """Report a workload whose own keys are out for an hour or longer."""
        pool, now = self._pool, self._pool.clock.time()
        keys = [key for key in pool.selector.keys.values() if key.workload == workload]
        blocks = blocks_of(pool.state, CallInfo(model, VERB, tokens=1), keys)
        if all(key.key_id in blocks and blocks[key.key_id].until - now >= HOUR_S for key in keys):
            first = min(blocks.values(), key=lambda block: block.until)
            text = (
                f"no key of workload {one_line(workload)} is available for {_model(model)}"
                f"{_until(first.until)}; its calls use the keys of others"
            )
            self._send("workload_degraded", None, text, first.reason, first.until, about=workload)

    def _look_ahead(self, now: float) -> None:
        """Report for which models all requests of the day are used up within the hour."""
        pool = self._pool
        if now < self._forecast_at or len(pool.selector.keys) > LARGE_POOL:
            return
        self._forecast_at = now + FORECAST_S
        found = forecast(pool_rows(pool), pool.activity, now)
        for name in [name for name in self._sent if name[0] == "quota_forecast"]:
            if found.get(name[1] or "", inf) > now + 2 * HOUR_S:
                del self._sent[name]
        for model, at in found.items():
            if now < at <= now + HOUR_S:
                out = f"will have no requests per day (RPD) left for {_model(model)}"
                text = f"at the rate of the last hour, it {out} at {format_time(at)}"
                end = next_midnight(now, pool.policy.zone)
                self._send("quota_forecast", None, text, "rpd", end, about=model, quiet=end)

    def _send(
        self,
        event: EventName,
        key_id: str | None,
        text: str,
        reason: str | None = None,
        until: float | None = None,
        *,
        about: str | None = None,
        quiet: float | None = None,
    ) -> None:
        """Send an event, once about a key, or *about*, in ten minutes, or until *quiet*."""
        pool, now = self._pool, self._pool.clock.time()
        name = event, about or key_id
        if now < self._sent.get(name, 0.0):
            return
        if len(self._sent) >= _NAMES_MAX:
            self._sent.clear()
        self._sent[name] = now + REPEAT_S if quiet is None else quiet
        found = PoolEvent(
            event=event,
            pool=pool.name,
            key_id=key_id,
            at=utc(now),
            reason=reason,
            sentence=one_line(f"pool {pool.name}: {text}."),
            available_at=utc(until) if until is not None and isfinite(until) else None,
        )
        for receiver in self._receivers:
            receiver.put(found)


class _AlertCall(CallObserver):
    """Watches one call; an observer (telemetry/__init__.py)."""

    __slots__ = ("_alerts", "_info")

    def __init__(self, alerts: Alerts, info: CallInfo) -> None:
        self._alerts, self._info = alerts, info

    def after(self, command: Command, reply: Any) -> None:
        """Note a success."""
        if type(command) is Settle and command.outcome.kind is LeaseOutcome.SUCCESS:
            self._alerts.on_success(self._info, command.lease)


def _at_exit(receivers: list[Receiver]) -> None:
    _close(receivers, time_left())


def _close(receivers: list[Receiver], seconds: float) -> None:
    until = time.monotonic() + seconds
    receivers[0].closed.set()  # the look does not wait any longer
    for receiver in receivers:
        receiver.close(until)


def _model(name: str) -> str:
    """Return the name of a model; not one with which a user of the program addresses a channel."""
    if not name:
        return "a call"
    return name if _MODEL.fullmatch(name) else "a model with an unusual name"


def _calls(info: CallInfo) -> str:
    """Return for which model, workload and tiers a call is."""
    text = _model(info.quota_model)
    if info.terms is not None and info.terms.workload:
        text += f" in workload {one_line(info.terms.workload)}"
    if info.tiers is not None:
        text += f" in tiers {', '.join(sorted(info.tiers))}"
    return text


def _until(at: float | None) -> str:
    return "" if at is None or not isfinite(at) else f" until {format_time(at)}"
