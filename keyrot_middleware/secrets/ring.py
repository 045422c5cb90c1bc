"""The values of the pool's keys, in memory only, by key id and back.

`value()` is on the way of every call: it reads a dictionary that nobody ever changes. A look-up
makes a new one and puts it in place in one step, so readers need no lock.

A key that cannot be had is left out and reported, and the others serve. A key that has a value
never loses it: where a later look-up fails, the last value stays.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..core.text import mask_keys
from ..errors import SecretError
from .base import Secret, SecretStore
from .book import Book

__all__ = ["Place", "Ring"]

_log = logging.getLogger("keyrot_middleware")


class Place(NamedTuple):
    """Where the value of a key is kept."""

    store: SecretStore
    ref: str | None = None
    """As in keys.json; None: the store's default place for the key."""


class Ring:
    """Hold the values of many keys, safe from any thread."""

    def __init__(self, places: Mapping[str, Place], *, optional: Collection[str] = ()) -> None:
        """Look all keys up, each store once.

        Args:
            places: Where each key id is kept. Of several ids with one value the first has it.
            optional: Ids that may have another's value without being reported: the single key.
        """
        self._places = dict(places)
        self._lock = threading.Lock()
        self._book = Book(frozenset(optional))
        self._look_up(self._places)
        for reason in self._book.unresolved.values():
            _log.warning("left out of the pool: %s", reason)

    def value(self, key_id: str) -> str:
        """Return the value of a key.

        Raises:
            KeyError: If the key is none of the resolved ones.
        """
        return self._book.values[key_id]

    def id_of(self, value: str) -> str | None:
        """Tell whose value that is or once was; None where this ring never held it."""
        return self._book.ids.get(value)

    def refresh(self, key_id: str) -> bool:
        """Look a key up again now; tell whether it has another value than before.

        Never raises: a failure is logged and kept in `unresolved`, or, where the key goes on
        with its last value, in `stale`.
        """
        if key_id not in self._places:
            return False
        changed = self._look_up({key_id: self._places[key_id]})
        reason = self.unresolved.get(key_id) or self.stale.get(key_id)
        if reason:
            _log.warning("no new value: %s", reason)
        return key_id in changed

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

    def redact(self, text: str) -> str:
        """Mask in *text* every value this ring ever held, and whatever looks like a key."""
        text = mask_keys(text)
        for value in self._book.odd:
            if value in text:
                text = text.replace(value, "[redacted]")
        return text

    def _look_up(self, places: Mapping[str, Place]) -> frozenset[str]:
        """Ask the stores, then put a new book in place; return the ids whose value changed."""
        found = _ask(places)
        with self._lock:
            book = self._book.copy()
            changed = {key_id for key_id in places if book.enter(key_id, found[key_id])}
            book.odd.sort(key=len, reverse=True)
            self._book = book
        return frozenset(changed)

    def __repr__(self) -> str:
        return f"<Ring: {len(self._book.values)} keys, {len(self.unresolved)} unresolved>"


def _ask(places: Mapping[str, Place]) -> dict[str, Secret | SecretError]:
    """Ask each store once for all of its keys."""
    refs: dict[int, dict[str, str | None]] = {}
    stores: dict[int, SecretStore] = {}
    for key_id, (store, ref) in places.items():
        stores[id(store)] = store
        refs.setdefault(id(store), {})[key_id] = ref
    answers: dict[str, Secret | SecretError] = {}
    for number, store in stores.items():
        answers.update(_ask_one(store, refs[number]))
    return answers


def _ask_one(store: SecretStore, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
    why = "gave no answer"
    found: Mapping[str, Secret | SecretError] = {}
    try:
        found = store.resolve(refs)
    except Exception as error:
        # Only its type: the message of a store's library may hold a token or a value.
        why = f"failed with {type(error).__name__}"
    nothing = "key {}: the secret store {} {}"
    return {
        key_id: found[key_id]
        if key_id in found
        else SecretError(nothing.format(key_id, store.scheme, why))
        for key_id in refs
    }
