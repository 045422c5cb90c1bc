"""The values of the pool's keys, in memory only.

Every call reads `value()`, which takes no lock: the threads that look keys up set one attribute of
a key at a time, and `set_locations()` replaces the whole dictionary. Look-ups happen at the start,
when Google rejects a key, and on a schedule that `tick()` follows (runtime/pool.py calls it).
Each store has one thread at a time, so one that hangs delays no other.

A key without a value is skipped and reported, and the others are used. A key that has a value
never loses it: where a later look-up fails, the last value stays in use.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from bisect import insort
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from math import inf
from types import MappingProxyType
from typing import NamedTuple

from ..core.hiding import hide_escaped
from ..core.model import POOL_KEY
from ..errors import KeyrotError, SecretError
from ..forks import after_fork
from ..locks import Lock
from ..providers.keys import StaysHere, foreign_key, is_ambiguous, mask_keys
from .secret import MASKED_FROM, PlainText, Secret, SecretStore

START_TIMEOUT_S = 10.0
"""How long a start waits for stores; keys that have no answer by then join later."""
LOOKUP_TIMEOUT_S = 2.0
"""How long a call waits for a new value of the key that Google just rejected."""
FIRST_RETRY_S = 2.0
"""Pause after the first failure of a store; it doubles with each further failure."""

_log = logging.getLogger("keyrot_middleware")

_FEW = 50
"""Values for each of which a text is searched sooner than it is looked through for all."""
_MOST_NAMES = 1_000
"""Names without a key that are remembered."""
_LONGEST_NAME = 256
"""Characters of one."""
_LOGGED_SINGLY = 10
"""Keys without a value that the log names one by one."""
# What may stand in a header and in an API key; a stray quote comes from `docker --env-file`.
_GOOD_VALUE = re.compile(r"[!#-&(-~]+")

Refs = dict[str, str | None]
"""The reference of each key id, as in keys.json; None: the store's default."""


class SecretLocation(NamedTuple):
    """Where the value of a key is kept."""

    store: SecretStore
    ref: str | None = None
    """As in keys.json; None: the store's default for the key."""
    provider: str = ""
    """Whose key it is; empty: anybody's."""


_Lookup = Future[frozenset[str]]
"""One request to a store: the ids whose value changed."""


class _Worker:
    """A store, the look-up that runs in it, and when the next one is due."""

    def __init__(self, store: SecretStore) -> None:
        self.store = store
        self.instant = bool(getattr(store, "instant", False))
        self.due = 0.0
        """On the clock of `time.monotonic()`."""
        self.failures = 0
        """Look-ups in a row after which a key had no current value."""
        self.failure_logged = False
        self.running: _Lookup | None = None
        self.again = False
        """Keys were requested while one runs: the next one is of all keys, and due at its end."""

    @property
    def fixed(self) -> bool:
        """Whether the store's values never change."""
        return bool(getattr(self.store, "fixed", False))


@dataclass(slots=True)
class _Key:
    """A key of the pool."""

    worker: _Worker
    ref: str | None
    provider: str
    value: Secret | None = None
    """The last one; None: it never had one."""
    error: str | None = None
    """Why it has no current value; it may still have the last one."""
    duplicate_of: str | None = None
    """The id that is used in its place, since both have the same value."""


class _Index:
    """Finds which of many values stand in a text; its cost does not grow with them."""

    def __init__(self, values: Sequence[PlainText]) -> None:
        self.values = values
        self._by_length: dict[int, dict[int, PlainText]] = {}
        """By the hash of the text, which nobody can read."""
        characters = set[str]()
        for value in values:
            characters |= set(value)
            self._by_length.setdefault(len(value), {})[hash(value)] = value
        least = min(self._by_length, default=1)
        self._runs = re.compile(f"[{re.escape(''.join(characters) or ' ')}]{{{least},}}")

    def find(self, text: str) -> Sequence[PlainText]:
        """Return those that stand in *text*, the longest first."""
        found: dict[PlainText, None] = {}
        for length, values in sorted(self._by_length.items(), reverse=True):
            for run in self._runs.finditer(text):
                for start in range(run.start(), run.end() - length + 1):
                    if (value := values.get(hash(text[start : start + length]))) is not None:
                        found[value] = None
        return [*found]


class SecretCache(StaysHere):
    """Holds the values of many keys; safe from any thread."""

    def __init__(
        self,
        locations: Mapping[str, SecretLocation],
        *,
        optional: Collection[str] = (),
        ttl_s: float = 300.0,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Look all keys up, in all stores at once.

        Args:
            locations: Where each key id is kept. Of several ids with one value the first has it.
            optional: Ids that may duplicate another's value without a report: the single key.
            ttl_s: How often `tick()` looks all keys up again.
            start_timeout_s: The longest wait for the stores.
        """
        self.on_change: Callable[[frozenset[str]], object] | None = None
        """Called with the ids that have another value, or their first, and with no id after the
        locations were replaced; by one thread at a time."""
        self._ttl_s = ttl_s
        self._optional = frozenset(optional)
        self.locations: Mapping[str, SecretLocation]
        """Where each key is kept."""
        self._keys: dict[str, _Key] = {}
        self._workers: dict[int, _Worker] = {}
        """By the identity of the store."""
        self._removed: dict[str, Secret] = {}
        """Values of ids that left the pool, for calls in flight."""
        self._key_ids: dict[Secret, str] = {}
        """By value: the id that has it, or had it last."""
        self._unusual_values: Sequence[PlainText] = ()
        """Values that masking by shape does not hide wherever they stand, the longest first."""
        self._clean_names = set[str]()
        """Names in which there is nothing to mask; emptied when there is another value."""
        self._closed = False
        self._lock, self._notify_lock = Lock(), Lock()
        self._make_event()
        after_fork(self, SecretCache._reset_after_fork)
        self.set_locations(locations, start_timeout_s)

    # Reading --------------------------------------------------------------------------------------

    def value(self, key_id: str) -> Secret:
        """Return the value of a key; of one that left the pool the last that it had.

        Raises:
            KeyError: The key never had a value.
        """
        key = self._keys.get(key_id)
        value = key.value if key else None
        return self._removed[key_id] if value is None else value

    def key_id_for(self, value: Secret) -> str | None:
        """Return the id that has a value, or had it; None: this cache never held the value."""
        return self._key_ids.get(value)

    @property
    def resolved(self) -> tuple[str, ...]:
        """The ids that have a value, in the order of the pool."""
        return tuple(i for i, key in self._keys.items() if key.value is not None)

    @property
    def unresolved(self) -> Mapping[str, str]:
        """Why a key has no value, by id."""
        return {i: key.error for i, key in self._keys.items() if key.value is None and key.error}

    @property
    def stale(self) -> Mapping[str, str]:
        """Why the latest look-up of a key failed, though its last value is in use, by id."""
        keys = self._keys.items()
        return {i: key.error for i, key in keys if key.value is not None and key.error}

    @property
    def duplicates(self) -> Mapping[str, str]:
        """The id that is used in place of one with the same value."""
        return {i: key.duplicate_of for i, key in self._keys.items() if key.duplicate_of}

    @property
    def can_change(self) -> bool:
        """Whether a later look-up may find another value."""
        return any(not worker.fixed for worker in self._workers.values())

    def redact(self, text: str, also: Secret | None = None) -> str:
        """Mask in *text* every value this cache ever held, and whatever looks like a key.

        Args:
            text: What a server sent, or a text about it; keys in it may be escaped.
            also: A value outside the pool.
        """
        return hide_escaped(text, self._mask if also is None else partial(self._mask, also=also))

    def redact_name(self, name: str) -> str:
        """Do as `redact` for a name that many calls have, as that of a model."""
        clean = self._clean_names  # that of now: a value that comes meanwhile replaces it
        if name in clean:
            return name
        shown = self.redact(name)
        if shown == name and len(name) <= _LONGEST_NAME:
            if len(clean) >= _MOST_NAMES:
                clean.clear()
            clean.add(name)
        return shown

    _index = _Index(())

    def _mask(self, text: str, also: Secret | None = None) -> str:
        text, values = mask_keys(text), self._unusual_values
        if len(values) > _FEW:
            if self._index.values is not values:
                self._index = _Index(values)
            values = self._index.find(text)
        for value in values:
            if value in text:
                text = text.replace(value, "[redacted]")
        return text if also is None else also.hide_in(text)

    def __repr__(self) -> str:
        return f"<SecretCache: {len(self.resolved)} keys, {len(self.unresolved)} unresolved>"

    # Looking up -----------------------------------------------------------------------------------

    def refresh(self, key_id: str, timeout_s: float = LOOKUP_TIMEOUT_S) -> bool:
        """Look a key up again now; return whether it has another value than before.

        A failure raises nothing: it is logged and kept in `unresolved`, or in `stale` where the
        key keeps its last value. An answer that takes longer than *timeout_s* is used when it
        arrives.
        """
        key = self._keys.get(key_id)
        if key is None:
            return False
        lookup = self._look_up(key.worker, {key_id: key.ref})
        if not wait((lookup,), timeout_s).done:
            if timeout_s > 0:
                text = "key %s: the secret store %s is slow; its answer is used when it arrives"
                _log.warning(text, key_id, key.worker.store.scheme)
            return False
        if key.error:
            _log.warning("no new value: %s", key.error)
        return key_id in lookup.result()

    def refresh_all(self, timeout_s: float = LOOKUP_TIMEOUT_S) -> frozenset[str]:
        """Look all keys up again now; return those that have another value.

        As `refresh`: it raises nothing, and answers that take longer are used when they arrive.
        """
        workers = [worker for worker in self._workers.values() if not worker.fixed]
        lookups = [self._look_up(worker, self._refs_in(worker)) for worker in workers]
        return frozenset[str]().union(*(one.result() for one in wait(lookups, timeout_s).done))

    def set_locations(
        self, locations: Mapping[str, SecretLocation], timeout_s: float = START_TIMEOUT_S
    ) -> None:
        """Replace all locations, look up what is new, and wait up to *timeout_s* for the answers.

        Keys that *locations* lacks leave the pool; calls in flight still find their values. A key
        with another location keeps its value until the new location has one.
        """
        with self._lock:
            workers = self._replace_locations(locations)
        failing = {worker: self._refs_in(worker, failing=True) for worker in workers.values()}
        lookups = [self._look_up(worker, refs) for worker, refs in failing.items() if refs]
        wait(lookups, timeout_s)
        reasons = list(self.unresolved.values())
        for reason in reasons[:_LOGGED_SINGLY]:
            _log.error("skipped: %s", reason)
        if len(reasons) > _LOGGED_SINGLY:
            _log.error("skipped: %d keys more", len(reasons) - _LOGGED_SINGLY)
        for worker in workers.values():
            worker.failure_logged = bool(self._refs_in(worker, failing=True))
        self._notify(frozenset())

    def _replace_locations(self, locations: Mapping[str, SecretLocation]) -> dict[int, _Worker]:
        before, keys, workers = self._keys, dict[str, _Key](), dict[int, _Worker]()
        for key_id, (store, ref, provider) in locations.items():
            worker = self._workers.get(id(store)) or workers.get(id(store)) or _Worker(store)
            workers[id(store)] = worker
            key = before.get(key_id)
            if key is None or (key.worker, key.ref, key.provider) != (worker, ref, provider):
                reason = f"key {key_id}: no answer yet from the secret store {store.scheme}"
                value = key.value if key is not None and key.provider == provider else None
                key = _Key(worker, ref, provider, value, reason)
            keys[key_id] = key
        for key_id in before.keys() - keys.keys():
            if (value := before[key_id].value) is not None:
                self._removed[key_id] = value
        self._keys, self._workers = keys, workers
        self.locations = MappingProxyType(dict(locations))
        return workers

    def tick(self) -> float:
        """Start the look-ups that are due; return the seconds until the next one is."""
        now, next_due = time.monotonic(), inf
        for worker in self._workers.values():
            if worker.fixed or worker.running:
                continue  # a worker that runs sets `wake` when it is done
            failing = self._refs_in(worker, failing=True)
            self._log_health(worker, failing)
            if now < worker.due and not worker.again:
                next_due = min(next_due, worker.due)
            else:
                some = failing and not worker.again and self._retry_s(worker) < self._ttl_s
                self._look_up(worker, failing if some else self._refs_in(worker))
        return max(0.0, next_due - now)

    def close(self) -> None:
        """Ignore answers from now on; values stay for calls in flight."""
        self._closed = True

    def _look_up(self, worker: _Worker, refs: Refs) -> _Lookup:
        """Request keys; where a look-up runs already, it is that one, and one of all follows.

        The thread is a daemon and not an executor's, for which the interpreter would wait at exit.

        Raises:
            RuntimeError: The system has no thread left.
        """
        with self._lock:
            if worker.running:
                worker.again = True
                return worker.running
            lookup, worker.again = _Lookup(), False
            run = partial(self._run, worker, refs, lookup)
            if not worker.instant:
                name = f"keyrot-secrets-{worker.store.scheme}"
                threading.Thread(target=run, name=name, daemon=True).start()
                worker.running = lookup
        if worker.instant:
            run()
        return lookup

    def _run(self, worker: _Worker, refs: Refs, lookup: _Lookup) -> None:
        """Look keys up, take what the store answers, and say which have another value."""
        changed = set[str]()
        try:
            answers = _resolve(worker.store, refs)
            with self._lock:
                changed = self._take(worker, refs, answers)
            worker.failures = worker.failures + 1 if self._refs_in(worker, failing=True) else 0
            pause = self._retry_s(worker) if worker.failures else self._ttl_s
            # Processes that start together spread over half of the time.
            worker.due = time.monotonic() + pause * (0.5 + random.random() / 2)
            if changed:
                self._notify(frozenset(changed))
        finally:
            with self._lock:
                worker.running = None
            lookup.set_result(frozenset(changed))
            self.wake.set()

    def _take(
        self, worker: _Worker, refs: Refs, answers: Mapping[str, Secret | SecretError]
    ) -> set[str]:
        changed = set()
        for key_id, ref in refs.items():
            key = self._keys.get(key_id)
            if self._closed or key is None or key.worker is not worker or key.ref != ref:
                continue  # removed or moved meanwhile
            if self._update(key_id, key, answers[key_id]):
                changed.add(key_id)
        return changed

    def _update(self, key_id: str, key: _Key, answer: Secret | SecretError) -> bool:
        """Store an answer; return whether the key has another value now."""
        key.duplicate_of = None
        if isinstance(answer, SecretError):
            key.error = mask_keys(str(answer))
            return False
        value, problem = answer, _problem_of(answer.reveal(), key.provider)
        owner_id = self._key_ids.get(value, key_id)
        owner = self._keys.get(owner_id)
        if problem is None and owner_id != key_id and owner and owner.value == value:
            problem = f"its value is that of the key {owner_id}"
            key.duplicate_of = owner_id if key.value is None else None
        if problem is not None:
            expected = key.duplicate_of and key_id in self._optional
            key.error = None if expected else f"key {key_id}: {problem}"
            return False
        if value not in self._key_ids and _is_masked_by_value(value.reveal()):
            values = [*self._unusual_values]
            insort(values, value.reveal(), key=lambda one: -len(one))
            self._unusual_values, self._clean_names = values, set()
        changed = key.value != value
        self._key_ids[value] = key_id
        key.value, key.error = value, None
        return changed

    def _notify(self, changed: frozenset[str]) -> None:
        with self._notify_lock:
            if self.on_change is not None:
                self.on_change(changed)

    def _refs_in(self, worker: _Worker, *, failing: bool = False) -> Refs:
        """Return the keys of a store; *failing*: those without a current value only."""
        return {
            key_id: key.ref
            for key_id, key in self._keys.items()
            if key.worker is worker and (key.error or not failing)
        }

    def _retry_s(self, worker: _Worker) -> float:
        return min(FIRST_RETRY_S * 2.0 ** min(worker.failures - 1, 30), self._ttl_s)

    def _log_health(self, worker: _Worker, failing: Refs) -> None:
        """Log once that keys of a store have no current value, and once that all have one."""
        if failing and not worker.failure_logged:
            text = "secret store %s: %d keys have no current value; it is asked again (%s)"
            key = self._keys.get(next(iter(failing)))
            _log.warning(text, worker.store.scheme, len(failing), key and key.error)
        elif worker.failure_logged and not failing:
            _log.info("secret store %s: all keys have a current value", worker.store.scheme)
        worker.failure_logged = bool(failing)

    # Forks ----------------------------------------------------------------------------------------

    def _make_event(self) -> None:
        self.wake = threading.Event()
        """Set when `tick()` has something to do earlier than it returned."""

    def _reset_after_fork(self) -> None:
        self._make_event()
        for worker in self._workers.values():
            worker.running = None  # the threads stayed with the parent


def _resolve(store: SecretStore, refs: Refs) -> Mapping[str, Secret | SecretError]:
    """Return an answer for each key, whatever the store does."""
    reason = "gave no answer"
    found: Mapping[str, Secret | SecretError] = {}
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


def _problem_of(value: str, provider: str) -> str | None:
    """Return why a value cannot be a key of a provider's, without showing it; None: it can."""
    if not value:
        return "its value is empty"
    if value == POOL_KEY:
        return f"its value is the placeholder {POOL_KEY}, which stands for no key"
    if not _GOOD_VALUE.fullmatch(value):
        return "its value holds a blank, a quote or a character that is not ASCII"
    return foreign_key(value, provider) if provider and not is_ambiguous(value) else None


def _is_masked_by_value(value: str) -> bool:
    """Return whether masking by shape does not hide the whole value, which is long enough."""
    return len(value) >= MASKED_FROM and value in mask_keys(f"0{value}")  # behind a letter too
