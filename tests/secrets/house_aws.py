"""Secrets Manager as moto plays it, with our store in front."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dead_ends import Silent, closed_port
from moto_server import Refusing, environ_for, moto_server

from keyrot_middleware.secrets.aws import DEFAULT_SECRET, AwsStore, open_aws

__all__ = ["NOBODY", "AwsHouse", "deny"]

NOBODY = "arn:aws:sts::123456789012:assumed-role/nobody/session"


def deny(target: str, sent: dict[str, Any]) -> tuple[int, Any]:
    """Refuse a request in the words of AWS."""
    return 400, {
        "__type": "AccessDeniedException",
        "Message": f"User: {NOBODY} is not authorized to perform: secretsmanager:{target} on "
        f"resource: {sent.get('SecretId', '*')} because no identity-based policy allows the "
        f"secretsmanager:{target} action",
    }


class AwsHouse:
    """One JSON secret `keyrot` holds all keys that have no place of their own."""

    scheme = "aws"

    def __init__(self, directory: Path) -> None:
        """Begin without any secret; nothing is written into *directory*."""
        self.server = moto_server()
        self.server.empty()
        self._keys: dict[str, str] = {}
        self._ends: list[Silent | Refusing] = []

    def open(self, **settings: str) -> AwsStore:
        """Open a store, with an identity that may read."""
        return open_aws(environ_for(self.server.port, **settings))

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
        self.server.write(DEFAULT_SECRET, json.dumps(self._keys))

    def put_fields(self, name: str, fields: dict[str, str]) -> dict[str, str]:
        """Write a JSON secret; give each field's place."""
        self.server.write(name, json.dumps(fields))
        return {field: f"aws://{name}#{field}" for field in fields}

    def remove(self, key_id: str) -> None:
        """Take a key's field away."""
        self._keys.pop(key_id, None)
        self.server.write(DEFAULT_SECRET, json.dumps(self._keys))

    def denied(self) -> AwsStore:
        """Open a store whose identity may read nothing; moto refuses in another format."""
        refusing = Refusing(deny)
        self._ends.append(refusing)
        return open_aws(environ_for(refusing.port))

    def down(self) -> AwsStore:
        """Open a store where nobody listens."""
        return open_aws(environ_for(closed_port()))

    def hanging(self) -> AwsStore:
        """Open a store where nobody answers."""
        silent = Silent()
        self._ends.append(silent)
        return open_aws(environ_for(silent.port))

    def requests(self) -> int:
        """Count what the server was asked."""
        return len(self.server.targets)

    def close(self) -> None:
        """Stop what was started beside the shared server."""
        for end in self._ends:
            end.close()
