"""A Secret Manager of our own, with our store in front and google-auth's real login."""

import json
from pathlib import Path
from typing import Any

from google.oauth2 import service_account

from keyrot_middleware.secrets.remote import GcpStore
from support.fake_secret_manager import PROJECT, READER, UNPRIVILEGED, SecretManager
from support.servers import closed_port
from support.store_servers.base import OneSecretServer
from support.unreachable import SilentServer


class GcpServer(OneSecretServer):
    """One JSON secret `keyrot` holds all keys that have no secret of their own."""

    default = "keyrot"
    scheme = "gcp"

    def __init__(self, directory: Path) -> None:
        """Start the service; credentials files are written into *directory*."""
        super().__init__()
        self.manager = SecretManager(directory)
        self._ends: list[SilentServer] = []

    def open(self, account: str = READER) -> GcpStore:
        return self._at(self.manager.url, account)

    def _at(self, url: str, account: str = READER) -> GcpStore:
        def login() -> tuple[Any, str]:
            file = str(self.manager.credentials(account))
            scopes = ["https://www.googleapis.com/auth/cloud-platform"]
            made: Any = service_account.Credentials.from_service_account_file
            return made(file, scopes=scopes), PROJECT

        return GcpStore(url, f"{PROJECT}/{self.default}", login)

    def write(self, name: str, text: str) -> None:
        self.manager.write(name, text)

    def put_fields(self, name: str, fields: dict[str, str]) -> dict[str, str]:
        name = name.replace("/", "-")
        self.write(name, json.dumps(fields))
        return {field: f"gcp://{PROJECT}/{name}#{field}" for field in fields}

    def denied(self) -> GcpStore:
        return self.open(UNPRIVILEGED)

    def down(self) -> GcpStore:
        return self._at(f"http://127.0.0.1:{closed_port()}")

    def hanging(self) -> GcpStore:
        self._ends.append(SilentServer())
        return self._at(f"http://127.0.0.1:{self._ends[-1].port}")

    def requests(self) -> int:
        return len(self.manager.server.requests)

    def close(self) -> None:
        self.manager.server.close()
        for end in self._ends:
            end.close()
