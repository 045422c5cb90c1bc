"""The keys of the fake service, with random values in the shape of real ones."""

from __future__ import annotations

import secrets
import string
import threading
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["FakeKey", "KeyRegistry", "Style", "Tier", "make_value"]

Tier = Literal["free", "paid"]
Style = Literal["standard", "auth"]

_ALPHABET = string.ascii_letters + string.digits
# Prefix and length of what follows: a standard key (AIza + 35) and an auth key (AQ. + 50).
_SHAPES: dict[str, tuple[str, int]] = {"standard": ("AIza", 35), "auth": ("AQ.", 50)}


@dataclass(frozen=True, slots=True)
class FakeKey:
    """A key that the fake service accepts.

    Attributes:
        label: The key's name in the test.
        value: What goes into `x-goog-api-key`; kept out of `repr`.
        project: Owns quota and resources.
        billing_account: Owns spend caps and prepaid credit.
        tier: Selects the quotas that an error names.
        number: The project's number in Google's error bodies.
    """

    label: str
    value: str = field(repr=False)
    project: str
    billing_account: str
    tier: Tier
    number: str


def make_value(style: Style = "standard") -> str:
    """Return a random value in the shape of a Gemini key that contains FAKE.

    Raises:
        ValueError: If `style` is unknown.
    """
    if style not in _SHAPES:
        raise ValueError(f"style {style!r} is unknown: use one of {sorted(_SHAPES)}")
    prefix, length = _SHAPES[style]
    return prefix + "FAKE" + "".join(secrets.choice(_ALPHABET) for _ in range(length - 4))


class KeyRegistry:
    """The keys by value and by label; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_value: dict[str, FakeKey] = {}
        self._by_label: dict[str, FakeKey] = {}
        self._numbers: dict[str, str] = {}

    def add(self, label: str, value: str, project: str, account: str, tier: Tier) -> FakeKey:
        """Add a key.

        Raises:
            ValueError: If the label or the value is taken.
        """
        with self._lock:
            if label in self._by_label or value in self._by_value:
                raise ValueError(f"a key {label!r}, or its value, exists already: choose another")
            number = self._numbers.setdefault(project, str(100_000_000_001 + len(self._numbers)))
            key = FakeKey(label, value, project, account, tier, number)
            self._by_label[label] = self._by_value[value] = key
            return key

    def remove(self, label: str) -> None:
        """Remove a key, as if it were deleted in AI Studio.

        Raises:
            KeyError: If there is no such key.
        """
        with self._lock:
            del self._by_value[self.get(label).value]
            del self._by_label[label]

    def get(self, label: str) -> FakeKey:
        """Return the key with that label.

        Raises:
            KeyError: If there is no such key; the message lists the known ones.
        """
        try:
            return self._by_label[label]
        except KeyError:
            known = ", ".join(sorted(self._by_label)) or "none yet"
            raise KeyError(f"no key {label!r}; add_key() made: {known}") from None

    def find(self, value: str) -> FakeKey | None:
        """Return the key with that value, or None."""
        return self._by_value.get(value)
