"""Secrets, and the interface of the stores that keep them."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Protocol

from ..errors import SecretError
from ..providers.keys import StaysHere

MASKED_FROM = 8
"""Characters; a shorter value is not masked: it is no key, and texts would become unreadable."""
_MASK = "[secret]"


class PlainText(str):
    """The text of a secret, for the header of a request or the argument of a library.

    Its repr is masked: error reporters show the repr of local variables, their own as well as those
    of libraries. Its str is the value.
    """

    __slots__ = ()

    def __getitem__(self, index: Any) -> str:
        """Return a part of it, which is masked too: rich shows the beginning of a long text."""
        return PlainText(super().__getitem__(index))

    def __repr__(self) -> str:
        return "'[redacted]'"


class Secret(StaysHere):
    """A value that only `reveal()` shows. Whatever carries a key carries it as one of these.

    It is masked in repr, str and format, has no items and no `vars()`, and cannot be pickled.
    Whitespace around it is removed.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = PlainText(value.strip())

    def reveal(self) -> PlainText:
        """Return the value."""
        return self._value

    def hide_in(self, text: str, mask: str = "[redacted]") -> str:
        """Replace the value wherever it stands in a text."""
        return text.replace(self._value, mask) if self._value else text

    @property
    def fingerprint(self) -> str:
        """8 hexadecimal digits that are the same for the same value everywhere.

        There is no salt, so that fingerprints can be compared between hosts. 32 bits of a digest
        reveal nothing of a value that cannot be guessed.
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


class SecretStore(Protocol):
    """A place that keeps the values of keys.

    Stores are synchronous: the cache holds their values and calls them in threads of its own, at
    most two at once. A store may also have the attributes (False by default)

    - `instant`: a look-up needs no network, so it runs in the calling thread;
    - `fixed`: values never change, so they are not refreshed;

    and the methods

    - `place(key_id)` returns where a key is kept by default, for messages;
    - `replace(key_id, ref, old, new)` stores a new value if *old* is still the value, and
      `previous(key_id, ref, current)` returns the value before, for `keyrot rotate`;
    - `ends_at(key_id, ref)` returns when a value ends or is to be replaced, an aware datetime, for
      `keyrot rotate`; None: that is not known.
    """

    @property
    def scheme(self) -> str:
        """The scheme of its places, such as `env`."""
        ...

    def resolve(self, refs: Mapping[str, str | None]) -> Mapping[str, Secret | SecretError]:
        """Look keys up, in as few requests as the store allows.

        Args:
            refs: The place of each key id, as in keys.json (`env://NAME`); None: the place where
                this store keeps a key of that id by default.

        Returns:
            For each key id its secret, or an error that names the key, the place and the reason.
        """
        ...
