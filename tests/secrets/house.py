"""What the contract suite wants of a secret store that runs for real on this machine."""

from __future__ import annotations

from typing import Protocol

from keyrot_middleware.secrets.base import SecretStore

__all__ = ["House"]


class House(Protocol):
    """A server with secrets, and our store in front of it; one for each kind of store."""

    scheme: str

    def open(self) -> SecretStore:
        """Open a new store, with an identity that may read."""
        ...

    def put(self, key_id: str, value: str | bytes) -> None:
        """Write a key where the store looks for it unless told otherwise."""
        ...

    def put_fields(self, name: str, fields: dict[str, str]) -> dict[str, str]:
        """Write one secret of several fields; give each field's place, as in keys.json."""
        ...

    def remove(self, key_id: str) -> None:
        """Take the key away again."""
        ...

    def denied(self) -> SecretStore:
        """Open a store whose identity may read nothing."""
        ...

    def down(self) -> SecretStore:
        """Open a store at an address where nobody listens."""
        ...

    def hanging(self) -> SecretStore:
        """Open a store at an address that accepts connections and never answers."""
        ...

    def requests(self) -> int:
        """Tell how many requests the server has had; only the difference of two means anything."""
        ...
