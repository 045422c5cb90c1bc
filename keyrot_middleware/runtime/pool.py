"""A pool: the parts that every call through it shares."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ..core.commands import Acquire, Settle
from ..core.failures import KEY_REJECTIONS
from ..core.flow import Overload
from ..core.model import CallInfo, Candidate, Lease, RetryPolicy
from ..core.model_names import ModelNames
from ..core.selection import Selector
from ..core.text import standard_key_hint
from ..core.tokens import TokenScale
from ..core.waiting import WaitingLines
from ..forks import after_fork
from ..guard import handle_internal_error
from ..secrets import Secret, SecretCache
from ..secrets.cache import LOOKUP_TIMEOUT_S
from ..state.base import State
from ..telemetry.observer import Observer, PoolEventListener
from .activity import Activity

if TYPE_CHECKING:
    from .refresher import Refresher

__all__ = [
    "Clock",
    "Pool",
    "SystemClock",
    "make_selector",
    "make_waiting_lines",
    "resolved_candidates",
    "unreserved_lease",
]

_log = logging.getLogger("keyrot_middleware")

LOOK_UP_S = 2.0
LOOK_UP_MOST_S = 30.0
"""How often stores are asked while every key is rejected: after the shorter pause, then after twice
as long each time, up to the longer one."""


class Clock(Protocol):
    """Where time comes from; `keyrot_middleware.testing.FakeClock` is another."""

    def time(self) -> float:
        """Tell the time, epoch seconds."""

    def sleep(self, seconds: float) -> None:
        """Wait, blocking the thread."""

    async def asleep(self, seconds: float) -> None:
        """Wait, blocking the task only."""


class Abandoned(Protocol):
    """A call that the garbage collector closed."""

    def settle_abandoned(self) -> None:
        """Settle it."""


class SystemClock:
    """The machine's clock."""

    sleep = staticmethod(time.sleep)
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)  # the last one: it hides the module from here on

    async def asleep(self, seconds: float) -> None:
        """Wait, blocking the task only."""
        await asyncio.sleep(seconds)


def make_waiting_lines() -> WaitingLines:
    """Make lines in which threads and tasks may wait; those of a forked child are empty."""
    lines = WaitingLines(threading.Lock())
    after_fork(lines, lambda child: child.reset(threading.Lock()))
    return lines


@dataclass(slots=True)
class Pool:
    """Keys, what is known of them, and how calls use them."""

    name: str
    selector: Selector
    state: State
    secrets: SecretCache
    policy: RetryPolicy
    observers: Sequence[Observer] = ()
    event_listeners: Sequence[PoolEventListener] = ()
    clock: Clock = field(default_factory=SystemClock)
    token_scale: TokenScale = field(default_factory=TokenScale)
    overload: Overload = field(default_factory=Overload)
    models: ModelNames = field(default_factory=ModelNames)
    waiting_lines: WaitingLines = field(default_factory=make_waiting_lines)
    random: Callable[[], float] = random.random
    last_resort: str | None = None
    """The id of the single key, where there is one."""
    configured: Sequence[Candidate] | None = None
    """All keys that are configured; those of them that have a value are in the roster. None: the
    roster is what it was made of, and stays so."""
    refresher: Refresher | None = None
    """What keeps values and list up to date, where they can change, or the state is shared."""
    abandoned: deque[Abandoned] = field(default_factory=deque, repr=False)
    """Calls that the garbage collector closed; finalizers append, `settle_abandoned` empties."""
    doubtful: set[str] = field(default_factory=set, repr=False)
    """Keys that were rejected when last seen; none of them is the home key without a check."""
    activity: Activity = field(init=False, repr=False)
    """What calls did lately."""
    hints: dict[str, str] = field(default_factory=dict, repr=False)
    """What may be behind the rejection of a key, by its id."""
    _refusals: dict[str, tuple[int, str | None, Any]] = field(default_factory=dict, repr=False)
    _look_up_at: float = 0.0
    _look_ups: int = 0
    _looking_until: float = 0.0
    """When all values may be looked up again, by `time.monotonic()`; how often they were in vain;
    until when others join a look-up that is under way."""
    _rejected_as: dict[str, str] = field(default_factory=dict, repr=False)
    """Under which record each key was last when Google rejected it."""

    def __post_init__(self) -> None:
        self.secrets.on_change = self.on_secrets_changed
        self.activity = Activity(self.state)

    @property
    def home_id(self) -> str | None:
        """Tell whose key serves as home key of a client without one of its own, if any can."""
        keys = self.selector.keys
        single = self.secrets.duplicates.get(self.last_resort or "", self.last_resort)
        first = single if single in keys else next(iter(keys), None)
        if not self.doubtful or first not in self.doubtful:
            return first
        rejected = self._rejected()
        order = [first, *keys]
        return next((key_id for key_id in order if key_id not in rejected), first)

    @property
    def home_value(self) -> str | None:
        """Give the value of the home key."""
        home_id = self.home_id
        return self.secrets.value(home_id) if home_id is not None else None

    def _rejected(self) -> set[str]:
        """Find which of the doubtful keys are still rejected."""
        keys = self.selector.keys
        doubtful = [keys[key_id] for key_id in tuple(self.doubtful) if key_id in keys]
        try:
            blocks = self.state.get_blocks(CallInfo("", ""), doubtful)
        except Exception:
            handle_internal_error("state")
            return set(self.doubtful)
        rejected = {key_id for key_id, block in blocks.items() if block.reason in KEY_REJECTIONS}
        self.doubtful &= rejected
        return rejected

    def settle_abandoned(self) -> None:
        """Settle the calls that the garbage collector closed."""
        while self.abandoned:
            try:
                call = self.abandoned.popleft()
            except IndexError:  # another thread was faster
                return
            call.settle_abandoned()

    def record_refusal(self, settle: Settle) -> None:
        """Keep what Google said when it rejected a key, for the time when all are rejected."""
        verdict, error, lease = settle.outcome.verdict, settle.error, settle.lease
        if verdict is None or not verdict.rejected or verdict.code is None:
            return
        if verdict.failure in KEY_REJECTIONS:
            self.doubtful.add(lease.key_id)
            self._explain(lease.key_id, verdict.failure)
        self._rejected_as[lease.key_id] = lease.record or lease.key_id
        self._refusals.pop(lease.key_id, None)
        self._refusals[lease.key_id] = (
            verdict.code,
            getattr(error, "status", None),
            getattr(error, "details", None),
        )

    def _explain(self, key_id: str, failure: str) -> None:
        """Say what may be behind the rejection of a standard key: in notes, and once in the log."""
        value = self.secrets.value(key_id) if key_id in self.selector.keys else ""
        hint = standard_key_hint(value, failure)
        if hint is None:
            self.hints.pop(key_id, None)
        elif key_id not in self.hints:
            self.hints[key_id] = hint
            _log.warning("pool %s: key %s: %s", self.name, key_id, hint)

    def last_refusal(self, key_ids: Iterable[str]) -> tuple[int, str | None, Any] | None:
        """Give what Google said to the one of *key_ids* that was rejected last."""
        said = [key_id for key_id in self._refusals if key_id in set(key_ids)]
        return self._refusals[said[-1]] if said else None

    def refresh(self, key_id: str, *, wait: bool = True) -> bool:
        """Have a refused key's secret looked up again; True where a new value is in service.

        Args:
            key_id: The key.
            wait: Wait for a store that does not answer at once.
        """
        try:
            key, rejected = self.selector.keys.get(key_id), self._rejected_as.get(key_id)
            if key is not None and rejected is not None and key.record != rejected:
                return True  # it was replaced meanwhile
            return self.secrets.refresh(key_id, LOOKUP_TIMEOUT_S if wait else 0.0)
        except Exception:
            handle_internal_error("secrets")
            return False

    def refresh_all(self) -> bool:
        """Have all values looked up again, since every key is rejected; True where one is another.

        Stores are asked at once, then after a pause that doubles as long as nothing has changed.
        Who comes while they are asked waits with the others, `LOOKUP_TIMEOUT_S` at most.
        """
        now = time.monotonic()
        if now >= self._look_up_at:
            self._look_up_at = now + min(LOOK_UP_S * 2.0**self._look_ups, LOOK_UP_MOST_S)
            self._look_ups = min(self._look_ups + 1, 10)
            self._looking_until = now + LOOKUP_TIMEOUT_S
        elif now >= self._looking_until:
            return False
        try:
            changed = self.secrets.refresh_all(LOOKUP_TIMEOUT_S)
        except Exception:
            handle_internal_error("secrets")
            return False
        finally:
            self._looking_until = 0.0
        if changed:
            self._look_up_at, self._look_ups = 0.0, 0
        return bool(changed)

    def on_secrets_changed(self, key_ids: frozenset[str]) -> None:
        """Put keys with a new value back in service, log that, and let the others join."""
        replaced = key_ids.intersection(self.selector.keys)
        try:
            for key in resolved_candidates(
                (self.selector.keys[key_id] for key_id in replaced), self.secrets
            ):
                self._refusals.pop(key.key_id, None)
                self.selector.replace(key)
            if (
                self.configured is not None
            ):  # no key at all is a list too: the last one was taken out
                self._rebuild_selector(self.configured)
        except Exception:
            handle_internal_error("secrets")
        self.log_replaced(replaced.intersection(self.selector.keys))  # not those that just left

    def log_replaced(self, key_ids: frozenset[str]) -> None:
        """Report replaced keys to the log and to the observers."""
        for key_id in sorted(key_ids):
            _log.info("pool %s: key %s has a new value and is available again", self.name, key_id)
            for observer in self.observers:
                tell = getattr(observer, "on_key_replaced", None)
                try:
                    if tell is not None:
                        tell(key_id)
                except Exception:
                    handle_internal_error("telemetry")

    def reset(self, key_id: str) -> None:
        """Forget what cools a key down, or has it rejected, and the limits learned for it.

        Raises:
            KeyError: There is no such key.
        """
        key = self.selector.keys.get(key_id)
        if key is None:
            known = ", ".join(self.selector.keys)
            raise KeyError(f"no key {key_id!r} in pool {self.name!r}; there are: {known}")
        self.state.reset(key)
        self.selector.reset()

    def close(self) -> None:
        """Stop what runs in the background; calls under way are carried to their end."""
        self.settle_abandoned()
        if self.refresher is not None:
            self.refresher.stop()
        self.activity.send()
        self.secrets.close()
        self.state.close()

    def _rebuild_selector(self, configured: Iterable[Candidate]) -> None:
        """Let the roster be the *listed* keys that have a value; calls under way keep theirs."""
        before = self.selector
        selector = make_selector(
            resolved_candidates(configured, self.secrets), self.policy.strategy
        )
        if list(selector.keys.values()) == list(before.keys.values()):
            return
        self.selector = selector
        self.state.configure(selector.keys.values())
        for verb, keys in (
            ("join", selector.keys.keys() - before.keys.keys()),
            ("leave", before.keys.keys() - selector.keys.keys()),
        ):
            if keys:
                _log.info("pool %s: keys that %s: %s", self.name, verb, ", ".join(sorted(keys)))
        if not selector.keys:
            text = "pool %s: no key is left in it; calls go out as the SDK sends them until one is"
            _log.error(text, self.name)


def resolved_candidates(keys: Iterable[Candidate], secrets: SecretCache) -> list[Candidate]:
    """Give those of *keys* that have a value, as the keys of these values."""
    having = set(secrets.resolved)
    return [
        key.with_value(Secret(secrets.value(key.key_id)).fingerprint)
        for key in keys
        if key.key_id in having
    ]


def make_selector(keys: Iterable[Candidate], strategy: str) -> Selector:
    """Make a roster that threads may share."""
    selector = Selector(keys, strategy, threading.Lock())
    after_fork(selector, lambda child: setattr(child, "_lock", threading.Lock()))
    return selector


def unreserved_lease(command: Acquire, now: float) -> Lease:
    """Lend the first key on offer without a booking: the state is down, the call goes on."""
    key, info = command.candidates[0][1], command.info
    return Lease(
        key_id=key.key_id,
        project=key.project,
        billing_account=key.billing_account,
        bucket=info.quota_model,
        verb=info.verb,
        tokens=info.tokens,
        requests=info.requests,
        at=now,
        tier=key.tier,
        record=key.record,
    )
