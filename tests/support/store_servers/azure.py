"""A Key Vault of our own over HTTPS, with our store in front and azure-identity's real login."""

import json
from pathlib import Path
from typing import Any

from azure.identity import ClientSecretCredential

from keyrot_middleware.secrets.remote import AzureStore
from support.certificate_authority import CertificateAuthority
from support.fake_key_vault import READER, SECRET, TENANT, UNPRIVILEGED, KeyVault
from support.servers import closed_port
from support.unreachable import SilentServer


class AzureServer:
    """Each key is a secret of its own, named like it with `-` for `_`."""

    scheme = "azure"

    def __init__(self, directory: Path) -> None:
        self.vault = KeyVault(CertificateAuthority(directory))
        self._ends: list[SilentServer] = []

    def open(self, client_id: str = READER, secret: str = SECRET) -> AzureStore:
        return self._at(self.vault.host, client_id, secret)

    def _at(self, host: str, client_id: str = READER, secret: str = SECRET) -> AzureStore:
        def credential() -> Any:
            return ClientSecretCredential(
                TENANT,
                client_id,
                secret,
                authority=f"https://{self.vault.host}",
                disable_instance_discovery=True,
                connection_verify=self.vault.ca,
                retry_total=0,
            )

        # The certificate and the resource of a vault on this machine are not Azure's.
        here = {"connection_verify": self.vault.ca, "verify_challenge_resource": False}
        return AzureStore(host, credential, **here)

    def put(self, key_id: str, value: str | bytes) -> None:
        """Write a key; Key Vault has texts only, so bytes are decoded carelessly."""
        text = value if isinstance(value, str) else value.decode(errors="replace")
        self.vault.write(key_id.replace("_", "-"), text)

    def put_fields(self, name: str, fields: dict[str, str]) -> dict[str, str]:
        name = name.replace("_", "-").replace("/", "-")
        self.vault.write(name, json.dumps(fields))
        return {field: f"azure://{self.vault.host}/{name}#{field}" for field in fields}

    def remove(self, key_id: str) -> None:
        self.vault.remove(key_id.replace("_", "-"))

    def denied(self) -> AzureStore:
        return self.open(UNPRIVILEGED)

    def down(self) -> AzureStore:
        return self._at(f"localhost:{closed_port()}")

    def hanging(self) -> AzureStore:
        self._ends.append(SilentServer())
        return self._at(f"localhost:{self._ends[-1].port}")

    def requests(self) -> int:
        return len(self.vault.server.requests)

    def close(self) -> None:
        self.vault.server.close()
        for end in self._ends:
            end.close()
