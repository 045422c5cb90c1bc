"""Keys of the fake service: whose they are, and values that only look real."""

from __future__ import annotations

import secrets
import string
import threading
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["FakeKey", "KeyRing", "Style", "Tier", "make_value"]

Tier = Literal["free", "paid"]
Style = Literal["standard", "auth"]

_ALPHABET = string.ascii_letters + string.digits
# Prefix and length of what follows: a standard key (AIza + 35) and an auth key (AQ. + 50).
_SHAPES: dict[str, tuple[str, int]] = {"standard": ("AIza", 35), "auth": ("AQ.", 50)}


@dataclass(frozen=True, slots=True)
class FakeKey:
    """A key that the fake service accepts.

    Attributes:
        label: The name by which the test speaks of it.
        value: What goes into `x-goog-api-key`; kept out of `repr`.
        project: Quota and stored things belong to it.
        billing_account: Spend caps and prepaid credit belong to it.
        tier: Decides which quotas an error names.
        number: The project's number, as Google's error bodies show it.
    """

    label: str
    value: str = field(repr=False)
    project: str
    billing_account: str
    tier: Tier
    number: str


def make_value(style: Style = "standard") -> str:
    """Make a random value in the shape of a Gemini key that contains FAKE.

    Raises:
        ValueError: If `style` is unknown.
    """
    if style not in _SHAPES:
        raise ValueError(f"style {style!r} is unknown: use one of {sorted(_SHAPES)}")
    prefix, length = _SHAPES[style]
    return prefix + "FAKE" + "".join(secrets.choice(_ALPHABET) for _ in range(length - 4))


class KeyRing:
    """The keys by value and by label; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_value: dict[str, FakeKey] = {}
        self._by_label: dict[str, FakeKey] = {}
        self._numbers: dict[str, str] = {}

    def add(self, label: str, value: str, project: str, account: str, tier: Tier) -> FakeKey:
        """Keep a new key.

        Raises:
            ValueError: If the label or the value is taken.
        """
        with self._lock:
            if label in self._by_label or value in self._by_value:
                raise ValueError(f"a key {label!r}, or its value, is there already: choose another")
            number = self._numbers.setdefault(project, str(100_000_000_001 + len(self._numbers)))
            key = FakeKey(label, value, project, account, tier, number)
            self._by_label[label] = self._by_value[value] = key
            return key

    def remove(self, label: str) -> None:
        """Forget a key, as if it had been deleted in AI Studio.

        Raises:
            KeyError: If there is no such key.
        """
        with self._lock:
            del self._by_value[self.named(label).value]
            del self._by_label[label]

    def named(self, label: str) -> FakeKey:
        """Return the key with that label.

        Raises:
            KeyError: If there is no such key; the message lists those there are.
        """
        try:
            return self._by_label[label]
        except KeyError:
            known = ", ".join(sorted(self._by_label)) or "none yet"
            raise KeyError(f"no key {label!r}; add_key() made: {known}") from None

    def find(self, value: str) -> FakeKey | None:
        """Return the key with that value, or None."""
        return self._by_value.get(value)
