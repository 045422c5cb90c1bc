"""OpenBao as a store server: one KV v2 secret for all keys, and logins by AppRole."""

from collections.abc import Mapping
from pathlib import Path

from keyrot_middleware.secrets import SecretStore
from keyrot_middleware.secrets.remote import open_vault
from support.openbao import policy, shared
from support.servers import closed_port
from support.unreachable import SilentServer

VALUE = "AIza" + "FAKE" + "v" * 31
"""Of the key `a`, where tests share a server."""


class VaultServer:
    scheme = "vault"

    def __init__(self, directory: Path | None = None) -> None:
        self.bao = shared()
        self.mount = self.bao.mount(2)
        self._path = f"{self.mount}/data/keyrot"
        reading = self.bao.allow(policy(self._path, f"{self.mount}/data/team/*"))
        self.variables = self._environ(self.bao.role(reading))
        self._stranger = self._environ(self.bao.role(self.bao.allow(policy("secret/data/other"))))
        self.bao.write(self._path, {})
        self._ends: list[SilentServer] = []

    def open(self) -> SecretStore:
        return open_vault(self.variables)

    def put(self, key_id: str, value: str | bytes) -> None:
        """Write a field; KV holds JSON, so each byte goes in as one character."""
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        self.bao.patch(self._path, {key_id: text})

    def put_many(self, values: Mapping[str, str]) -> None:
        items = list(values.items())
        for start in range(0, len(items), 250):
            self.bao.patch(self._path, dict(items[start : start + 250]))

    def put_fields(self, name: str, fields: dict[str, str]) -> dict[str, str]:
        self.bao.write(f"{self.mount}/data/team/{name}", fields)
        return {field: f"vault://{self.mount}/team/{name}#{field}" for field in fields}

    def remove(self, key_id: str) -> None:
        self.bao.patch(self._path, {key_id: None})

    def denied(self) -> SecretStore:
        return open_vault(self._stranger)

    def down(self) -> SecretStore:
        return open_vault({**self.variables, "VAULT_ADDR": f"http://127.0.0.1:{closed_port()}"})

    def hanging(self) -> SecretStore:
        """Open a store at a port that never answers."""
        self._ends.append(SilentServer())
        return open_vault({**self.variables, "VAULT_ADDR": self._ends[-1].url})

    def requests(self) -> int:
        return len(self.bao.requested_paths())

    def close(self) -> None:
        self.bao.admin("DELETE", f"sys/mounts/{self.mount}")
        for end in self._ends:
            end.close()

    def _environ(self, role: dict[str, str]) -> dict[str, str]:
        return {**role, "KEYROT_VAULT_PLACE": f"{self.mount}/keyrot"}
