"""The values of the pool's keys, in memory only, by key id and back.

`value()` is on the way of every call: it reads a dictionary that nobody ever changes. A look-up
makes a new one and puts it in place in one step, so readers need no lock. Stores are asked in
threads of their own (source.py): at the start, when a key was refused, and by the clock, which
`turn()` reads for whoever calls it (drive/upkeep.py).

A key that cannot be had is left out and reported, and the others serve. A key that has a value
never loses it: where a later look-up fails, the last value stays.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from math import inf
from types import MappingProxyType
from typing import NoReturn

from ..core.text import mask_keys
from ..forks import after_fork
from . import messages
from .base import SecretStore
from .book import Book
from .lanes import Ticket
from .place import Listener, Place
from .rota import Rota
from .source import Answers, Source

__all__ = ["ANSWER_S", "START_S", "Place", "Ring"]

START_S = 10.0
"""How long a start waits for stores; what has not answered by then joins later."""
ANSWER_S = 2.0
"""How long a call waits for a new value of the key that it was just refused with."""


class Ring:
    """Hold the values of many keys, safe from any thread."""

    def __init__(
        self,
        places: Mapping[str, Place],
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
        self.listener: Listener | None = None
        self._ttl_s, self._draw = ttl_s, draw
        self._places: dict[str, Place] = {}
        self._sources: dict[int, Source] = {}
        self._awaited: set[str] = set()
        """Ids that wait for their first answer from where they are kept now."""
        self._closed = False
        self._book = Book(frozenset(optional))
        self._make_locks()
        after_fork(self, Ring._renew)
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
                messages.slow(key_id, place.store.scheme)
            return False
        reason = self.unresolved.get(key_id) or self.stale.get(key_id)
        if reason:
            messages.no_value(reason)
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

    def hang(self, places: Mapping[str, Place], wait_s: float = START_S) -> None:
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
        messages.left_out([self.unresolved[i] for i in asked if i in self.unresolved])
        for source in self._sources_of(asked):
            source.told = bool(self._failing(source))
        self._tell(frozenset())

    def turn(self) -> float:
        """Ask the stores that are due, and wait for none; give the seconds until the next is."""
        now, soonest = time.monotonic(), inf
        for source in tuple(self._sources.values()):
            if source.fixed or source.busy:
                continue  # a busy one stirs when it has answered
            messages.mention(source, self._failing(source), self._book)
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
    def places(self) -> Mapping[str, Place]:
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

    def _rehang(self, places: Mapping[str, Place]) -> list[str]:
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

    def _new_source(self, store: SecretStore) -> Source:
        return Source(store, self._enter, self._stir, self._new_rota)

    def _new_rota(self) -> Rota:
        return Rota(self._ttl_s, self._draw, time.monotonic())

    def _stir(self) -> None:
        self.stirred.set()

    def _sources_of(self, key_ids: Iterable[str]) -> list[Source]:
        numbers = dict.fromkeys(id(self._places[key_id].store) for key_id in key_ids)
        return [self._sources[number] for number in numbers]

    def _ids_of(self, source: Source) -> list[str]:
        return [i for i, place in self._places.items() if place.store is source.store]

    def _failing(self, source: Source) -> list[str]:
        """List the keys of a store that have no current value."""
        book = self._book
        return [i for i in self._ids_of(source) if i in book.unresolved or i in book.stale]

    # What an answer does --------------------------------------------------------------------------

    def _enter(self, source: Source, ticket: Ticket, answers: Answers) -> None:
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
        told = self._tell(changed) if changed else changed
        if not ticket.finish(changed) and told and self.listener is not None:
            self.listener.announce(told)

    def _at(self, key_id: str, source: Source, ref: str | None) -> bool:
        """Tell whether a key is still kept where it was asked for."""
        place = self._places.get(key_id)
        return place is not None and place.store is source.store and place.ref == ref

    def _tell(self, changed: frozenset[str]) -> frozenset[str]:
        with self._telling:
            return self.listener.renewed(changed) if self.listener is not None else changed

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
