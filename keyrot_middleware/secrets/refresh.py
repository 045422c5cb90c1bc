"""Look-ups in one store: they run in daemon threads and repeat on a schedule."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from math import inf
from threading import Lock, Thread

from ..core.text import mask_keys
from ..errors import KeyrotError, SecretError
from .base import Secret, SecretStore

__all__ = ["FIRST_RETRY_S", "Answers", "Lookup", "RefreshSchedule", "Refs", "StoreWorker"]

FIRST_RETRY_S = 2.0
"""Pause after the first failure of a store; it doubles with each further failure."""

Refs = Mapping[str, str | None]
"""The reference of each key id, as in keys.json; None: the store's default."""
Answers = Mapping[str, Secret | SecretError]


@dataclass(frozen=True, slots=True)
class Lookup:
    """One request to a store, for one or more keys."""

    refs: dict[str, str | None]
    requested_at: float
    """On the clock of `time.monotonic()`."""
    future: Future[frozenset[str]] = field(default_factory=Future)

    def changed(self, timeout_s: float) -> frozenset[str] | None:
        """Wait, and return the ids whose value changed; None: no answer in time.

        The time counts from the first request: a caller that joins a slow look-up late does not
        wait the full *timeout_s* again.
        """
        try:
            return self.future.result(max(0.0, self.requested_at + timeout_s - time.monotonic()))
        except FutureTimeoutError:
            return None


class StoreWorker:
    """Runs the look-ups in one store: at most two at a time, one of them urgent.

    Requests that arrive while a look-up runs are merged into the next one. A store that hangs
    blocks its own two threads only. They are daemons and not an executor's, because the
    interpreter waits for the threads of an executor at exit.
    """

    def __init__(
        self,
        store: SecretStore,
        schedule: RefreshSchedule,
        apply: Callable[[StoreWorker, Refs, Answers], frozenset[str]],
        on_done: Callable[[], None],
    ) -> None:
        """Start nothing.

        Args:
            store: The store.
            schedule: When the store is due; kept here for the cache, which follows it.
            apply: Takes the answers and returns the ids whose value changed.
            on_done: Called after each look-up that ran in a thread.
        """
        self.store = store
        self.schedule = schedule
        self.failure_logged = False
        """Whether the log says that keys of this store have no current value."""
        self._apply = apply
        self._on_done = on_done
        self._instant = bool(getattr(store, "instant", False))
        self._lock = Lock()
        self._running: dict[bool, Lookup] = {}  # by urgency
        self._waiting: dict[bool, Lookup] = {}

    @property
    def fixed(self) -> bool:
        """Whether the store's values never change."""
        return bool(getattr(self.store, "fixed", False))

    @property
    def busy(self) -> bool:
        """Whether a look-up runs that is not urgent."""
        return False in self._running

    def look_up(self, refs: Refs, *, urgent: bool = False) -> Lookup:
        """Request keys; the look-up in an instant store is done when this returns.

        Args:
            refs: The keys.
            urgent: A call waits: do not queue behind a look-up of all keys.

        Raises:
            RuntimeError: The system has no thread left.
        """
        lookup = Lookup(dict(refs), time.monotonic())
        if self._instant:
            self._run(lookup)
            return lookup
        with self._lock:
            running = self._running.get(urgent)
            if running is None:
                self._start(lookup, urgent)
                return lookup
            if refs.items() <= running.refs.items() and not running.future.done():
                return running
            waiting = self._waiting.setdefault(urgent, Lookup({}, running.requested_at))
            waiting.refs.update(refs)
            return waiting

    def _start(self, lookup: Lookup, urgent: bool) -> None:
        name = f"keyrot-secrets-{self.store.scheme}{'-urgent' if urgent else ''}"
        Thread(target=self._work, args=(lookup, urgent), name=name, daemon=True).start()
        self._running[urgent] = lookup

    def _work(self, lookup: Lookup, urgent: bool) -> None:
        try:
            self._run(lookup)
        finally:
            try:
                self._start_next(urgent)
            finally:
                self._on_done()

    def _start_next(self, urgent: bool) -> None:
        with self._lock:
            del self._running[urgent]
            if urgent in self._waiting:
                self._start(self._waiting.pop(urgent), urgent)

    def _run(self, lookup: Lookup) -> None:
        changed: frozenset[str] = frozenset()
        try:
            changed = self._apply(self, lookup.refs, _resolve(self.store, lookup.refs))
        finally:
            lookup.future.set_result(changed)


class RefreshSchedule:
    """When a store is due, in seconds of one clock; arithmetic only.

    All keys are due every `ttl_s`; the keys without a current value earlier: after `FIRST_RETRY_S`,
    then after twice as long each time, up to `ttl_s`. Part of each pause is random, so that
    processes that start together do not send requests together.
    """

    def __init__(self, ttl_s: float, random: Callable[[], float], now: float) -> None:
        """Start at *now*.

        Args:
            ttl_s: The longest time without a look-up, more than 0.
            random: Returns random numbers in [0, 1).
            now: The time.
        """
        self._ttl_s = ttl_s
        self._random = random
        self._failures = 0
        # The first look-ups of processes that start together spread over half of the time.
        self.next_full = now + ttl_s * (0.5 + random() / 2)
        """When all keys are due."""
        self.next_retry = inf
        """When the keys without a current value are due."""

    @property
    def next_due(self) -> float:
        """When anything is due."""
        return min(self.next_full, self.next_retry)

    def started(self, now: float) -> bool:
        """Record that the look-up that was due starts; return whether it is of all keys."""
        full = now >= self.next_full
        if full:
            self.next_full = now + self._ttl_s * (0.9 + self._random() / 10)
        self.next_retry = inf
        return full

    def finished(self, now: float, *, failing: bool) -> None:
        """Record an answer; *failing*: a key of the store has no current value."""
        if not failing:
            self._failures, self.next_retry = 0, inf
        elif self.next_retry == inf:
            pause = min(FIRST_RETRY_S * 2.0**self._failures, self._ttl_s)
            self._failures = min(self._failures + 1, 30)
            self.next_retry = now + pause * (0.5 + self._random() / 2)


def _resolve(store: SecretStore, refs: Refs) -> Answers:
    """Return an answer for each key, whatever the store does."""
    reason = "gave no answer"
    found: Answers = {}
    try:
        found = dict(store.resolve(refs))
    except KeyrotError as error:
        reason = f"cannot be used: {mask_keys(str(error))}"
    except Exception as error:
        # The type only: the message of a store's library may hold a token or a value.
        reason = f"failed with {type(error).__name__}"
    return {
        key_id: answer
        if isinstance(answer := found.get(key_id), Secret | SecretError)
        else SecretError(f"key {key_id}: the secret store {store.scheme} {reason}")
        for key_id in refs
    }
