"""Log lines: each call at DEBUG; events that affect more than one call at INFO and WARNING.

INFO: a cooldown, a wait for a key, a replaced key, another model. WARNING, for what may need
attention: a rejected key, a project or billing account that is cooling down, a cooldown of an hour
or more, a pool without an available key, calls of a model that fail whatever the key, the first
wait of more than 3 s.

A program that has not set up logging sees that wait, and the first rejection of each key, as a
`KeyrotWarning`.
"""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from .. import providers
from ..core.activity import NAMES_KEPT, CallRecord
from ..core.answering import is_other_model
from ..core.commands import Settle, Sleep
from ..core.failures import (
    NOT_OFFERED,
    QUOTED,
    UNKNOWN_REFUSAL,
    describe,
    quotable,
    remedy,
)
from ..core.flow import Exhausted
from ..core.judgement import describe_block
from ..core.model import Block, CallInfo, Lease, Scope, Verdict, account_name, project_name
from ..core.outcomes import ENDS_KEPT, QUIET_S, End, find_failing, how
from ..core.wording import one_line, remaining, utc
from ..errors import KeyrotWarning, warn_unless_logged
from ..locks import Lock
from ..providers.keys import mask_keys
from . import CallObserver, semconv

_logger = logging.getLogger(semconv.INSTRUMENTATION)

LONG_COOLDOWN_S = 3_600.0
LONG_WAIT_S = 3.0
"""A longer wait looks as if the program hangs."""
EXHAUSTED_INTERVAL_S = 60.0
"""Shortest time between two warnings of an exhausted pool."""
_MAX_FAILURES = 1_000


class LogObserver:
    """Logs to the logger `keyrot_middleware`: pool events, and at DEBUG each call."""

    def __init__(self, pool_name: str) -> None:
        self._pool = pool_name
        self.redact: Callable[[str], str] = mask_keys
        """Hides keys in what a service wrote."""
        self._lock = Lock()
        self._exhausted_at = -inf
        self._suppressed = 0
        """Calls that found no key since the last warning."""
        self._failures: dict[tuple[str, str], float] = {}
        """When each failure of a key was last logged, epoch seconds."""
        self._rejected: set[str] = set()
        """Keys that were rejected since they got their value."""
        self._has_waited = False

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Log what becomes of a call at DEBUG; at INFO that it goes to another model."""
        if info.models_tried:
            _log(self._pool, info, logging.INFO, "stands in for %s", info.models_tried[-1])
        return _CallLogger(self._pool, info) if _logger.isEnabledFor(logging.DEBUG) else None

    def on_change(self, info: CallInfo, command: Settle | Sleep, reply: object) -> None:
        """Log a wait, a cooldown or a rejection."""
        if isinstance(command, Sleep):
            self._on_wait(info, command)
            return
        lease, verdict = command.lease, command.outcome.verdict
        if verdict is not None and verdict.advice:
            self._advise(info, verdict)
        if verdict is None or not isinstance(reply, int | float):
            return
        who = _describe_scope(lease, verdict.scope)
        with self._lock:  # requests that were in flight together and fail alike are one line
            if not self._is_new((who, verdict.failure), lease.at, command.at):
                return
            is_first = lease.key_id not in self._rejected
            if verdict.rejected and len(self._rejected) < _MAX_FAILURES:
                self._rejected.add(lease.key_id)
        set_aside = verdict.failure == UNKNOWN_REFUSAL
        text = f"{who} {self._describe(info, verdict, format_time(reply))}"
        if set_aside or (verdict.rejected and is_first):
            warn_unless_logged(_logger, f"pool {self._pool}, {info.model or info.verb}: {text}")
            return
        wide = verdict.scope in (Scope.PROJECT, Scope.BILLING) or verdict.rejected
        long = reply - lease.at >= LONG_COOLDOWN_S
        _log(self._pool, info, logging.WARNING if wide or long else logging.INFO, "%s", text)

    def _describe(self, info: CallInfo, verdict: Verdict, when: str) -> str:
        """Say what follows from a failure of a key, and for what a person has to act on, why."""
        cause, failure = describe(verdict), verdict.failure
        if failure == UNKNOWN_REFUSAL or failure in QUOTED:
            said = one_line(quotable(failure, self.redact(verdict.message)))
            said = said or providers.of(info.platform).says.get(failure, "")
            cause += f' "{said}"' if said else ""
        if failure == UNKNOWN_REFUSAL:
            text = f"is set aside: {cause}; this reply is not known, and another key got an answer"
            return f"{text}; tried again at {when}"
        if verdict.rejected:
            return f"is rejected: {cause}; {remedy(failure)}; tried again at {when}"
        if failure in QUOTED:
            how = "not offered the model" if failure in NOT_OFFERED else "refused"
            return f"is {how}, tried again at {when}: {cause}"
        by = " until" if verdict.has_known_end else ", tried again at"
        return f"is cooling down{by} {when}: {cause}"

    def on_exhausted(self, info: CallInfo, error: Exhausted) -> None:
        """Log that no key is available, once a minute."""
        found = error.unavailable
        with self._lock:
            if 0 <= found.at - self._exhausted_at < EXHAUSTED_INTERVAL_S:
                self._suppressed += 1
                return
            suppressed, self._suppressed, self._exhausted_at = self._suppressed, 0, found.at
        reasons = "; ".join(format_blocked_keys(found.blocks)) or "it has none for this call"
        more = f"; {suppressed} more calls since the last warning" if suppressed else ""
        _log(self._pool, info, logging.WARNING, "no key is available: %s%s", reasons, more)

    def on_key_replaced(self, key_id: str) -> None:
        """Warn again if the new value is rejected too."""
        with self._lock:
            self._rejected.discard(key_id)

    def _advise(self, info: CallInfo, verdict: Verdict) -> None:
        """Warn once a model what to change: a program that gets a response sees no note."""
        with self._lock:
            is_first = self._is_new((info.model, verdict.failure), inf, inf)
        if is_first:
            text = f"pool {self._pool}, {info.model or info.verb}: {describe(verdict)}"
            warn_unless_logged(_logger, text)

    def _is_new(self, name: tuple[str, str], leased_at: float, now: float) -> bool:
        if leased_at <= self._failures.get(name, -inf):
            return False
        if len(self._failures) >= _MAX_FAILURES:
            self._failures = {}
        self._failures[name] = now
        return True

    def _on_wait(self, info: CallInfo, command: Sleep) -> None:
        if not command.is_front:
            _log(self._pool, info, logging.INFO, "waits for a key after earlier calls")
            return
        is_for_key = command.reason == "key"
        why = "for a key" if is_for_key else "before the next try"
        with self._lock:
            is_first = command.seconds > LONG_WAIT_S and not self._has_waited
            self._has_waited = self._has_waited or is_first
        if is_first:
            reasons = format_blocked_keys(command.ticket.blocks if command.ticket else {})
            why += f" ({'; '.join(reasons)})" if reasons else ""
            text = f"waits {command.seconds:.1f} s {why}; later waits are log lines at INFO"
            warn_unless_logged(_logger, f"pool {self._pool}, {info.model or info.verb}: {text}")
            return
        level = logging.INFO if is_for_key else logging.DEBUG
        _log(self._pool, info, level, "waits %.1f s %s", command.seconds, why)


class OutageLog:
    """Logs once where the calls of a model begin to fail, and once where that is over."""

    def __init__(self, pool_name: str) -> None:
        self._pool = pool_name
        self._ends: dict[_Calls, deque[End]] = {}
        """Of this process, the latest first."""
        self._failing: dict[_Calls, _Outage] = {}

    def watch(self, record: CallRecord, end: End) -> Callable[[], object] | None:
        """Return what logs the beginning or the end of an outage; None if this call is neither.

        One of a model is one line, and not one for each workload.
        """
        if end.kind == "no_key":
            return None
        calls = record.platform, record.model, ""
        say = self._compare(calls, end)
        if record.workload and say is None and calls not in self._failing:
            say = self._compare((*calls[:2], record.workload), end)
        return say

    def _compare(self, calls: _Calls, end: End) -> Callable[[], object] | None:
        known = self._ends.get(calls) or self._begin(calls)
        known.appendleft(end)
        found, run = self._failing.get(calls), find_failing([*known], {}, end.at)
        if found is None:
            if run is None:
                return None
            self._failing[calls] = _Outage(run.since, end.at)
            which = "" if run.failed == run.calls else f"{run.failed} of "
            text, said = "%sthe last %d calls%s failed: %s", mask_keys(one_line(how(run)))
            return self._line(calls, logging.WARNING, text, which, run.calls, _of(calls), said)
        if end.kind == "failed":
            found.last, found.good_since = end.at, None
        elif end.kind == "good":
            found.good_since = found.good_since or end.at
            lasted = found.last - found.since
            if run is None and end.at - found.good_since >= min(lasted, QUIET_S):
                del self._failing[calls]
                text, after = "calls%s succeed again, after %s", remaining(lasted)
                return self._line(calls, logging.INFO, text, _of(calls), after.removeprefix("in "))
        return None

    def _begin(self, calls: _Calls) -> deque[End]:
        """Watch some calls too; of too many the oldest are forgotten, first those that are good."""
        if len(self._ends) >= 2 * NAMES_KEPT:
            good = (one for one in self._ends if one not in self._failing)
            oldest = next(good, None) or next(iter(self._ends))
            del self._ends[oldest]
            self._failing.pop(oldest, None)
        self._ends[calls] = deque(maxlen=ENDS_KEPT)
        return self._ends[calls]

    def _line(self, calls: _Calls, *line: Any) -> Callable[[], object]:
        return partial(_log, self._pool, CallInfo(calls[1], ""), *line)


class AnswerLog:
    """Warns once of each model that another one answers."""

    def __init__(self, pool_name: str) -> None:
        self._pool = pool_name
        self._known: set[tuple[str, str, str]] = set()

    def watch(self, record: CallRecord) -> Callable[[], object] | None:
        """Return what warns of the model of a call, if another one has answered it."""
        model, by = record.model, record.usage.model or ""
        if not is_other_model(model, by) or len(self._known) >= NAMES_KEPT:
            return None
        answer = record.platform, model, by
        if answer in self._known:
            return None
        self._known.add(answer)
        text = f"pool {self._pool}: {providers.how_answered(*answer)}"
        return partial(warn_unless_logged, _logger, text)


_Calls = tuple[str, str, str]
"""The platform, the model and the workload of calls; no workload stands for all of them."""


def _of(calls: _Calls) -> str:
    return f" in workload {one_line(calls[2])}" if calls[2] else ""


@dataclass(slots=True)
class _Outage:
    """Calls of a model that fail in this process."""

    since: float
    last: float
    good_since: float | None = None


class _CallLogger(CallObserver):
    """Logs what became of one call."""

    __slots__ = ("_info", "_pool")

    def __init__(self, pool: str, info: CallInfo) -> None:
        self._pool, self._info = pool, info

    def finish(self, error: BaseException | None, record: CallRecord) -> None:
        end = "done" if error is None else f"ended by {type(error).__name__}"
        sent = [f"key {one.key_id} {one.failure or 'ok'}" for one in record.attempts]
        counts = record.usage.input_tokens, record.usage.output_tokens
        tokens = ["?" if count is None else str(count) for count in counts]
        text = "%s after %.2f s: %s; %s input and %s output tokens"
        values = end, record.seconds, ", ".join(sent) or "nothing was sent", *tokens
        _log(self._pool, self._info, logging.DEBUG, text, *values)


def _log(pool: str, info: CallInfo, level: int, text: str, *values: object) -> None:
    if _logger.isEnabledFor(level):
        _logger.log(level, f"pool %s, %s: {text}", pool, info.model or info.verb, *values)


def _describe_scope(lease: Lease, scope: Scope) -> str:
    """Return the key that failed, and the scope of its cooldown."""
    name, account = project_name(lease.project), account_name(lease.billing_account)
    of = {
        Scope.KEY_VERB: f"{lease.verb} only",
        Scope.KEY_MODEL: f"{lease.bucket} only",
        Scope.PROJECT_MODEL: f"{f'project {name}, ' if name else ''}{lease.bucket} only",
        Scope.PROJECT: f"all of project {name}" if name else "",
        Scope.BILLING: f"all of {account}" if account else f"all of project {name}" if name else "",
    }.get(scope)
    return f"key {lease.key_id}{f' ({of})' if of else ''}"


# Log lines on stderr, for a program that has not set up logging --------------------------------


@contextmanager
def log_to_stderr(level: int | None = None) -> Iterator[None]:
    """Log to stderr: warnings inside the block only, or from *level* up for good.

    A `KeyrotWarning` inside the block is a log line too, so it is not shown twice.
    """
    log = logging.getLogger(semconv.INSTRUMENTATION)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("keyrot: %(message)s"))
    handler.setLevel(logging.WARNING if level is None else level)
    log.addHandler(handler)
    if level is not None:
        log.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KeyrotWarning)
            yield
    finally:
        if level is None:
            log.removeHandler(handler)


MAX_BLOCKED_KEYS = 10
"""Most keys listed in one text."""


def format_time(at: float) -> str:
    """Format epoch seconds: `2026-01-02 08:00:00Z`."""
    return f"{utc(at):%Y-%m-%d %H:%M:%SZ}"


def format_blocked_keys(blocked: Mapping[str, Block]) -> list[str]:
    """Return why each key is not available: `flash_01: quota_day until 2026-01-02 08:00:00Z`."""
    blocks = sorted(blocked.items())
    texts = [f"{key_id}: {describe_block(block)}" for key_id, block in blocks[:MAX_BLOCKED_KEYS]]
    if len(blocks) > MAX_BLOCKED_KEYS:
        texts.append(f"and {len(blocks) - MAX_BLOCKED_KEYS} more")
    return texts
