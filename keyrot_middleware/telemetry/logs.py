"""Log lines: every decision at DEBUG; events that affect more than one call at INFO and WARNING.

INFO: a cooldown, a wait for a key, a replaced key, another model. WARNING, for what may need
attention: a rejected key, a project or billing account that is cooling down, a cooldown of an hour
or more, a pool without an available key, the first wait of more than 3 s.

A program that has not set up logging sees that wait, and the first rejection of each key, as a
`KeyrotWarning`.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

from ..core.commands import Acquire, Command, Failed, Send, Settle, Sleep
from ..core.failures import describe
from ..core.flow import Exhausted
from ..core.model import CallInfo, Lease, Scope, Verdict, project_name
from ..errors import KeyrotWarning, warn_unless_logged
from ..forks import after_fork
from . import semconv
from .log_text import format_blocked_keys, format_time
from .observer import CallObserver

__all__ = [
    "LogObserver",
    "log_to_stderr",
]

_logger = logging.getLogger(semconv.INSTRUMENTATION)

LONG_COOLDOWN_S = 3_600.0
LONG_WAIT_S = 3.0
"""A longer wait looks as if the program hangs."""
EXHAUSTED_INTERVAL_S = 60.0
"""Shortest time between two warnings of an exhausted pool."""
_MAX_FAILURES = 1_000


class LogObserver:
    """Logs to the logger `keyrot_middleware`: pool events, and at DEBUG each step of a call."""

    def __init__(self, pool_name: str) -> None:
        self._pool = pool_name
        self._lock = threading.Lock()
        self._exhausted_at = -inf
        self._suppressed = 0
        """Calls that found no key since the last warning."""
        self._logged_failures: dict[tuple[str, str], float] = {}
        """When each failure of a key was last logged, epoch seconds."""
        self._rejected: set[str] = set()
        """Keys that were rejected since they got their value."""
        self._has_waited = False
        after_fork(self, lambda child: setattr(child, "_lock", threading.Lock()))

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Log each step of a call, if DEBUG is enabled; that it goes to another model, at INFO."""
        if info.models_tried:
            text = "stands in for %s"
            _log_call(self._pool, info, logging.INFO, text, info.models_tried[-1])
        return _StepLogger(self._pool, info) if _logger.isEnabledFor(logging.DEBUG) else None

    def on_change(self, info: CallInfo, command: Settle | Sleep, reply: object) -> None:
        """Log a wait, a cooldown or a rejection."""
        if isinstance(command, Sleep):
            if not command.is_front:
                _log_call(self._pool, info, logging.INFO, "waits for a key after earlier calls")
                return
            level = logging.INFO if command.reason == "key" else logging.DEBUG
            why = "for a key" if command.reason == "key" else "before the next try"
            if command.seconds > LONG_WAIT_S and self._is_first_wait():
                reasons = format_blocked_keys(command.ticket.blocks if command.ticket else {})
                why += f" ({'; '.join(reasons)})" if reasons else ""
                text = "waits %.1f s %s; later waits are log lines at INFO"
                _warn_unless_logged(self._pool, info, text, command.seconds, why)
                return
            _log_call(self._pool, info, level, "waits %.1f s %s", command.seconds, why)
        else:
            verdict = command.outcome.verdict
            if verdict is not None and isinstance(reply, int | float) and self._is_new(command):
                self._log_cooldown(info, command.lease, verdict, reply)

    def on_exhausted(self, info: CallInfo, error: Exhausted) -> None:
        """Log that no key is available, once a minute."""
        now = error.unavailable.at
        with self._lock:
            if 0 <= now - self._exhausted_at < EXHAUSTED_INTERVAL_S:
                self._suppressed += 1
                return
            suppressed, self._suppressed, self._exhausted_at = self._suppressed, 0, now
        reasons = (
            "; ".join(format_blocked_keys(error.unavailable.blocks)) or "it has none for this call"
        )
        before = f"; {suppressed} more calls since the last warning" if suppressed else ""
        text = "no key is available: %s%s"
        _log_call(self._pool, info, logging.WARNING, text, reasons, before)

    def on_key_replaced(self, key_id: str) -> None:
        """Warn again if the new value is rejected too."""
        with self._lock:
            self._rejected.discard(key_id)

    def _is_first_wait(self) -> bool:
        with self._lock:
            first, self._has_waited = not self._has_waited, True
        return first

    def _is_first_rejection(self, key_id: str) -> bool:
        with self._lock:
            if key_id in self._rejected:
                return False
            if len(self._rejected) >= _MAX_FAILURES:
                self._rejected = set()
            self._rejected.add(key_id)
        return True

    def _is_new(self, command: Settle) -> bool:
        """Return whether the request was sent after the same failure of its key was logged.

        Concurrent requests that fail alike are logged once.
        """
        lease, verdict = command.lease, command.outcome.verdict
        assert verdict is not None  # noqa: S101 - narrows the type; the only caller checked
        name = (_describe_scope(lease, verdict.scope), verdict.failure)
        with self._lock:
            if lease.at <= self._logged_failures.get(name, -inf):
                return False
            if len(self._logged_failures) >= _MAX_FAILURES:
                self._logged_failures = {}
            self._logged_failures[name] = command.at
        return True

    def _log_cooldown(self, info: CallInfo, lease: Lease, verdict: Verdict, until: float) -> None:
        cause = describe(verdict)
        if verdict.rejected:
            text = "%s is rejected: %s; replace its value; tried again at %s"
            values = _describe_scope(lease, verdict.scope), cause, format_time(until)
            if self._is_first_rejection(lease.key_id):
                _warn_unless_logged(self._pool, info, text, *values)
            else:
                _log_call(self._pool, info, logging.WARNING, text, *values)
            return
        wide = verdict.scope in (Scope.PROJECT, Scope.BILLING)
        level = logging.WARNING if wide or until - lease.at >= LONG_COOLDOWN_S else logging.INFO
        subject = _describe_scope(lease, verdict.scope)
        _log_call(
            self._pool,
            info,
            level,
            "%s is cooling down until %s: %s",
            subject,
            format_time(until),
            cause,
        )


class _StepLogger:
    """Logs every step of one call."""

    __slots__ = ("_info", "_pool")

    def __init__(self, pool: str, info: CallInfo) -> None:
        self._pool = pool
        self._info = info

    def before(self, command: Command) -> None:
        """Log a request that is about to be sent."""
        if type(command) is Send:
            text = "attempt %d is sent with key %s"
            self._log(text, command.attempt, command.lease.key_id)

    def after(self, command: Command, reply: Any) -> None:
        """Log the result."""
        if type(command) is Acquire:
            self._acquired(reply)
        elif type(command) is Send and isinstance(reply, Failed):
            error = type(reply.error).__name__
            self._log("key %s failed with %s", command.lease.key_id, error)
        elif type(command) is Settle:
            self._settled(command)

    def attach(self) -> None:
        """Do nothing."""

    def detach(self, token: object) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None) -> None:
        """Log the end of the call."""
        end = "done" if error is None else f"ended by {type(error).__name__}"
        self._log("%s", end)

    def _log(self, text: str, *values: object) -> None:
        _log_call(self._pool, self._info, logging.DEBUG, text, *values)

    def _acquired(self, reply: Any) -> None:
        if not isinstance(reply, Lease):
            self._log("none of %d keys is available", len(reply.blocks))
            return
        how = (
            " without a reservation"
            if reply.reservation is None
            else " as a probe"
            if reply.probe
            else ""
        )
        alone = " by in-process limits" if reply.degraded else ""
        text = "lease of key %s%s, %d input tokens reserved%s"
        self._log(text, reply.key_id, how, reply.tokens, alone)

    def _settled(self, command: Settle) -> None:
        kind, verdict, usage = command.outcome
        end = describe(verdict) if verdict is not None else kind.value
        tokens = f"{_count(usage.input_tokens)} input and {_count(usage.output_tokens)} output"
        text = "key %s settled: %s, %s tokens"
        self._log(text, command.lease.key_id, end, tokens)


def _log_call(pool: str, info: CallInfo, level: int, text: str, *values: object) -> None:
    if _logger.isEnabledFor(level):
        _logger.log(level, f"pool %s, %s: {text}", pool, info.model or info.verb, *values)


def _warn_unless_logged(pool: str, info: CallInfo, text: str, *values: object) -> None:
    """Log a warning of a call; where the program has not set up logging, issue it."""
    warn_unless_logged(_logger, f"pool {pool}, {info.model or info.verb}: {text % values}")


def _describe_scope(lease: Lease, scope: Scope) -> str:
    """Return the key that failed, and the scope of its cooldown."""
    name, account = project_name(lease.project), lease.billing_account
    project = f"project {name}, " if name is not None else ""
    whole = f"all of project {name}" if name is not None else ""
    reach = {
        Scope.KEY_VERB: f"{lease.verb} only",
        Scope.KEY_MODEL: f"{lease.bucket} only",
        Scope.PROJECT_MODEL: f"{project}{lease.bucket} only",
        Scope.PROJECT_CACHE: f"{project}cached content only",
        Scope.PROJECT: whole,
        Scope.BILLING: whole
        if account == f"project:{lease.project}"
        else f"all of billing account {account}",
    }.get(scope, "")
    return f"key {lease.key_id}{f' ({reach})' if reach else ''}"


def _count(tokens: int | None) -> str:
    return "?" if tokens is None else str(tokens)


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
