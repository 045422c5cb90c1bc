"""Log lines: every decision at DEBUG; events that affect more than one call at INFO and WARNING.

INFO: a cooldown, a wait for a key, a replaced key, another model. WARNING, for what may need
attention: a rejected key, a project or billing account that is cooling down, a cooldown of an hour
or more, a pool without an available key, the first wait of more than 3 s.

A program that has not set up logging sees that wait, and the first rejection of each key, as a
`KeyrotWarning`.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from math import inf, isfinite
from typing import Any

from .. import providers
from ..core.commands import Acquire, Command, Failed, Send, Settle, Sleep
from ..core.failures import REJECTIONS, UNKNOWN_REFUSAL, describe
from ..core.flow import Exhausted
from ..core.model import Block, CallInfo, Lease, Scope, Verdict, project_name
from ..core.text import one_line, utc
from ..errors import KeyrotWarning, warn_unless_logged
from ..forks import after_fork
from ..providers.keys import mask_keys
from . import CallObserver, semconv

_logger = logging.getLogger(semconv.INSTRUMENTATION)

LONG_COOLDOWN_S = 3_600.0
LONG_WAIT_S = 3.0
"""A longer wait looks as if the program hangs."""
EXHAUSTED_INTERVAL_S = 60.0
"""Shortest time between two warnings of an exhausted pool."""
_MAX_FAILURES = 1_000
_QUOTED = 200
"""Characters of a provider's sentence in a warning."""


class LogObserver:
    """Logs to the logger `keyrot_middleware`: pool events, and at DEBUG each step of a call."""

    def __init__(self, pool_name: str) -> None:
        self._pool = pool_name
        self._lock = threading.Lock()
        self._exhausted_at = -inf
        self._suppressed = 0
        """Calls that found no key since the last warning."""
        self._failures: dict[tuple[str, str], float] = {}
        """When each failure of a key was last logged, epoch seconds."""
        self._rejected: set[str] = set()
        """Keys that were rejected since they got their value."""
        self._has_waited = False
        after_fork(self, lambda child: setattr(child, "_lock", threading.Lock()))

    def observe(self, info: CallInfo) -> CallObserver | None:
        """Log each step of a call, if DEBUG is enabled; that it goes to another model, at INFO."""
        if info.models_tried:
            _log(self._pool, info, logging.INFO, "stands in for %s", info.models_tried[-1])
        return _StepLogger(self._pool, info) if _logger.isEnabledFor(logging.DEBUG) else None

    def on_change(self, info: CallInfo, command: Settle | Sleep, reply: object) -> None:
        """Log a wait, a cooldown or a rejection."""
        if isinstance(command, Sleep):
            self._on_wait(info, command)
            return
        lease, verdict = command.lease, command.outcome.verdict
        if verdict is None or not isinstance(reply, int | float):
            return
        who = _describe_scope(lease, verdict.scope)
        with self._lock:  # requests that were in flight together and fail alike are one line
            is_new = self._is_new((who, verdict.failure), lease.at, command.at)
            is_first = lease.key_id not in self._rejected
            if verdict.rejected and len(self._rejected) < _MAX_FAILURES:
                self._rejected.add(lease.key_id)
        if is_new:
            self._on_cooldown(info, lease, verdict, who, reply, is_first=is_first)

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

    def _on_cooldown(
        self,
        info: CallInfo,
        lease: Lease,
        verdict: Verdict,
        who: str,
        until: float,
        *,
        is_first: bool,
    ) -> None:
        cause, when = describe(verdict), format_time(until)
        if verdict.failure == UNKNOWN_REFUSAL:
            said = mask_keys(one_line(verdict.message))[:_QUOTED]
            text = f'{who} is set aside: {cause} "{said}"; this reply is not known, and another '
            text += f"key got an answer; tried again at {when}"
            warn_unless_logged(_logger, f"pool {self._pool}, {info.model or info.verb}: {text}")
            return
        if not verdict.rejected:
            wide = verdict.scope in (Scope.PROJECT, Scope.BILLING)
            long = until - lease.at >= LONG_COOLDOWN_S
            level = logging.WARNING if wide or long else logging.INFO
            _log(self._pool, info, level, "%s is cooling down until %s: %s", who, when, cause)
            return
        says = providers.of(info.platform).says.get(verdict.failure)
        quote = f' "{says}"' if says else ""
        text = f"{who} is rejected: {cause}{quote}; replace its value; tried again at {when}"
        if is_first:
            warn_unless_logged(_logger, f"pool {self._pool}, {info.model or info.verb}: {text}")
        else:
            _log(self._pool, info, logging.WARNING, "%s", text)


class _StepLogger(CallObserver):
    """Logs every step of one call."""

    __slots__ = ("_info", "_pool")

    def __init__(self, pool: str, info: CallInfo) -> None:
        self._pool, self._info = pool, info

    def before(self, command: Command) -> None:
        if type(command) is Send:
            self._log("attempt %d is sent with key %s", command.attempt, command.lease.key_id)

    def after(self, command: Command, reply: Any) -> None:
        if type(command) is Acquire and not isinstance(reply, Lease):
            self._log("none of %d keys is available", len(reply.blocks))
        elif type(command) is Acquire:
            how = " as a probe" if reply.probe else ""
            how = " without a reservation" if reply.reservation is None else how
            alone = " by in-process limits" if reply.degraded else ""
            text = "lease of key %s%s, %d input tokens reserved%s"
            self._log(text, reply.key_id, how, reply.tokens, alone)
        elif type(command) is Send and isinstance(reply, Failed):
            error = type(reply.error).__name__
            self._log("key %s failed with %s", command.lease.key_id, error)
        elif type(command) is Settle:
            kind, verdict, usage, _ = command.outcome
            end = describe(verdict) if verdict is not None else kind.value
            counts = (usage.input_tokens, usage.output_tokens)
            tokens = ["?" if count is None else str(count) for count in counts]
            text = "key %s settled: %s, %s input and %s output tokens"
            self._log(text, command.lease.key_id, end, *tokens)

    def finish(self, error: BaseException | None) -> None:
        self._log("%s", "done" if error is None else f"ended by {type(error).__name__}")

    def _log(self, text: str, *values: object) -> None:
        _log(self._pool, self._info, logging.DEBUG, text, *values)


def _log(pool: str, info: CallInfo, level: int, text: str, *values: object) -> None:
    if _logger.isEnabledFor(level):
        _logger.log(level, f"pool %s, %s: {text}", pool, info.model or info.verb, *values)


def _describe_scope(lease: Lease, scope: Scope) -> str:
    """Return the key that failed, and the scope of its cooldown."""
    name, account = project_name(lease.project), lease.billing_account
    project = f"project {name}, " if name is not None else ""
    whole = f"all of project {name}" if name is not None else ""
    is_own = account == f"project:{lease.project}"
    reach = {
        Scope.KEY_VERB: f"{lease.verb} only",
        Scope.KEY_MODEL: f"{lease.bucket} only",
        Scope.PROJECT_MODEL: f"{project}{lease.bucket} only",
        Scope.PROJECT_CACHE: f"{project}cached content only",
        Scope.PROJECT: whole,
        Scope.BILLING: whole if is_own else f"all of billing account {account}",
    }.get(scope, "")
    return f"key {lease.key_id}{f' ({reach})' if reach else ''}"


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
    texts = [f"{key_id}: {_format_block(block)}" for key_id, block in blocks[:MAX_BLOCKED_KEYS]]
    if len(blocks) > MAX_BLOCKED_KEYS:
        texts.append(f"and {len(blocks) - MAX_BLOCKED_KEYS} more")
    return texts


def _format_block(block: Block) -> str:
    if block.reason in REJECTIONS:
        until = format_time(block.until)
        return f"{block.reason}, rejected; replace its value; tried again at {until}"
    why = block.note or block.reason
    return f"{why} until {format_time(block.until)}" if isfinite(block.until) else why


LEAST_S = 1.0
"""A shorter wait is not shown."""


class WaitProgress:
    """Shows the wait that ends first; an observer (telemetry/__init__.py)."""

    def __init__(self) -> None:
        self._waits: dict[object, tuple[float, str]] = {}
        """When the wait of each call ends, epoch seconds, and for what it waits."""

    def observe(self, info: CallInfo) -> _CallWaits:
        """Follow the waits of a call."""
        return _CallWaits(self)

    def change(self, call: object, wait: tuple[float, str] | None) -> None:
        """Show that *call* waits, or no longer waits."""
        if wait is not None:
            self._waits[call] = wait
        elif self._waits.pop(call, None) is None:
            return
        text, waits = "", sorted(self._waits.copy().values())
        if waits:
            until, reason = waits[0]
            more = f"; {len(waits) - 1} more" if len(waits) > 1 else ""
            text = f"keyrot: waiting until {datetime.fromtimestamp(until):%H:%M:%S} {reason}{more}"
        sys.stderr.write(f"\r\x1b[2K{one_line(text)[:79]}")
        sys.stderr.flush()


class _CallWaits(CallObserver):
    def __init__(self, progress: WaitProgress) -> None:
        self._progress, self._last = progress, ""

    def before(self, command: Command) -> None:
        """Show a wait that begins."""
        if type(command) is Sleep and command.seconds >= LEAST_S:
            blocks = command.ticket.blocks if command.ticket is not None else {}
            first = min(blocks, key=lambda one: blocks[one].until, default="a key")
            last = f" ({self._last})" if self._last else ""
            reason = f"for {first}{last}" if command.reason == "key" else f"before a retry{last}"
            self._progress.change(self, (time.time() + command.seconds, reason))

    def after(self, command: Command, reply: Any) -> None:
        """Remember how a key failed; end a wait."""
        if type(command) is Sleep:
            self._progress.change(self, None)
        elif type(command) is Settle and command.outcome.verdict is not None:
            verdict = command.outcome.verdict
            self._last = f"{verdict.code or ''} {verdict.failure}".strip()

    def finish(self, error: BaseException | None) -> None:
        """End a wait that was interrupted."""
        self._progress.change(self, None)
