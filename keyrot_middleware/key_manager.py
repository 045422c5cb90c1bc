"""The pool for programs that choose keys by hand: the same state, the same rules.

manager = keyrot_middleware.get_key_manager()
key = manager.select_key("gemini-flash-latest", tokens_needed=1200)
try:
    response = call_gemini_somehow(key.api_key)
except Exception as error:
    manager.report_error(key.key_id, error)
else:
    manager.report_success(key.key_id, tokens_used=1180)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from typing import Any, NoReturn, Unpack, get_args

from ._install import current_pool, open_pool
from .config import load
from .core.activity import Attempt, CallOutcome, CallRecord
from .core.commands import Failed, Settle
from .core.failures import REJECTIONS, FailureFacts, classify
from .core.flow import Exhausted
from .core.model import (
    GEMINI_API,
    Block,
    CallInfo,
    Lease,
    LeaseOutcome,
    Outcome,
    Platform,
    Unavailable,
    Usage,
    project_label,
)
from .core.spending import nano_usd
from .core.text import did_you_mean, display
from .errors import ConfigError
from .forks import after_fork
from .genai.call_info import facts_from_reported_error
from .genai.pool_exhausted import exhausted
from .guard import handle_internal_error
from .key_lease import KeyLease, LeasedKey, Report, check_count, reported_usage
from .monitoring.health import HealthStatus, health
from .monitoring.report import source_of
from .runtime.current import required_project, required_tiers
from .runtime.pool import Clock, Pool, SystemClock
from .secrets import Secret
from .settings import SettingArguments, hide_keys
from .state.base import Holder
from .state.threads import StateThreads
from .telemetry.observer import notify_listeners

__all__ = ["KeyLease", "KeyManager", "LeasedKey", "Report", "SelectedKey", "get_key_manager"]

LEASE_S = 600.0
"""Seconds after which a selection without a report counts as abandoned."""


@dataclass(frozen=True, slots=True)
class SelectedKey:
    """A key to send one request with."""

    key_id: str
    _value: Secret = field(repr=False)

    @property
    def api_key(self) -> str:
        """The key itself."""
        return str(self._value.reveal())

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a selected key cannot be pickled or copied: its value stays where it is")


class KeyManager:
    """Choose keys by hand, and report what came of them. Safe from any thread."""

    def __init__(
        self,
        pool: Pool | None = None,
        /,
        *,
        clock: Clock | None = None,
        **settings: Unpack[SettingArguments],
    ) -> None:
        """Open a pool of its own from *settings* (as `install()` takes them), or share *pool*.

        Raises:
            ConfigError: A setting or keys.json is wrong, or there is no key at all.
        """
        hide_keys(settings)
        self._pool = pool or _own_pool(clock or SystemClock(), settings)
        self._owns_pool = pool is None
        self.closed = False
        """`close()` was called."""
        self._lock = threading.Lock()
        after_fork(self, lambda child: setattr(child, "_lock", threading.Lock()))
        self._out: dict[str, deque[tuple[Lease, CallInfo]]] = {}
        self._threads = StateThreads()

    def lease(
        self,
        model_preference: str | None = None,
        tokens_needed: int = 0,
        exclude: Collection[str] = (),
        platform: Platform = GEMINI_API,
    ) -> KeyLease:
        """Lease a key for one request: `with manager.lease(model) as key`, or `async with`.

        The key is reserved at the start of the block, without waiting. A block that ends normally
        is a success; `key.record_usage()` books its true input tokens. An exception is reported as
        by `report_error()` and raised again, with keys in it redacted. A cancellation or an
        interrupt does not count as a failure of the key.

        Args:
            model_preference: As for `select_key()`; so are the others.
            tokens_needed: Input tokens to reserve; 0 counts the request alone.
            exclude: Ids not to choose.
            platform: As for `select_key()`.

        Raises:
            KeyPoolExhausted: At the start of the block: no key is available.
            ValueError: The tokens are no whole number from 0, or there is no such platform.
        """
        check_count("tokens_needed", tokens_needed)
        _check_platform(platform)

        def reserve(holder: Holder) -> tuple[Lease, CallInfo, Secret]:
            lease, info = self._reserve(model_preference, tokens_needed, exclude, platform, holder)
            return lease, info, self._pool.secrets.value(lease.key_id)

        return KeyLease(reserve, self._settle_lease, self._threads)

    def select_key(
        self,
        model_preference: str | None = None,
        tokens_needed: int = 0,
        exclude: Collection[str] = (),
        platform: Platform = GEMINI_API,
    ) -> SelectedKey:
        """Reserve a request on the best key that is available now; never waits.

        Args:
            model_preference: The model the request is for; its keys go first, its quota is used.
            tokens_needed: Input tokens to reserve; 0 counts the request alone.
            exclude: Ids not to choose, such as those that failed this job already.
            platform: `vertex_express` for a request to Vertex AI in express mode. Keys of one
                platform are never chosen for the other.

        Raises:
            KeyPoolExhausted: No key is available; `retry_at` and `reasons` say when and why.
            ValueError: The tokens are no whole number from 0, or there is no such platform.
        """
        check_count("tokens_needed", tokens_needed)
        lease, info = self._reserve(model_preference, tokens_needed, exclude, platform)
        self._keep(lease, info)
        return SelectedKey(lease.key_id, self._pool.secrets.value(lease.key_id))

    def _reserve(
        self,
        model: str | None,
        tokens: int,
        exclude: Collection[str],
        platform: Platform,
        holder: Holder | None = None,
    ) -> tuple[Lease, CallInfo]:
        _check_platform(platform)
        exclude = (exclude,) if isinstance(exclude, str) else exclude
        pool = self._pool
        info = CallInfo(
            model or "",
            "generateContent",
            tokens,
            platform=platform,
            tiers=required_tiers.get(),
            project=required_project.get(),
        )
        now = pool.clock.time()
        self._forget_older_than(now - LEASE_S)
        found = self._acquire(info, exclude, now, holder)
        if not isinstance(found, Lease) and _all_rejected(found) and pool.refresh_all():
            found = self._acquire(info, exclude, now, holder)
        if isinstance(found, Lease):
            return found, info
        if found:
            error = Exhausted(Unavailable(now, found))
            notify_listeners(
                pool.event_listeners, "on_exhausted", handle_internal_error, info, error
            )
        blocks = self._left_out(exclude, now) | found
        last, quote = pool.last_refusal(blocks), pool.quote(info.model, blocks)
        blocks = pool.selector.other_tiers(info) | blocks
        raise exhausted(pool.name, blocks, now, last, None, quote=quote)

    def report_success(
        self, key_id: str, tokens_used: int | None = None, *, response: Any = None
    ) -> None:
        """Book the true input tokens of the oldest open selection of *key_id*.

        Args:
            key_id: As selected.
            tokens_used: Input tokens as the server counted them.
            response: Instead of *tokens_used*: the SDK's response, whose usage is read.

        Raises:
            KeyError: There is no such key.
            ValueError: The tokens are no whole number from 0.
        """
        usage = reported_usage(tokens_used, response)
        self._settle_success(self._take(key_id)[0], usage)

    def report_error(self, key_id: str, error: BaseException) -> Report:
        """Report that the request failed: the key is judged by the rules of the pool.

        Args:
            key_id: As selected.
            error: The SDK's exception, or that of another HTTP library (docs/quick-reference.md).
                Keys in it are redacted in place.

        Returns:
            What it was, and whether another key may serve the same request.

        Raises:
            KeyError: There is no such key.
        """
        return self._settle_failure(*self._take(key_id), error)

    def _settle_lease(
        self, lease: Lease, info: CallInfo, usage: Usage, error: BaseException | None
    ) -> Report | None:
        """Settle what `lease()` reserved."""
        if error is None:
            self._settle_success(lease, usage)
        elif isinstance(error, Exception):
            return self._settle_failure(lease, info, error)
        else:
            self._settle(lease, Outcome(LeaseOutcome.ABANDONED, None, usage), None)
        return None

    def _settle_success(self, lease: Lease, usage: Usage) -> None:
        self._settle(lease, Outcome(LeaseOutcome.SUCCESS, None, usage), None)
        tokens = usage.input_tokens
        if tokens is not None and tokens < lease.tokens:
            self._pool.selector.release(lease.key_id)

    def _settle_failure(self, lease: Lease, info: CallInfo, error: BaseException) -> Report:
        pool = self._pool
        redact = pool.secrets.redact
        facts = (
            facts_from_reported_error(error, redact)
            if isinstance(error, Exception)
            else FailureFacts()
        )
        verdict = classify(facts, info, pool.clock.time(), lease.at or None)
        kind = LeaseOutcome.FAILURE if verdict.sent else LeaseOutcome.UNSENT
        until = self._settle(lease, Outcome(kind, verdict), Failed(facts, error))
        pool.record_quote(info.model, verdict)
        if verdict.rejected and pool.refresh(lease.key_id):
            pool.log_replaced(frozenset({lease.key_id}))
        return Report(
            verdict.failure,
            verdict.rotate,
            datetime.fromtimestamp(until, UTC) if until is not None else None,
        )

    def reset(self, key_id: str) -> None:
        """Make a key available again, and forget its learned limits; see `reset()`.

        Raises:
            KeyError: There is no such key.
        """
        self._pool.reset(key_id)

    def get_health_status(self) -> dict[str, HealthStatus]:
        """Report how each key is, by its id."""
        return health(self._pool)

    def close(self) -> None:
        """Settle what was selected and not reported; stop the background work of an own pool.

        A pool that `install()` opened goes on. A closed manager is not used again.
        """
        self.closed = True
        self._forget_older_than(inf)
        self._threads.close()
        if self._owns_pool:
            self._pool.close()

    def __enter__(self) -> KeyManager:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def explain(
        self,
        model: str,
        tokens: int = 0,
        workload: str = "",
        platform: Platform = GEMINI_API,
    ) -> dict[str, Any]:
        """Return which key a call would get now; nothing is sent, and nothing reserved.

        Args:
            model: As in a call.
            tokens: Input tokens of the call.
            workload: Whose keys are preferred; "" for none.
            platform: `vertex_express` for a call to Vertex AI in express mode.

        Returns:
            `key_id`, or None where no key is available; `sentence`, the same for people; and
            `keys`, a dict for each key with `key_id, project, position, available, reason,
            sentence, available_at`. Keys of one position are tried together, lower ones first.

        Raises:
            KeyrotError: The tokens are negative.
            ValueError: There is no such platform.
        """
        _check_platform(platform)
        return source_of(self._pool).explain(model, tokens, workload, platform)

    def _acquire(
        self, info: CallInfo, exclude: Collection[str], now: float, holder: Holder | None
    ) -> Lease | dict[str, Block]:
        """Lease a key; give why each that is not excluded cannot be, where none can."""
        pool, blocks = self._pool, dict[str, Block]()
        out = dict.fromkeys(exclude, inf)
        pool.keep_running()
        for candidates in pool.selector.candidate_batches(info, out, now, pool.random()):
            counted = pool.with_estimates(info)
            spread = pool.selector.spread
            reply = pool.state.acquire(counted, candidates, spread=spread, holder=holder)
            if isinstance(reply, Lease):
                return reply
            blocks |= reply.blocks
            pool.selector.defer(info, reply.blocks, now)
        return pool.selector.deferred(info) | blocks

    def _left_out(self, exclude: Collection[str], now: float) -> dict[str, Block]:
        """Return why each excluded key cannot serve: cooling down, or excluded by the caller."""
        keys = [key for key in self._pool.selector.keys.values() if key.key_id in exclude]
        known = self._pool.state.snapshot(keys)
        return {
            key_id: Block(state.cooldown_reason or "excluded", state.cooldown_until or now)
            for key_id, state in known.items()
        }

    def _keep(self, lease: Lease, info: CallInfo) -> None:
        with self._lock:
            self._out.setdefault(lease.key_id, deque()).append((lease, info))

    def _forget_older_than(self, at: float) -> None:
        """Settle selections without a report: a forgotten probe would block its key forever."""
        stale: list[Lease] = []
        with self._lock:
            for waiting in self._out.values():
                while waiting and waiting[0][0].at < at:
                    stale.append(waiting.popleft()[0])
        for lease in stale:
            self._pool.state.settle(lease, Outcome(LeaseOutcome.ABANDONED))

    def _take(self, key_id: str) -> tuple[Lease, CallInfo]:
        """Return the open selection of a key, or a new one."""
        with self._lock:
            waiting = self._out.get(key_id)
            if waiting:
                return waiting.popleft()
        key = self._pool.selector.keys.get(key_id)
        if key is None:
            known = ", ".join(self._pool.selector.keys)
            raise KeyError(f"no key {key_id!r} in pool {self._pool.name!r}; there are: {known}")
        info = CallInfo("", "generateContent", platform=key.platform)
        own = (key_id, key.project, key.billing_account)
        return Lease(*own, "", info.verb, 0, 0, at=0.0, record=key.record), info

    def _settle(self, lease: Lease, outcome: Outcome, failure: Failed | None) -> float | None:
        pool, verdict = self._pool, outcome.verdict
        pool.record_refusal(Settle(lease, outcome, (), failure.error if failure else None))
        # A report without an open selection reserved nothing that settle() could count.
        unreserved = None if lease.at else pool.selector.keys.get(lease.key_id)
        counts_alone = unreserved is not None and unreserved.usd_per_day is not None
        has_budget = lease.has_budget or counts_alone
        if has_budget or pool.activity.enabled:
            info = CallInfo(lease.bucket, lease.verb)
            usage = pool.with_cost(outcome.usage, info, has_budget=has_budget)
            outcome = outcome._replace(usage=usage)
        until = pool.state.settle(lease, outcome)
        if counts_alone and outcome.usage.cost_usd:
            pool.state.record_spending(lease.project, nano_usd(outcome.usage.cost_usd))
        now = pool.clock.time()
        seconds = now - lease.at if lease.at else 0.0
        failure_class = verdict.failure if verdict is not None else None
        code = verdict.code if verdict is not None else None
        attempt = Attempt(lease.key_id, failure_class, code, seconds)
        ended = _OUTCOMES[outcome.kind]
        call = CallRecord(
            now,
            lease.bucket,
            seconds,
            ended,
            (attempt,),
            outcome.usage,
            project=project_label(lease.project),
        )
        pool.activity.add(call)
        return until


_OUTCOMES: Mapping[LeaseOutcome, CallOutcome] = {
    LeaseOutcome.SUCCESS: "ok",
    LeaseOutcome.FAILURE: "failed",
    LeaseOutcome.UNSENT: "failed",
    LeaseOutcome.ABANDONED: "abandoned",
}


def _check_platform(platform: object) -> None:
    allowed = get_args(Platform)
    if platform not in allowed:
        raise ValueError(
            f"platform: found {display(platform)}; allowed: {', '.join(allowed)}."
            f"{did_you_mean(str(platform), allowed)}"
        )


def _all_rejected(blocks: Mapping[str, Block]) -> bool:
    return bool(blocks) and all(block.reason in REJECTIONS for block in blocks.values())


def get_key_manager() -> KeyManager:
    """Return the process-wide manager: of the installed pool, else of one from the environment."""
    with _shared_lock:
        pool = current_pool()
        if pool is None:
            if None not in _shared or _shared[None].closed:
                _shared[None] = KeyManager()
            return _shared[None]
        known = _shared.get(pool.name)
        if known is None or known.closed or known._pool is not pool:
            _shared[pool.name] = KeyManager(pool)
        return _shared[pool.name]


_shared: dict[str | None, KeyManager] = {}
_shared_lock = threading.Lock()


def _own_pool(clock: Clock, settings: SettingArguments) -> Pool:
    config = load(**settings)
    if not config.settings.enabled:
        raise ConfigError(
            "KeyManager: switched off by ENABLE_KEY_ROTATION, so there is no pool to choose keys "
            "from; KeyManager(enabled=True) opens one all the same"
        )
    pool = open_pool(config, clock)
    if pool is None:
        raise ConfigError(
            "KeyManager: no Gemini API key found; set GEMINI_API_KEYS, or GEMINI_API_KEY, or write "
            "keys.json with a GEMINI_KEY_<key_id> for each key"
        )
    return pool
