"""A pool: what all of its calls share, and its background thread.

The thread settles dropped calls, refreshes values and watches keys.json. It is a daemon that sleeps
on an event, starts look-ups and waits for none of them (secrets/cache.py). It ends with its pool,
and starts again in a forked child.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

from .. import providers
from ..core.activity import CallRecord
from ..core.commands import Acquire, Settle
from ..core.counting import ModelNames, TokenScale
from ..core.evidence import Evidence
from ..core.failures import KEY_REJECTIONS, MODEL_REFUSALS, NOT_OFFERED, QUOTED, quotable
from ..core.model import (
    DEFAULT_PLATFORM,
    FREE,
    NO_BUDGET,
    NO_USAGE,
    CallInfo,
    Candidate,
    Lease,
    RetryPolicy,
    Scope,
    Terms,
    Usage,
    nano_usd,
    project_label,
    project_name,
)
from ..core.selection import Selector
from ..core.waiting import WaitingLines
from ..core.wording import one_line
from ..errors import KeyrotError, handle_internal_error, warn_safely
from ..forks import after_fork, time_left
from ..keys_file import file_version
from ..locks import Lock, LockError
from ..prices import PriceList, require_prices
from ..providers.keys import hide_secrets
from ..secrets import Secret
from ..secrets.cache import LOOKUP_TIMEOUT_S, SecretCache
from ..secrets.stores import Stores
from ..settings import Config, reread
from ..state.base import State, StateThreads
from ..state.memory import BoundedDict
from ..telemetry import Observer, PoolEventListener
from .activity_recorder import ActivityRecorder
from .call_settings import CallSettings
from .first_token import NO_DEADLINES, FirstTokens
from .google_limits import GoogleLimits
from .rotations import report_values

_log = logging.getLogger("keyrot_middleware")

LOOK_UP_S = 5.0
"""The pause between look-ups of all values while every key is rejected."""
MODELS_WARNED = 100


class PoolClock(Protocol):
    """Where time comes from: `SystemClock`, or `keyrot_middleware.testing.FakeClock` in tests."""

    def time(self) -> float:
        """Return the time in epoch seconds."""

    def sleep(self, seconds: float) -> None:
        """Block the thread."""

    async def asleep(self, seconds: float) -> None:
        """Block only the task."""


class SystemClock:
    """The system clock."""

    sleep = staticmethod(time.sleep)
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)  # the last one: it hides the module from here on

    async def asleep(self, seconds: float) -> None:
        """Block only the task."""
        await asyncio.sleep(seconds)


_OWNERS = {
    Scope.BILLING: "billing_account",
    Scope.PROJECT: "project",
    Scope.PROJECT_MODEL: "project",
}
"""What of a lease is refused by a failure of a scope; else its key."""


def _place(failure: str, owner: str, model: str) -> str:
    """Return where a sentence is kept; one about no model is that of all of them."""
    return f"{failure}\n{owner}\n{model if failure in NOT_OFFERED else ''}"


def _price_list(platform: str) -> str:
    """Return the name in genai-prices of the provider of a platform."""
    provider = providers.of(platform)
    return provider.prices or provider.name


@dataclass(slots=True)
class Pool:
    """Keys, the state of their limits, their values, and the policy of calls."""

    name: str
    selector: Selector
    state: State
    secrets: SecretCache
    policy: RetryPolicy
    observers: Sequence[Observer] = ()
    event_listeners: Sequence[PoolEventListener] = ()
    clock: PoolClock = field(default_factory=SystemClock)
    token_scale: TokenScale = field(default_factory=TokenScale)
    models: ModelNames = field(default_factory=ModelNames)
    waiting_lines: WaitingLines = field(default_factory=WaitingLines)
    evidence: Evidence = field(default_factory=Evidence, repr=False)
    """What its keys answered lately, as far as this process has seen it."""
    random: Callable[[], float] = random.random
    last_resorts: Sequence[str] = ()
    """The ids of the single keys of its providers, where there are such."""
    state_url: str = "memory://"
    """Where its state is, without user and password."""
    trace_url: str | None = None
    """Where a trace is shown, with `{trace_id}` in it."""
    next_models: Mapping[str, str] = field(default_factory=dict)
    """The model that a request goes on to when no key can serve its own."""
    terms: Mapping[str | None, Terms] = field(default_factory=dict)
    """What each workload may use; None: calls of all others."""
    first_tokens: FirstTokens = NO_DEADLINES
    tiers: frozenset[str] | None = None
    """The tiers of the keys that may serve its calls; None: all. It has no others."""
    allowed_origins: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Where its keys may be sent; see `settings.allowed_origins`."""
    configured: Sequence[Candidate] = ()
    """All configured keys; the selector has those with a value."""
    background: list[Any] = field(default_factory=list, repr=False)
    """The refresher and the watcher of alerts, where the pool needs them; stopped in this order."""
    abandoned: deque[Any] = field(default_factory=deque, repr=False)
    """Calls that were closed or dropped, which the next call or the refresher settles."""
    settling: Lock = field(default_factory=Lock, repr=False)
    """Held while they are settled."""
    doubtful: set[str] = field(default_factory=set, repr=False)
    """Keys that were rejected when this process last met them, of which none is the home key while
    there is another. The state is not asked: the home key is asked for on event loops."""
    epoch: str | None = field(default=None, repr=False)
    """What the shared state was last called; another name after it was emptied."""
    keys_problem: str = field(default="", repr=False)
    """Why its keys.json is not read; it goes on with what it had."""
    prices: PriceList = field(default_factory=PriceList)
    threads: StateThreads = field(default_factory=StateThreads, repr=False)
    """For what blocks in async calls: those of the loop may be full of sync calls that wait."""
    activity: ActivityRecorder = field(init=False, repr=False)
    """What calls did lately."""
    _refusals: dict[str, tuple[int, str | None, Any]] = field(default_factory=dict, repr=False)
    _sentences: BoundedDict[str] = field(default_factory=lambda: BoundedDict(1_000), repr=False)
    """What providers wrote when they refused keys, projects, accounts and models."""
    _unpriced: set[str] = field(default_factory=set, repr=False)
    """Models without a price that were warned of."""
    _look_up_at: float = 0.0
    """When all values may be looked up again, by `time.monotonic()`."""
    _rejected_as: dict[str, str] = field(default_factory=dict, repr=False)
    """The state record of each key at its last rejection."""

    def __post_init__(self) -> None:
        self.secrets.on_change = self.on_secrets_changed
        self.activity = ActivityRecorder(
            self.state,
            self.clock.time,
            self._price,
            lambda: len(self.selector.keys),
            self.policy.zone,
        )
        self.activity.redact = self.secrets.redact

    @property
    def call_settings(self) -> CallSettings:
        """With what its calls are made, as others judge them."""
        wait_s = self.policy.max_wait_s
        return CallSettings(self.terms, self.tiers, self.next_models, wait_s)

    @property
    def projects(self) -> dict[str, set[str]]:
        """The projects of all configured keys: by the name for `project()`, their labels.

        A key without a project has its id as the name. It may be the name of a project too.
        """
        projects: dict[str, set[str]] = {}
        for key in self.configured:
            name = project_name(key.project) or key.key_id
            projects.setdefault(name, set()).add(project_label(key.project))
        return projects

    def home_id_for(
        self,
        platform: str = DEFAULT_PLATFORM,
        tiers: frozenset[str] | None = None,
        project: str | None = None,
    ) -> str | None:
        """Return the id of the home key of a platform, of these tiers and project if given."""
        keys = self.selector.keys
        call = CallInfo("", "", platform=platform, tiers=tiers, project=project)
        order: Iterator[str] = (i for i, key in keys.items() if call.may_use(key))
        for single in self.last_resorts:
            own = keys.get(self.secrets.duplicates.get(single, single))
            if own is not None and call.may_use(own):
                order = chain([own.key_id], order)
        first = next(order, None)
        if first not in self.doubtful:
            return first
        return next((key_id for key_id in order if key_id not in self.doubtful), first)

    def home_value(
        self,
        platform: str = DEFAULT_PLATFORM,
        tiers: frozenset[str] | None = None,
        project: str | None = None,
    ) -> Secret | None:
        """Return the value of the home key; see `home_id_for`."""
        home_id = self.home_id_for(platform, tiers, project)
        return self.secrets.value(home_id) if home_id is not None else None

    def with_cost(self, usage: Usage, info: CallInfo, lease: Lease) -> Usage:
        """Return the *usage* of a call with what it cost, where that is known."""
        tier = info.service_tier if usage.service_tier is None else usage.service_tier
        cost: float | None = 0.0
        if lease.tier != FREE:
            cost = self._cost(usage, info.model, self.clock.time(), tier, info.platform)
        if cost is not None:
            return usage._replace(cost_usd=cost, service_tier=tier or None)
        if lease.purses and usage != NO_USAGE:
            self._warn_of_unknown_cost(usage.model or info.model)
        return usage

    def _price(self, record: CallRecord) -> float | None:
        tier = record.usage.service_tier
        tier = record.service_tier if tier is None else tier
        key = self.selector.keys.get(record.attempts[-1].key_id) if record.attempts else None
        if key is not None and key.tier == FREE:
            return 0.0
        platform = key.platform if key is not None else DEFAULT_PLATFORM
        return self._cost(record.usage, record.model, record.at, tier, platform)

    def _cost(self, usage: Usage, model: str, at: float, tier: str, platform: str) -> float | None:
        """Return a price: of the service tier of the response, else of the one asked for."""
        try:
            return self.prices.cost(usage, model, at, tier, _price_list(platform))
        except Exception:
            handle_internal_error("cost")
            return None

    def _warn_of_unknown_cost(self, model: str) -> None:
        """Warn once that calls to a model are not part of a budget; it cannot fail the call."""
        if model in self._unpriced or len(self._unpriced) >= MODELS_WARNED:
            return
        self._unpriced.add(model)
        text = (
            f"no price is known for model {model!r}: its calls do not count in usd; "
            "a newer genai-prices may know it"
        )
        _log.warning("%s", text)
        warn_safely(text)

    def with_estimates(self, info: CallInfo) -> CallInfo:
        """Return a call as the state counts it, with what it may cost if a key has a budget."""
        now = self.clock.time()
        counted = self.models.bounded(info, now)
        if by := providers.of(info.platform).replaced.get(counted.model):
            counted = counted._replace(replaced_by=by)
        if not self.selector.has_budgets and (info.terms or Terms()).usd == NO_BUDGET:
            return counted
        try:
            costs = self.prices.estimate(
                info.model, info.tokens, now, info.service_tier, _price_list(info.platform)
            )
        except Exception:
            handle_internal_error("cost")
            return counted
        return counted._replace(input_cost=nano_usd(costs[0]), longest_cost=nano_usd(costs[1]))

    def settle_abandoned(self) -> None:
        """Settle the calls that were closed or dropped; when this returns, none is left.

        It may wait for the state: not for event loops.
        """
        try:
            with self.settling:
                while self.abandoned:
                    self.abandoned.popleft().settle_abandoned()
        except LockError:
            handle_internal_error("state")

    def record_refusal(self, settle: Settle) -> None:
        """Keep the error of a rejection; it is raised when no key may serve a call."""
        verdict, error, lease = settle.outcome.verdict, settle.error, settle.lease
        if verdict is None:
            return
        if verdict.message and verdict.failure in QUOTED:
            owner = getattr(lease, _OWNERS.get(verdict.scope, "key_id"))
            said = quotable(verdict.failure, self.secrets.redact(verdict.message))
            self._sentences[_place(verdict.failure, owner, lease.bucket)] = one_line(said)
        name = lease.key_id if verdict.rejected else f"\n{lease.bucket}"
        if not verdict.rejected and verdict.failure not in MODEL_REFUSALS:
            return
        if verdict.failure in KEY_REJECTIONS:
            self.doubtful.add(lease.key_id)
        if verdict.rejected:
            self._rejected_as[lease.key_id] = lease.record or lease.key_id
        self._refusals.pop(name, None)
        if verdict.code is None:  # no status to answer with
            return
        self._refusals[name] = (
            verdict.code,
            getattr(error, "status", None),
            getattr(error, "details", None) or getattr(error, "body", None),
        )

    def last_refusal(
        self, key_ids: Iterable[str], model: str = ""
    ) -> tuple[int, str | None, Any] | None:
        """Return code, status and body of the last rejection among *key_ids*, or of a model."""
        names = {*key_ids, f"\n{model}"}
        refused = [name for name in self._refusals if name in names]
        return self._refusals[refused[-1]] if refused else None

    def last_sentence(self, key_id: str, failure: str, model: str) -> str:
        """Return what a provider wrote when it refused a key last; empty if that is not known."""
        key = self.selector.keys.get(key_id)
        owners = (key_id,) if key is None else (key_id, key.project, key.billing_account)
        sentences = (self._sentences.get(_place(failure, owner, model)) for owner in owners)
        return next(filter(None, sentences), "")

    def refresh(self, key_id: str, *, wait: bool = True) -> bool:
        """Look up the value of a rejected key again; return whether there is a new one.

        Args:
            key_id: The key.
            wait: Wait for the store; else only a local store can answer.
        """
        timeout_s = LOOKUP_TIMEOUT_S if wait else 0.0
        try:
            return (
                self._was_replaced(key_id)
                or self.secrets.refresh(key_id, timeout_s)
                or self._was_replaced(key_id)  # by a look-up that ended meanwhile
            )
        except Exception:
            handle_internal_error("secrets")
            return False

    def _was_replaced(self, key_id: str) -> bool:
        """Return whether a key has another value than the one that was rejected last."""
        key, rejected = self.selector.keys.get(key_id), self._rejected_as.get(key_id)
        return key is not None and rejected is not None and key.record != rejected

    def refresh_all(self) -> bool:
        """Look up all values again, since every key is rejected; return whether one changed."""
        now = time.monotonic()
        if now < self._look_up_at:
            return False
        self._look_up_at = now + LOOK_UP_S
        try:
            return bool(self.secrets.refresh_all(LOOKUP_TIMEOUT_S))
        except Exception:
            handle_internal_error("secrets")
            return False

    def on_secrets_changed(self, key_ids: frozenset[str]) -> None:
        """Use new values and new keys from now on, in calls under way too, and log that."""
        before = self.selector.keys
        replaced = key_ids.intersection(before)
        self.doubtful -= replaced
        for key_id in replaced:
            self._refusals.pop(key_id, None)
            self.evidence.forget(key_id)
        try:
            self._take_keys(resolved_candidates(self.configured, self.secrets), replaced)
        except Exception:
            handle_internal_error("secrets")
        self.log_replaced(replaced.intersection(self.selector.keys))  # not those that just left

    def log_replaced(self, key_ids: frozenset[str]) -> None:
        """Report replaced keys to the log and to the observers."""
        for key_id in sorted(key_ids):
            _log.info("pool %s: key %s has a new value and is available again", self.name, key_id)
            for observer in self.observers:
                notify = getattr(observer, "on_key_replaced", None)
                try:
                    if notify is not None:
                        notify(key_id)
                except Exception:
                    handle_internal_error("telemetry")

    def reset(self, key_id: str) -> None:
        """End the cooldown or rejection of a key, and forget its learned limits.

        Raises:
            KeyError: There is no such key.
        """
        key = self.selector.keys.get(key_id)
        if key is None:
            named, known = hide_secrets(key_id), ", ".join(self.selector.keys)
            raise KeyError(f"no key {named!r} in pool {self.name!r}; there are: {known}")
        self.state.reset(key)
        self.doubtful.discard(key_id)
        self.evidence.forget(key_id)
        self.selector.reset()
        self.waiting_lines.wake_all(
            one.key_id for one in self.selector.find_project_keys(key.project)
        )

    def close(self) -> None:
        """Stop the background work; running calls finish."""
        self.settle_abandoned()
        for work in self.background:
            work.stop()
        self.activity.send()
        self.secrets.close()
        self.state.close()
        self.threads.close()

    def _take_keys(self, candidates: list[Candidate], replaced: frozenset[str]) -> None:
        before = self.selector.keys
        if candidates == list(before.values()):
            return
        self.selector.update(candidates)
        self.state.record_values(candidates)
        self.waiting_lines.wake_all(replaced)
        keys = self.selector.keys
        for verb, changed in (("added", keys.keys() - before), ("removed", before.keys() - keys)):
            if changed:
                _log.info("pool %s: keys %s: %s", self.name, verb, ", ".join(sorted(changed)))
        if not keys:
            left = "go out as the program sends them" if self.tiers is None else "fail"
            _log.error("pool %s: it has no key; calls %s until it has one", self.name, left)


def resolved_candidates(keys: Iterable[Candidate], secrets: SecretCache) -> list[Candidate]:
    """Return the *keys* that have a value, each with the fingerprint of it."""
    having = set(secrets.resolved)
    return [
        key.with_value(secrets.value(key.key_id).fingerprint)
        for key in keys
        if key.key_id in having
    ]


def unreserved_lease(command: Acquire, now: float) -> Lease:
    """Return an unreserved lease of the first candidate: the state failed, and the call goes on."""
    info = command.info
    return command.candidates[0][1].lease(info, info.quota_model, now)


LOOK_S = 3.0
"""Seconds between two checks of keys.json, and of values that are rotated."""
PROBLEM_MAX = 300
"""Characters that other processes see of what is wrong in keys.json."""
TICK_S = 1.0
"""Seconds between two ticks: calls that were dropped are settled, and those that ended counted."""


class Refresher:
    """Keeps a pool up to date with its stores and its keys.json."""

    def __init__(
        self, pool: Pool, config: Config, stores: Stores, limits: GoogleLimits | None = None
    ) -> None:
        """Start nothing yet.

        Args:
            pool: The pool, made from *config*.
            config: The settings at start.
            stores: Those that are open.
            limits: Reads limits, if the pool is to.
        """
        self._pool = pool
        self._limits = limits
        self._config = config
        self._stores = stores
        self._seen = config.keys_seen
        """The version of keys.json that was read last, whether used or refused."""
        self._on = False
        self._is_last_turn = False
        self._report_at, self._minute = 0.0, -1
        self._exit: weakref.finalize[..., Refresher] | None = None
        after_fork(self, Refresher._renew)

    def start(self) -> None:
        """Start the thread."""
        self._on = True
        if self._exit is None:
            self._exit = weakref.finalize(self, _at_exit, weakref.ref(self))
        alive, stirred = weakref.ref(self), self._pool.secrets.wake
        weakref.finalize(self, stirred.set).atexit = False
        name = f"keyrot-refresher-{self._pool.name}"
        self._thread = threading.Thread(target=_run, args=(alive, stirred), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread without waiting for it."""
        self._on = False
        if self._limits is not None:
            self._limits.is_stopped = True
        if self._exit is not None:
            self._exit.detach()
        self._pool.secrets.wake.set()

    def finish(self) -> None:
        """Stop the thread as the process ends; wait a little until it has sent the last calls."""
        self._pool.settle_abandoned()
        if not self._on or self._pool.state.is_local:
            return
        self._is_last_turn, self._on = True, False
        self._pool.secrets.wake.set()
        self._thread.join(time_left())

    def turn(self) -> float | None:
        """Do what is due; return the seconds until the next tick, None if stopped."""
        on = self._on
        if not on and not self._is_last_turn:
            return None
        try:
            self._pool.settle_abandoned()
            self._pool.activity.send()
            if not on:
                return None
            self._report_values()
            if self._limits is not None:
                self._limits.tick(self._pool)
            if self._config.settings.secrets_ttl_s <= 0:
                return TICK_S
            look_s = self._look() if self._config.keys_file is not None else TICK_S
            return min(self._pool.secrets.tick(), look_s, TICK_S)
        except Exception:
            handle_internal_error("secrets")
            return LOOK_S if on else None

    def _report_values(self) -> None:
        if self._pool.state.is_local or time.monotonic() < self._report_at:
            return
        self._report_at = time.monotonic() + LOOK_S
        before, self._minute = self._minute, int(self._pool.clock.time() // 60)
        report_values(self._pool, is_new_minute=self._minute != before)

    def _look(self) -> float:
        """Read keys.json again if it has changed; return the seconds until the next check."""
        assert self._config.keys_file is not None  # noqa: S101 - the caller has just looked
        version = file_version(self._config.keys_file)
        if version == self._seen:
            return LOOK_S
        self._seen = version
        problem = ""
        try:
            self._take(reread(self._config))
        except KeyrotError as error:
            problem = " ".join(str(error).split())[:PROBLEM_MAX]
            text = f"pool {self._pool.name}: keys.json is not used, the keys stay the same: {error}"
            warn_safely(text)
            _log.error("%s", text)
        if self._pool.keys_problem and not problem:
            _log.info("pool %s: keys.json is read again", self._pool.name)
        self._pool.keys_problem = problem
        self._report_at, self._minute = 0.0, -1  # the other processes see it at once
        for observer in self._pool.observers:
            getattr(observer, "on_keys_read", _nothing)()
        return LOOK_S

    def _take(self, config: Config) -> None:
        """Use the keys of *config*."""
        locations, configured = self._stores.locate(config, at_start=False), config.candidates
        require_prices(key.usd for key in configured)
        self._config = config
        self._pool.configured = configured
        self._pool.secrets.set_locations(locations, LOOKUP_TIMEOUT_S)

    def _renew(self) -> None:
        self._minute = -1
        if self._on:
            self.start()


def _nothing() -> None:
    """Do nothing."""


def _at_exit(alive: weakref.ref[Refresher]) -> None:
    refresher = alive()
    if refresher is not None:
        refresher.finish()


def _run(alive: weakref.ref[Refresher], stirred: threading.Event) -> None:
    """Tick while the pool exists; hold no reference to it while asleep."""
    me = threading.current_thread()
    while (refresher := alive()) is not None and refresher._thread is me:
        pause: float | None = LOOK_S
        with suppress(SystemExit):  # of a store, or of a handler of the log
            pause = refresher.turn()
        if pause is None:
            return
        del refresher
        stirred.wait(min(pause, threading.TIMEOUT_MAX))
        stirred.clear()
