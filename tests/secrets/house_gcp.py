"""A Secret Manager of our own, with our store in front and google-auth's real login."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dead_ends import Silent, closed_port
from secret_manager import NOBODY, PROJECT, READER, SecretManager

from keyrot_middleware.secrets.gcp import DEFAULT_SECRET, ENDPOINT_VARIABLE, GcpStore, open_gcp

__all__ = ["GcpHouse"]


class GcpHouse:
    """One JSON secret `keyrot` holds all keys that have no place of their own."""

    scheme = "gcp"

    def __init__(self, directory: Path) -> None:
        """Start the service; credentials files are written into *directory*."""
        self.manager = SecretManager(directory)
        self._keys: dict[str, str] = {}
        self._ends: list[Silent] = []

    def open(self, account: str = READER) -> GcpStore:
        """Open a store, with an identity that may read."""
        return self._at(self.manager.url, account)

    def _at(self, url: str, account: str = READER) -> GcpStore:
        return open_gcp(
            {
                "GOOGLE_CLOUD_PROJECT": PROJECT,
                "GOOGLE_APPLICATION_CREDENTIALS": str(self.manager.credentials(account)),
                ENDPOINT_VARIABLE: url,
            }
        )

    def put(self, key_id: str, value: str | bytes) -> None:
        """Write the field of a key.

        Raises:
            TypeError: For bytes: JSON has none. A secret of its own may hold them.
        """
        if isinstance(value, bytes):
            raise TypeError("a field of a JSON object holds no bytes")
        self.put_many({key_id: value})

    def put_many(self, values: Mapping[str, str]) -> None:
        """Write the fields of several keys at once."""
        self._keys.update(values)
        self.manager.write(DEFAULT_SECRET, json.dumps(self._keys))

    def put_fields(self, name: str, fields: dict[str, str]) -> dict[str, str]:
        """Write a JSON secret; give each field's place."""
        name = name.replace("/", "-")
        self.manager.write(name, json.dumps(fields))
        return {field: f"gcp://{PROJECT}/{name}#{field}" for field in fields}

    def remove(self, key_id: str) -> None:
        """Take a key's field away."""
        self._keys.pop(key_id, None)
        self.manager.write(DEFAULT_SECRET, json.dumps(self._keys))

    def denied(self) -> GcpStore:
        """Open a store whose identity may read nothing."""
        return self.open(NOBODY)

    def down(self) -> GcpStore:
        """Open a store where nobody listens."""
        return self._at(f"http://127.0.0.1:{closed_port()}")

    def hanging(self) -> GcpStore:
        """Open a store where nobody answers."""
        self._ends.append(Silent())
        return self._at(f"http://127.0.0.1:{self._ends[-1].port}")

    def requests(self) -> int:
        """Count what the server was asked, logins too."""
        return len(self.manager.server.asked)

    def close(self) -> None:
        """Stop the servers."""
        self.manager.server.close()
        for end in self._ends:
            end.close()
