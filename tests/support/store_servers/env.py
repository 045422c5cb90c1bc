"""The env store's server: the environment of this process."""

import os
from pathlib import Path

from keyrot_middleware.secrets import SecretStore
from keyrot_middleware.secrets.stores import open_store


class EnvServer:
    scheme = "env"
    lacks = frozenset({"denied", "down", "hanging", "requests"})

    def __init__(self, folder: Path) -> None:
        self._env_file = folder / ".env"
        self._names: set[str] = set()

    def open(self) -> SecretStore:
        return open_store("env", env_file=self._env_file)

    def put(self, key_id: str, value: str | bytes) -> None:
        self._set(f"GEMINI_KEY_{key_id}", value)

    def put_fields(self, name: str, fields: dict[str, str]) -> dict[str, str]:
        for field, value in fields.items():
            self._set(f"{name}_{field}", value)
        return {field: f"env://{name}_{field}" for field in fields}

    def remove(self, key_id: str) -> None:
        del os.environ[f"GEMINI_KEY_{key_id}"]

    def close(self) -> None:
        for name in self._names:
            os.environ.pop(name, None)

    def _set(self, name: str, value: str | bytes) -> None:
        self._names.add(name)
        if isinstance(value, bytes):
            value = os.fsdecode(value.replace(b"\0", b""))
        os.environ[name] = value
