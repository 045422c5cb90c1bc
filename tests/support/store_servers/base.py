"""The interface of a secret store that runs for real on this machine, for the contract suite."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

StoreServer = Any
"""A server with secrets, and our store in front of it; one for each kind of store.

It has `scheme`, `open()`, `put(key_id, value)`, `put_fields(name, fields)`, which returns each
field's reference as in keys.json, `remove(key_id)`, `denied()`, `down()`, `hanging()` and
`requests()`, of which only the difference of two counts means anything.
"""


class OneSecretServer(ABC):
    """Base of servers that hold all keys as the fields of one JSON secret."""

    default: str
    """The name of that secret."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    @abstractmethod
    def write(self, name: str, text: str) -> None:
        """Write a secret."""

    def put(self, key_id: str, value: str | bytes) -> None:
        """Write the field of a key.

        Raises:
            TypeError: For bytes: JSON has none. A secret of its own may hold them.
        """
        if isinstance(value, bytes):
            raise TypeError("a field of a JSON object holds no bytes")
        self.put_many({key_id: value})

    def put_many(self, values: Mapping[str, str]) -> None:
        self._keys.update(values)
        self.write(self.default, json.dumps(self._keys))

    def remove(self, key_id: str) -> None:
        self._keys.pop(key_id, None)
        self.write(self.default, json.dumps(self._keys))
