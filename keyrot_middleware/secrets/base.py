"""What a secret is, and what a place that keeps secrets must be able to do."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import blake2b
from typing import NoReturn, Protocol

from ..errors import SecretError

__all__ = ["MASKED_FROM", "Secret", "SecretStore"]

MASKED_FROM = 8
"""Characters; a shorter value is no secret, and masking it would make texts unreadable."""
_MASK = "[secret]"


class Secret:
    """A value that shows itself only when asked with `reveal()`.

    It is masked in repr, str and format, and cannot be pickled. Blanks around it are dropped.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value.strip()

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value

    @property
    def fingerprint(self) -> str:
        """Give 8 hexadecimal digits that are the same for the same value everywhere.

        No salt: people compare them between hosts. 32 bits of a digest say nothing about a
        value that nobody can guess.
        """
        return blake2b(self._value.encode(), digest_size=4, person=b"keyrot").hexdigest()

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return f"Secret({_MASK})"

    def __str__(self) -> str:
        return _MASK

    def __format__(self, spec: str) -> str:
        return format(_MASK, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled: its value stays in this process")


class SecretStore(Protocol):
    """A place that keeps the values of keys.

    Stores are synchronous: the ring serves from memory, and asks each store in threads of its
    own. They may be asked from two threads at once. A store may also have these, False where it
    does not:

    - `instant`: a look-up needs no network, so it is done in the thread that asks;
    - `fixed`: values never change, so nobody looks again by the clock;

    and a method `place(key_id)` that returns where a key is kept by default, for people.
    """

    @property
    def scheme(self) -> str:
        """The scheme of its places, such as `env`."""
        ...

    def resolve(self, refs: Mapping[str, str | None]) -> Mapping[str, Secret | SecretError]:
        """Look many keys up, in as few requests as the store allows.

        Args:
            refs: The place of each key id, as in keys.json (`env://NAME`); None: where this
                store keeps a key of that id by default.

        Returns:
            For each key id its secret, or the error that says which key, which place and why.
        """
        ...
