"""The pool for programs that choose keys by hand: the same state, the same rules.

manager = keyrot_middleware.get_key_manager()
key = manager.select_key("gemini-2.5-flash", tokens_needed=1200)
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
from typing import Any, NamedTuple, NoReturn, Unpack

from ._install import current_pool, open_pool
from .config import load
from .core.commands import Failed, Settle
from .core.failures import REJECTIONS, FailureFacts, classify
from .core.model import Block, CallInfo, Lease, LeaseOutcome, Outcome, Usage
from .core.text import shown
from .errors import ConfigError
from .forks import after_fork
from .genai.call_info import facts_from_reported_error
from .genai.pool_exhausted import exhausted
from .runtime.health import HealthStatus, health
from .runtime.pool import Clock, Pool, SystemClock
from .settings import SettingArguments, hide_keys

__all__ = ["KeyManager", "Report", "SelectedKey", "get_key_manager"]

LEASE_S = 600.0
"""A selection nobody reported on is taken for abandoned after this."""


@dataclass(frozen=True, slots=True)
class SelectedKey:
    """A key to send one request with."""

    key_id: str
    api_key: str = field(repr=False)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a selected key cannot be pickled or copied: its value stays where it is")


class Report(NamedTuple):
    """What a failure means."""

    failure: str
    """Its class, a row of docs/failures.md, such as `quota_minute`; `unknown` blames no key."""
    try_another_key: bool
    """False: the request itself is at fault, or waiting is what helps; do not walk the pool."""
    rests_until: datetime | None
    """Until when the key, or its project, is cooling down; None: not at all."""


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
        self._lock = threading.Lock()
        after_fork(self, lambda child: setattr(child, "_lock", threading.Lock()))
        self._out: dict[str, deque[tuple[Lease, CallInfo]]] = {}

    def select_key(
        self,
        model_preference: str | None = None,
        tokens_needed: int = 0,
        exclude: Collection[str] = (),
    ) -> SelectedKey:
        """Reserve a request on the best key that is free now; never waits.

        Args:
            model_preference: The model the request is for; its keys go first, its quota is used.
            tokens_needed: Input tokens to reserve; 0 counts the request alone.
            exclude: Ids not to choose, such as those that failed this job already.

        Raises:
            KeyPoolExhausted: No key is free; `retry_at` and `reasons` say when and why.
            ValueError: The tokens are no whole number from 0.
        """
        _check_count("tokens_needed", tokens_needed)
        exclude = (exclude,) if isinstance(exclude, str) else exclude
        pool, info = self._pool, CallInfo(model_preference or "", "generateContent", tokens_needed)
        now = pool.clock.time()
        self._forget_stale(now)
        found = self._acquire(info, exclude, now)
        if not isinstance(found, Lease) and _all_rejected(found) and pool.refresh_all():
            found = self._acquire(info, exclude, now)
        if isinstance(found, Lease):
            self._lend(found, info)
            return SelectedKey(found.key_id, pool.secrets.value(found.key_id))
        blocks = self._left_out(exclude, now) | found
        raise exhausted(pool.name, blocks, now, pool.last_refusal(blocks), None)

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
        if tokens_used is not None:
            _check_count("tokens_used", tokens_used)
        meta = getattr(response, "usage_metadata", None)
        tokens = (
            tokens_used if tokens_used is not None else getattr(meta, "prompt_token_count", None)
        )
        lease, _ = self._take(key_id)
        self._settle(lease, Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=tokens)), None)
        if tokens is not None and tokens < lease.tokens:
            self._pool.selector.relieve(key_id)

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
        pool = self._pool
        lease, info = self._take(key_id)
        redact = pool.secrets.redact
        facts = (
            facts_from_reported_error(error, redact)
            if isinstance(error, Exception)
            else FailureFacts()
        )
        verdict = classify(facts, info, pool.clock.time(), lease.at or None)
        kind = LeaseOutcome.FAILURE if verdict.sent else LeaseOutcome.UNSENT
        until = self._settle(lease, Outcome(kind, verdict), Failed(facts, error))
        if verdict.rejected and pool.refresh(key_id):
            pool.log_replaced(frozenset({key_id}))
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

    def _acquire(
        self, info: CallInfo, exclude: Collection[str], now: float
    ) -> Lease | dict[str, Block]:
        """Lease a key; give why each that is not excluded cannot be, where none can."""
        pool, blocks = self._pool, dict[str, Block]()
        out = dict.fromkeys(exclude, inf)
        for shortlist in pool.selector.shortlists(info, out, now, pool.random()):
            counted = pool.models.bounded(info, now)
            reply = pool.state.acquire(counted, shortlist, spread=pool.selector.spread)
            if isinstance(reply, Lease):
                return reply
            blocks |= reply.blocks
            pool.selector.park(info, reply.blocks, now)
        return pool.selector.parked(info) | blocks

    def _left_out(self, exclude: Collection[str], now: float) -> dict[str, Block]:
        """Say why each excluded key cannot serve: it is cooling down, or excluded by the caller."""
        keys = [key for key in self._pool.selector.keys.values() if key.key_id in exclude]
        known = self._pool.state.snapshot(keys)
        return {
            key_id: Block(state.cooldown_reason or "excluded", state.cooldown_until or now)
            for key_id, state in known.items()
        }

    def _lend(self, lease: Lease, info: CallInfo) -> None:
        with self._lock:
            self._out.setdefault(lease.key_id, deque()).append((lease, info))

    def _forget_stale(self, now: float) -> None:
        """Give back what nobody reported on: a forgotten probe would block its key for ever."""
        stale: list[Lease] = []
        with self._lock:
            for waiting in self._out.values():
                while waiting and waiting[0][0].at + LEASE_S < now:
                    stale.append(waiting.popleft()[0])
        for lease in stale:
            self._pool.state.settle(lease, Outcome(LeaseOutcome.ABANDONED))

    def _take(self, key_id: str) -> tuple[Lease, CallInfo]:
        """Give the open selection of a key; one is made where nobody selected it first."""
        with self._lock:
            waiting = self._out.get(key_id)
            if waiting:
                return waiting.popleft()
        key = self._pool.selector.keys.get(key_id)
        if key is None:
            known = ", ".join(self._pool.selector.keys)
            raise KeyError(f"no key {key_id!r} in pool {self._pool.name!r}; there are: {known}")
        info = CallInfo("", "generateContent")
        own = (key_id, key.project, key.billing_account)
        return Lease(*own, "", info.verb, 0, 0, at=0.0, record=key.record), info

    def _settle(self, lease: Lease, outcome: Outcome, failure: Failed | None) -> float | None:
        self._pool.record_refusal(Settle(lease, outcome, (), failure.error if failure else None))
        return self._pool.state.settle(lease, outcome)


def _all_rejected(blocks: Mapping[str, Block]) -> bool:
    return bool(blocks) and all(block.reason in REJECTIONS for block in blocks.values())


def _check_count(name: str, value: object) -> None:
    """Refuse what would spoil the windows that it is counted in."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: found {shown(value)}; allowed: a whole number from 0")


def get_key_manager() -> KeyManager:
    """Give the process-wide manager: of install()'s pool, else one of the environment's."""
    with _shared_lock:
        pool = current_pool()
        if pool is None:
            if None not in _shared:
                _shared[None] = KeyManager()
            return _shared[None]
        if pool.name not in _shared or _shared[pool.name]._pool is not pool:
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
