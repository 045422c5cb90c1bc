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
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any, NoReturn, Unpack, get_args

from ._install import open_pool
from .adapters.foreign_errors import facts_from_reported_error
from .adapters.pool_exhausted import exhausted_call
from .adapters.pooled_calls import PooledCalls
from .config import load
from .core.activity import Attempt, CallRecord
from .core.commands import Settle
from .core.failures import FailureFacts, classify
from .core.flow import CallState, Exhausted
from .core.model import (
    GEMINI_API,
    Block,
    CallInfo,
    Lease,
    LeaseOutcome,
    Outcome,
    Platform,
    Unavailable,
    Verdict,
    project_name,
)
from .core.spending import nano_usd
from .core.text import did_you_mean, display, hide_secrets
from .errors import ConfigError
from .forks import after_fork
from .key_lease import KeyLease, KeyUse, Report, check_count, report, reported_usage
from .monitoring.view import HealthStatus, health, source_of
from .runtime.current import current_pool
from .runtime.pool import Clock, Pool, SystemClock
from .secrets import Secret
from .settings import SettingArguments, hide_keys

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
        self._calls = PooledCalls(self._pool, self._pool.allowed_origins)
        """Stays empty: what never waits is not behind calls that do."""
        self._out: dict[str, deque[KeyUse]] = {}

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
        by `report_error()` and raised again, with keys in it redacted and a note of the key. A
        cancellation or an interrupt does not count as a failure of the key.

        Args:
            model_preference: As for `select_key()`; so are the others.
            tokens_needed: Input tokens to reserve; 0 counts the request alone.
            exclude: Ids not to choose.
            platform: As for `select_key()`.

        Raises:
            KeyPoolExhausted: At the start of the block: no key is available.
            ValueError: The number of tokens is negative or no integer, or the platform is unknown.
        """
        check_count("tokens_needed", tokens_needed)
        _check_platform(platform)
        return KeyLease(lambda: self._use(model_preference, tokens_needed, exclude, platform))

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
            ValueError: The number of tokens is negative or no integer, or the platform is unknown.
        """
        check_count("tokens_needed", tokens_needed)
        _check_platform(platform)
        use = self._use(model_preference, tokens_needed, exclude, platform)
        key_id = use.begin().key_id
        with self._lock:
            self._out.setdefault(key_id, deque()).append(use)
        return SelectedKey(key_id, self._pool.secrets.value(key_id))

    def _use(
        self, model: str | None, tokens: int, exclude: Collection[str], platform: Platform
    ) -> KeyUse:
        """Return the use of a key that is leased with its start."""
        excluded = frozenset((exclude,) if isinstance(exclude, str) else exclude)
        pool = self._pool
        self._forget_older_than(pool.clock.time() - LEASE_S)
        info = CallInfo(model or "", "generateContent", tokens, platform=platform)
        call = self._calls.call_state(info, "", 0.0)
        call.excluded |= dict.fromkeys(excluded, inf)

        def no_key(exhausted: Exhausted) -> BaseException:
            found = exhausted.unavailable
            blocks = self._left_out(excluded, found.at) | found.blocks
            all_of_them = Exhausted(Unavailable(found.at, blocks))
            return exhausted_call(self._calls, all_of_them, None, info.model)

        if excluded and all(key_id in excluded for key_id in self._candidates(call)):
            # The program has excluded them: the pool is not exhausted, and nobody is alerted.
            raise no_key(Exhausted(Unavailable(pool.clock.time(), {})))
        return KeyUse(self._calls, call, no_key)

    def _candidates(self, call: CallState) -> Iterator[str]:
        """Yield the ids of the keys that may serve a call."""
        for key in self._pool.selector.keys.values():
            if call.info.may_use(key):
                yield key.key_id

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
            ValueError: The number of tokens is negative or no integer.
        """
        usage = reported_usage(tokens_used, response)
        use = self._take(key_id)
        if use is None:
            self._settle_late(key_id, Outcome(LeaseOutcome.SUCCESS, None, usage))
            return
        use.key.usage = usage
        use.finish(None)

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
        use, pool = self._take(key_id), self._pool
        if use is not None:
            return use.finish(error) or report(Verdict("unknown"), None)
        facts = FailureFacts()
        if isinstance(error, Exception):
            facts = facts_from_reported_error(error, pool.secrets.redact)
        key = pool.selector.keys[key_id]
        info = CallInfo("", "generateContent", platform=key.platform)
        verdict = classify(facts, info, pool.clock.time(), None)
        kind = LeaseOutcome.FAILURE if verdict.sent else LeaseOutcome.UNSENT
        until = self._settle_late(key_id, Outcome(kind, verdict), error)
        if verdict.rejected and pool.refresh(key_id):
            pool.log_replaced(frozenset({key_id}))
        return report(verdict, until)

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

    def _left_out(self, exclude: Collection[str], now: float) -> dict[str, Block]:
        """Return why each excluded key cannot serve: cooling down, or excluded by the caller."""
        keys = [key for key in self._pool.selector.keys.values() if key.key_id in exclude]
        known = self._pool.state.snapshot(keys)
        return {
            key_id: Block(state.cooldown_reason or "excluded", state.cooldown_until or now)
            for key_id, state in known.items()
        }

    def _forget_older_than(self, at: float) -> None:
        """Settle selections without a report: a forgotten probe would block its key forever."""
        with self._lock:
            stale = self._older_than(at)
        for use in stale:
            use.drop()

    def _older_than(self, at: float) -> list[KeyUse]:
        stale: list[KeyUse] = []
        for waiting in self._out.values():
            while waiting and waiting[0].leased_at < at:
                stale.append(waiting.popleft())
        return stale

    def _take(self, key_id: str) -> KeyUse | None:
        """Return the open selection of a key, the oldest; None where there is none."""
        with self._lock:
            waiting = self._out.get(key_id)
            if waiting:
                return waiting.popleft()
        if key_id not in self._pool.selector.keys:
            named, known = hide_secrets(key_id), ", ".join(self._pool.selector.keys)
            raise KeyError(f"no key {named!r} in pool {self._pool.name!r}; there are: {known}")
        return None

    def _settle_late(
        self, key_id: str, outcome: Outcome, error: BaseException | None = None
    ) -> float | None:
        """Settle a report without an open selection, which has reserved nothing.

        Returns:
            When the cooldown that it caused ends, epoch seconds.
        """
        pool, verdict = self._pool, outcome.verdict
        key, info = pool.selector.keys[key_id], CallInfo("", "generateContent")
        own = (key_id, key.project, key.billing_account)
        lease = Lease(*own, "", info.verb, 0, 0, at=0.0, record=key.record)
        pool.record_refusal(Settle(lease, outcome, (), error))
        has_budget = key.usd_per_day is not None
        if has_budget:
            usage = pool.with_cost(outcome.usage, info, has_budget=has_budget)
            outcome = outcome._replace(usage=usage)
        until = pool.state.settle(lease, outcome)
        if has_budget and outcome.usage.cost_usd:
            pool.state.record_spending(key.project, nano_usd(outcome.usage.cost_usd))
        failure, code = (verdict.failure, verdict.code) if verdict is not None else (None, None)
        pool.activity.add(
            CallRecord(
                pool.clock.time(),
                "",
                0.0,
                "ok" if verdict is None else "failed",
                (Attempt(key_id, failure, code, 0.0, project_name(key.project) or ""),),
                outcome.usage,
            )
        )
        return until


def _check_platform(platform: object) -> None:
    allowed = get_args(Platform)
    if platform not in allowed:
        raise ValueError(
            f"platform: found {display(platform)}; allowed: {', '.join(allowed)}."
            f"{did_you_mean(str(platform), allowed)}"
        )


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
