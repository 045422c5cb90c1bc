"""What the ring knows at one moment; once in place it is never changed, only copied."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..core.policy import POOL_KEY
from ..core.text import mask_keys
from ..errors import SecretError
from .base import MASKED_FROM, Secret

__all__ = ["Book"]

# What may stand in a header and in an API key; a stray quote comes from `docker --env-file`.
_GOOD_VALUE = re.compile(r"[!#-&(-~]+")
_MASKS = ("AIza…[redacted]", "AQ.…[redacted]")


@dataclass(slots=True, repr=False, eq=False)
class Book:
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

    def copy(self) -> Book:
        """Make a book that may be written in."""
        return Book(
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
