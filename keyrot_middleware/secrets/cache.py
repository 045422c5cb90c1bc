"""The values of the pool's keys, in memory only, by key id and back.

`value()` is on the way of every call: it reads a dictionary that nobody ever changes. A look-up
makes a new one and puts it in place in one step, so readers need no lock. Stores are asked in
threads of their own (source.py): at the start, when a key was refused, and by the clock, which
`turn()` reads for whoever calls it (runtime/upkeep.py).

A key without a value is skipped and reported, and the others are used. A key that has a value
never loses it: where a later look-up fails, the last value stays.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import NamedTuple, NoReturn, Protocol

from ..core.model import POOL_KEY
from ..core.text import mask_keys
from ..errors import SecretError
from ..forks import after_fork
from .base import MASKED_FROM, Secret, SecretStore
from .refresh import Answers, LookupFuture, RefreshSchedule, StoreWorker

__all__ = [
    "ANSWER_S",
    "START_S",
    "ChangeListener",
    "SecretCache",
    "SecretLocation",
    "SecretTable",
    "log_no_value",
    "log_skipped",
    "log_slow_store",
    "log_store_health",
]

# Where values are kept, and who learns that one has changed ------------------------------------


class SecretLocation(NamedTuple):
    """Where the value of a key is kept."""

    store: SecretStore
    ref: str | None = None
    """As in keys.json; None: the store's default place for the key."""


class ChangeListener(Protocol):
    """Who learns what look-ups have changed; notified by one thread at a time."""

    def on_secrets_changed(self, key_ids: frozenset[str]) -> frozenset[str]:
        """Learn which keys have another value, or their first; give those that were replaced."""

    def log_replaced(self, key_ids: frozenset[str]) -> None:
        """Say that these were replaced: no call that could say it is waiting for them."""


# What the ring knows at one moment; once in place it is never changed, only copied -------------


# What may stand in a header and in an API key; a stray quote comes from `docker --env-file`.
_GOOD_VALUE = re.compile(r"[!#-&(-~]+")
_MASKS = ("AIza…[redacted]", "AQ.…[redacted]")


@dataclass(slots=True, repr=False, eq=False)
class SecretTable:
    """Values by key id, and what became of the ids that have none."""

    optional: frozenset[str] = frozenset()
    """Ids that may have another's value without being reported."""
    values: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    """Whose each value is or once was."""
    odd: list[str] = field(default_factory=list)
    """Values that do not have the shape of a key, the longest first, for masking."""
    unresolved: dict[str, str] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)
    same_as: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    """Values of ids that left the pool, for calls that are still under way with them."""

    def copy(self) -> SecretTable:
        """Make a book that may be written in."""
        return SecretTable(
            self.optional,
            self.values.copy(),
            self.ids.copy(),
            self.odd.copy(),
            self.unresolved.copy(),
            self.stale.copy(),
            self.same_as.copy(),
            self.gone.copy(),
        )

    def leave(self, key_id: str) -> None:
        """Let an id leave the pool: another may have its value now."""
        if key_id in self.values:
            self.gone[key_id] = self.values.pop(key_id)
        for reasons in (self.unresolved, self.stale, self.same_as):
            reasons.pop(key_id, None)

    def enter(self, key_id: str, found: Secret | SecretError) -> bool:
        """Write down what a store answered; tell whether the key's value is another now."""
        for reasons in (self.unresolved, self.stale, self.same_as):
            reasons.pop(key_id, None)
        if isinstance(found, SecretError):
            self.miss(key_id, mask_keys(str(found)))
            return False
        value = found.reveal()
        fault = _fault(value)
        if fault:
            self.miss(key_id, f"key {key_id}: {fault}")
            return False
        holder = self._holder(value)
        if holder not in (None, key_id):
            self._repeat(key_id, str(holder))
            return False
        return self._keep(key_id, value)

    def _holder(self, value: str) -> str | None:
        key_id = self.ids.get(value)
        return key_id if key_id is not None and self.values.get(key_id) == value else None

    def miss(self, key_id: str, reason: str) -> None:
        """Write down why a key has no current value."""
        (self.stale if key_id in self.values else self.unresolved)[key_id] = reason

    def _repeat(self, key_id: str, holder: str) -> None:
        if key_id not in self.values:
            self.same_as[key_id] = holder
            if key_id in self.optional:
                return
        self.miss(key_id, f"key {key_id}: its value is that of the key {holder}")

    def _keep(self, key_id: str, value: str) -> bool:
        if value not in self.ids and len(value) >= MASKED_FROM and not _has_shape(value):
            self.odd.append(value)
        changed = self.values.get(key_id) != value
        self.values[key_id] = value
        self.ids[value] = key_id
        return changed


def _fault(value: str) -> str | None:
    """Say why a value can be no key, without showing it."""
    if not value:
        return "its value is empty"
    if value == POOL_KEY:
        return f"its value is the placeholder {POOL_KEY}, which stands for no key"
    if not _GOOD_VALUE.fullmatch(value):
        return "its value holds a blank, a quote or a character that is not ASCII"
    return None


def _has_shape(value: str) -> bool:
    """Tell whether masking by shape leaves nothing of the value."""
    return mask_keys(value) in _MASKS


# What the log says of stores that do not give what they should; no value is in any of it -------


_log = logging.getLogger("keyrot_middleware")

_LOGGED_SINGLY = 10
"""Keys that are logged one by one where many have no value."""


def log_skipped(reasons: Sequence[str]) -> None:
    """Say which keys have no value, when they are looked up for the first time."""
    for reason in reasons[:_LOGGED_SINGLY]:
        _log.error("skipped: %s", reason)
    if len(reasons) > _LOGGED_SINGLY:
        _log.error("skipped: %d keys more", len(reasons) - _LOGGED_SINGLY)


def log_store_health(source: StoreWorker, failing: Sequence[str], book: SecretTable) -> None:
    """Say once that a store does not give all of its keys, and once that it does again."""
    scheme = source.store.scheme
    if failing and not source.failure_logged:
        first = failing[0]
        text = "secret store %s: %d keys have no current value; it is asked again (%s)"
        reason = book.unresolved.get(first) or book.stale.get(first)
        _log.warning(text, scheme, len(failing), reason)
    elif source.failure_logged and not failing:
        _log.info("secret store %s: all keys have a current value", scheme)
    source.failure_logged = bool(failing)


def log_no_value(reason: str) -> None:
    """Say why the value of a key that was refused could not be looked up."""
    _log.warning("no new value: %s", reason)


def log_slow_store(key_id: str, scheme: str) -> None:
    """Say that a call does not wait any longer."""
    text = "key %s: the secret store %s is slow; its answer is used when it comes"
    _log.warning(text, key_id, scheme)


START_S = 10.0
"""How long a start waits for stores; what has not answered by then joins later."""
ANSWER_S = 2.0
"""How long a call waits for a new value of the key that it was just refused with."""


class SecretCache:
    """Hold the values of many keys, safe from any thread."""

    def __init__(
        self,
        places: Mapping[str, SecretLocation],
        *,
        optional: Collection[str] = (),
        ttl_s: float = 300.0,
        start_s: float = START_S,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Look all keys up, all stores at once.

        Args:
            places: Where each key id is kept. Of several ids with one value the first has it.
            optional: Ids that may have another's value without being reported: the single key.
            ttl_s: How often `turn()` looks all of them up again.
            start_s: How long to wait for the stores, at most.
            draw: Random numbers in [0, 1), by which processes differ in when they ask.
        """
        self.listener: ChangeListener | None = None
        self._ttl_s, self._draw = ttl_s, draw
        self._places: dict[str, SecretLocation] = {}
        self._sources: dict[int, StoreWorker] = {}
        self._awaited: set[str] = set()
        """Ids that wait for their first answer from where they are kept now."""
        self._closed = False
        self._book = SecretTable(frozenset(optional))
        self._make_locks()
        after_fork(self, SecretCache._renew)
        self.hang(places, start_s)

    def value(self, key_id: str) -> str:
        """Return the value of a key; of one that left the pool the last that it had.

        Raises:
            KeyError: If the key never was one of the resolved ones.
        """
        book = self._book
        try:
            return book.values[key_id]
        except KeyError:
            return book.gone[key_id]

    def id_of(self, value: str) -> str | None:
        """Tell whose value that is or once was; None where this ring never held it."""
        return self._book.ids.get(value)

    def refresh(self, key_id: str, wait_s: float = ANSWER_S) -> bool:
        """Look a key up again now; tell whether it has another value than before.

        Never raises: a failure is logged and kept in `unresolved`, or, where the key goes on
        with its last value, in `stale`. An answer that comes after *wait_s* seconds is used when
        it comes; they count from when the store was first asked.
        """
        place = self._places.get(key_id)
        source = self._sources.get(id(place.store)) if place else None
        if place is None or source is None:  # without a source it moves now, and is asked for
            return False
        ticket = source.ask({key_id: place.ref}, urgent=True, takers=1)
        if not ticket.wait(ticket.at + wait_s, takers=1):
            if wait_s > 0:
                log_slow_store(key_id, place.store.scheme)
            return False
        reason = self.unresolved.get(key_id) or self.stale.get(key_id)
        if reason:
            log_no_value(reason)
        return key_id in ticket.changed

    def refresh_all(self, wait_s: float = ANSWER_S) -> frozenset[str]:
        """Look all keys up again now, each store once; give those that have another value.

        Never raises, as `refresh`; what comes later than *wait_s* is used when it comes.
        """
        tickets = [
            source.ask({i: self._places[i].ref for i in self._ids_of(source)}, urgent=True)
            for source in tuple(self._sources.values())
            if not source.fixed
        ]
        answered = [ticket for ticket in tickets if ticket.wait(ticket.at + wait_s)]
        return frozenset[str]().union(*(ticket.changed for ticket in answered))

    def hang(self, places: Mapping[str, SecretLocation], wait_s: float = START_S) -> None:
        """Put other places in place, look up what is new, and wait so long for the answers.

        Keys that are in *places* no longer leave; calls that are under way with them still find
        their values. A key at another place keeps its value until there is an answer from there.
        """
        until = time.monotonic() + wait_s
        asked = self._rehang(places)
        tickets = [
            source.ask({i: places[i].ref for i in asked if places[i].store is source.store})
            for source in self._sources_of(asked)
        ]
        for ticket in tickets:
            ticket.wait(until)
        with self._lock:
            book = self._book.copy()
            for key_id in self._awaited.intersection(asked, self._places):
                store = self._places[key_id].store.scheme
                book.miss(key_id, f"key {key_id}: no answer yet from the secret store {store}")
            self._book = book
        log_skipped([self.unresolved[i] for i in asked if i in self.unresolved])
        for source in self._sources_of(asked):
            source.failure_logged = bool(self._failing(source))
        self._tell(frozenset())

    def turn(self) -> float:
        """Ask the stores that are due, and wait for none; give the seconds until the next is."""
        now, soonest = time.monotonic(), inf
        for source in tuple(self._sources.values()):
            if source.fixed or source.busy:
                continue  # a busy one stirs when it has answered
            log_store_health(source, self._failing(source), self._book)
            if now >= source.rota.due_at:
                ids = self._ids_of(source) if source.rota.asked(now) else self._failing(source)
                source.ask({key_id: self._places[key_id].ref for key_id in ids})
            else:
                soonest = min(soonest, source.rota.due_at)
        return max(0.0, soonest - now)

    def close(self) -> None:
        """Let answers that are still to come change nothing; values stay for calls under way."""
        self._closed = True

    @property
    def changes(self) -> bool:
        """Tell whether a value may be another one later."""
        return any(not source.fixed for source in self._sources.values())

    @property
    def resolved(self) -> tuple[str, ...]:
        """The ids that have a value, in the order of the pool."""
        values = self._book.values
        return tuple(key_id for key_id in self._places if key_id in values)

    @property
    def unresolved(self) -> Mapping[str, str]:
        """Why a key has no value, per id."""
        return MappingProxyType(self._book.unresolved)

    @property
    def stale(self) -> Mapping[str, str]:
        """Why the last look-up of a key gave nothing, though its last value serves, per id."""
        return MappingProxyType(self._book.stale)

    @property
    def same_as(self) -> Mapping[str, str]:
        """The id that serves in place of an id which has the same value."""
        return MappingProxyType(self._book.same_as)

    @property
    def places(self) -> Mapping[str, SecretLocation]:
        """Where each key is kept."""
        return MappingProxyType(self._places)

    def redact(self, text: str) -> str:
        """Mask in *text* every value this ring ever held, and whatever looks like a key."""
        text = mask_keys(text)
        for value in self._book.odd:
            if value in text:
                text = text.replace(value, "[redacted]")
        return text

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Ring cannot be pickled: its values stay in this process")

    def __repr__(self) -> str:
        return f"<Ring: {len(self.resolved)} keys, {len(self.unresolved)} unresolved>"

    # Which store has which keys -------------------------------------------------------------------

    def _rehang(self, places: Mapping[str, SecretLocation]) -> list[str]:
        """Put *places* in place; give the ids that are to be looked up."""
        with self._lock:
            before, self._places = self._places, dict(places)
            book = self._book.copy()
            for key_id in before.keys() - places.keys():
                book.leave(key_id)
            self._book = book
            asked = [i for i, place in places.items() if before.get(i) != place]
            asked += [i for i in book.unresolved if i in places and i not in asked]
            self._awaited = {i for i in self._awaited if i in places} | set(asked)
            kept = {id(place.store): place for place in places.values()}
            self._sources = {
                number: self._sources.get(number) or self._new_source(place.store)
                for number, place in kept.items()
            }
        return asked

    def _new_source(self, store: SecretStore) -> StoreWorker:
        return StoreWorker(store, self._enter, self._stir, self._new_rota)

    def _new_rota(self) -> RefreshSchedule:
        return RefreshSchedule(self._ttl_s, self._draw, time.monotonic())

    def _stir(self) -> None:
        self.stirred.set()

    def _sources_of(self, key_ids: Iterable[str]) -> list[StoreWorker]:
        numbers = dict.fromkeys(id(self._places[key_id].store) for key_id in key_ids)
        return [self._sources[number] for number in numbers]

    def _ids_of(self, source: StoreWorker) -> list[str]:
        return [i for i, place in self._places.items() if place.store is source.store]

    def _failing(self, source: StoreWorker) -> list[str]:
        """List the keys of a store that have no current value."""
        book = self._book
        return [i for i in self._ids_of(source) if i in book.unresolved or i in book.stale]

    # What an answer does --------------------------------------------------------------------------

    def _enter(self, source: StoreWorker, ticket: LookupFuture, answers: Answers) -> None:
        """Put a new book in place, with what *source* has answered to *ticket*."""
        with self._lock:
            if self._closed:
                return
            asked = [i for i, ref in ticket.refs.items() if self._at(i, source, ref)]
            book = self._book.copy()
            changed = frozenset(key_id for key_id in asked if book.enter(key_id, answers[key_id]))
            book.odd.sort(key=len, reverse=True)
            self._awaited.difference_update(asked)
            self._book = book
        source.answered(failing=bool(self._failing(source)))
        changes = self._tell(changed) if changed else changed
        if not ticket.finish(changed) and changes and self.listener is not None:
            self.listener.log_replaced(changes)

    def _at(self, key_id: str, source: StoreWorker, ref: str | None) -> bool:
        """Tell whether a key is still kept where it was asked for."""
        place = self._places.get(key_id)
        return place is not None and place.store is source.store and place.ref == ref

    def _tell(self, changed: frozenset[str]) -> frozenset[str]:
        with self._telling:
            return (
                self.listener.on_secrets_changed(changed) if self.listener is not None else changed
            )

    # Forks ----------------------------------------------------------------------------------------

    def _make_locks(self) -> None:
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self.stirred = threading.Event()
        """Set when `turn()` has something to do sooner than it has said."""

    def _renew(self) -> None:
        self._make_locks()
        for source in self._sources.values():
            source.renew()
            source.answered(failing=bool(self._failing(source)))
