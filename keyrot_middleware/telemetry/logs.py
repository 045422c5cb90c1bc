"""Log lines: a decision each at DEBUG; at INFO and WARNING what changes for more than one call.

INFO: a cooldown, a wait for a key, a replaced key. WARNING: what somebody may have to look after,
which is a rejected key, a whole project or billing account cooling down, a cooldown of an hour or
more, a pool that cannot serve.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

from ..core.commands import Acquire, Command, Failed, Refresh, Send, Settle, Sleep
from ..core.failures import describe
from ..core.flow import Exhausted
from ..core.model import CallInfo, Lease, Scope, Verdict, project_label
from ..errors import KeyrotWarning
from ..forks import after_fork
from . import semconv
from .log_text import blocked, format_time
from .observer import CallObserver

__all__ = [
    "LogObserver",
    "log_to_stderr",
]

_log = logging.getLogger(semconv.INSTRUMENTATION)

LONG_S = 3_600.0
REPEAT_S = 60.0
"""An exhausted pool is a warning so often at most; the next one counts the calls in between."""
_MOST = 1_000


class LogObserver:
    """Log under the logger `keyrot_middleware`: changes always, each step at DEBUG."""

    def __init__(self, pool_name: str) -> None:
        self._pool = pool_name
        self._lock = threading.Lock()
        self._exhausted_at = -inf
        self._more = 0
        """Calls that failed for want of a key since the warning of that."""
        self._failed: dict[tuple[str, str], float] = {}
        """When each failure of a key was logged last, epoch seconds."""
        after_fork(self, lambda child: setattr(child, "_lock", threading.Lock()))

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Follow each step of a call, if the logger's level asks for that."""
        return _Decisions(self._pool, info) if _log.isEnabledFor(logging.DEBUG) else None

    def on_change(self, info: CallInfo, command: Settle | Sleep | Refresh, reply: object) -> None:
        """Log a wait, a cooldown, a rejection, a new value."""
        if isinstance(command, Sleep):
            if not command.front:
                _say(self._pool, info, logging.INFO, "waits for a key after earlier calls")
                return
            level = logging.INFO if command.why == "key" else logging.DEBUG
            why = "for a key" if command.why == "key" else "before the next try"
            _say(self._pool, info, level, "waits %.1f s %s", command.seconds, why)
        elif isinstance(command, Settle):
            verdict = command.outcome.verdict
            if verdict is not None and isinstance(reply, int | float) and self._is_new(command):
                self._rest(info, command.lease, verdict, reply)
        elif reply is True:
            text = "key %s has a new value and is available again"
            _say(self._pool, info, logging.INFO, text, command.key_id)

    def on_exhausted(self, info: CallInfo, error: Exhausted) -> None:
        """Log that no key is available, once a minute."""
        now = error.unavailable.at
        with self._lock:
            if 0 <= now - self._exhausted_at < REPEAT_S:
                self._more += 1
                return
            more, self._more, self._exhausted_at = self._more, 0, now
        reasons = "; ".join(blocked(error)) or "it has none for this call"
        before = f"; {more} more calls failed so since the last warning" if more else ""
        text = "no key is available: %s%s"
        _say(self._pool, info, logging.WARNING, text, reasons, before)

    def _is_new(self, command: Settle) -> bool:
        """Tell whether the request was sent after the same failure of its key was logged.

        Requests that were under way together and fail together are one piece of news.
        """
        lease, verdict = command.lease, command.outcome.verdict
        assert verdict is not None  # noqa: S101 - narrows the type; the only caller has asked
        name = (_whom(lease, verdict.scope), verdict.failure)
        with self._lock:
            if lease.at <= self._failed.get(name, -inf):
                return False
            if len(self._failed) >= _MOST:
                self._failed = {}
            self._failed[name] = command.at
        return True

    def _rest(self, info: CallInfo, lease: Lease, verdict: Verdict, until: float) -> None:
        cause = describe(verdict)
        if verdict.rejected:
            text = "%s is rejected: %s; replace its value; tried again at %s"
            whom = _whom(lease, verdict.scope)
            _say(self._pool, info, logging.WARNING, text, whom, cause, format_time(until))
            return
        wide = verdict.scope in (Scope.PROJECT, Scope.BILLING)
        level = logging.WARNING if wide or until - lease.at >= LONG_S else logging.INFO
        whom = _whom(lease, verdict.scope)
        _say(
            self._pool,
            info,
            level,
            "%s is cooling down until %s: %s",
            whom,
            format_time(until),
            cause,
        )


class _Decisions:
    """Follow one call and log every step."""

    __slots__ = ("_info", "_pool")

    def __init__(self, pool: str, info: CallInfo) -> None:
        self._pool = pool
        self._info = info

    def before(self, command: Command) -> None:
        """Log what is about to be sent."""
        if type(command) is Send:
            text = "attempt %d goes out with key %s"
            self._say(text, command.attempt, command.lease.key_id)

    def after(self, command: Command, reply: Any) -> None:
        """Log what came of it."""
        if type(command) is Acquire:
            self._acquired(reply)
        elif type(command) is Send and isinstance(reply, Failed):
            error = type(reply.error).__name__
            self._say("key %s failed with %s", command.lease.key_id, error)
        elif type(command) is Settle:
            self._settled(command)

    def attach(self) -> None:
        """Do nothing: a log line has no context."""

    def detach(self, token: object) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None) -> None:
        """Log how it ended."""
        end = "done" if error is None else f"ended by {type(error).__name__}"
        self._say("%s", end)

    def _say(self, text: str, *values: object) -> None:
        _say(self._pool, self._info, logging.DEBUG, text, *values)

    def _acquired(self, reply: Any) -> None:
        if not isinstance(reply, Lease):
            self._say("none of %d keys can serve", len(reply.blocks))
            return
        how = " without a booking" if reply.books is None else " as a probe" if reply.probe else ""
        alone = " by this process alone" if reply.degraded else ""
        text = "lease of key %s%s, %d input tokens reserved%s"
        self._say(text, reply.key_id, how, reply.tokens, alone)

    def _settled(self, command: Settle) -> None:
        kind, verdict, usage = command.outcome
        end = describe(verdict) if verdict is not None else kind.value
        tokens = f"{_count(usage.input_tokens)} input and {_count(usage.output_tokens)} output"
        text = "key %s settled: %s, %s tokens"
        self._say(text, command.lease.key_id, end, tokens)


def _say(pool: str, info: CallInfo, level: int, text: str, *values: object) -> None:
    if _log.isEnabledFor(level):
        _log.log(level, f"pool %s, %s: {text}", pool, info.model or info.verb, *values)


def _whom(lease: Lease, scope: Scope) -> str:
    """Say how far a rest reaches, beginning with the key that showed it."""
    project = project_label(lease.project)
    reach = {
        Scope.KEY: "",
        Scope.KEY_VERB: f" ({lease.verb} only)",
        Scope.KEY_MODEL: f" ({lease.bucket} only)",
        Scope.PROJECT_MODEL: f" (project {project}, {lease.bucket} only)",
        Scope.PROJECT_CACHE: f" (project {project}, cached content only)",
        Scope.PROJECT: f" (all of project {project})",
        Scope.BILLING: f" (all of billing account {lease.billing_account})",
    }
    return f"key {lease.key_id}{reach.get(scope, '')}"


def _count(tokens: int | None) -> str:
    return "?" if tokens is None else str(tokens)


# Log lines on stderr, while a program that knows nothing of us has not set up logging yet ------


@contextmanager
def log_to_stderr(level: int | None = None) -> Iterator[None]:
    """Show what the library logs: warnings while inside, and from *level* up for good.

    All that is a `KeyrotWarning` inside is a log line as well, so that it is not shown twice.
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
