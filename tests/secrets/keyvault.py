"""A Key Vault and the Entra tenant that it sends its clients to, on one HTTPS port.

Answers in the forms of the Key Vault REST API 7.x, of OAuth 2.0 and OpenID discovery, as far as
SecretClient and azure-identity use them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

from authority import Authority
from json_server import Asked, JsonServer, Told

__all__ = ["NOBODY", "READER", "SECRET", "TENANT", "KeyVault", "failure", "forbidden"]

TENANT = "11111111-1111-4111-8111-111111111111"
READER = "22222222-2222-4222-8222-222222222222"
NOBODY = "33333333-3333-4333-8333-333333333333"
SECRET = "FAKE-client-secret"


class KeyVault:
    """Secrets by name and version; the newest is read where no version is asked for."""

    def __init__(self, authority: Authority) -> None:
        self._secrets: dict[str, dict[str, str]] = {}
        self._tokens: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.odd: Callable[[Asked], Told | None] = lambda _: None
        """May answer in place of the vault."""
        self.server = JsonServer(self._answer, authority.context())
        self.host = f"localhost:{self.server.port}"
        self.ca = str(authority.file)

    def write(self, name: str, value: str) -> str:
        """Add a version of a secret, and return its id."""
        version = f"{next(self._numbers):032x}"
        self._secrets.setdefault(name.lower(), {})[version] = value
        return version

    def remove(self, name: str) -> None:
        """Forget a secret."""
        self._secrets.pop(name.lower(), None)

    def empty(self) -> None:
        """Forget all secrets, and answer as usual."""
        self._secrets.clear()
        self.odd = lambda _: None

    def revoke(self) -> None:
        """Take no token any longer that was given out so far."""
        self._tokens.clear()

    @property
    def tokens(self) -> list[str]:
        """The tokens that are taken."""
        return list(self._tokens)

    def count(self, path: str) -> int:
        """Tell how many requests had *path* in theirs."""
        return sum(path in asked.path for asked in self.server.asked)

    def _answer(self, asked: Asked) -> Told:
        odd = self.odd(asked)
        if odd is not None:
            return odd
        if asked.path.endswith("/.well-known/openid-configuration"):
            return self._discovery()
        if asked.path.endswith("/oauth2/v2.0/token"):
            return self._token(asked)
        return self._secret(asked)

    def _discovery(self) -> Told:
        tenant = f"https://{self.host}/{TENANT}"
        return Told(
            200,
            {
                "issuer": f"{tenant}/v2.0",
                "authorization_endpoint": f"{tenant}/oauth2/v2.0/authorize",
                "token_endpoint": f"{tenant}/oauth2/v2.0/token",
            },
        )

    def _token(self, asked: Asked) -> Told:
        if asked.form.get("client_secret") != SECRET:
            said = "AADSTS7000215: Invalid client secret provided."
            return Told(401, {"error": "invalid_client", "error_description": said})
        token = f"FAKE-token-{next(self._numbers)}"
        self._tokens[token] = asked.form["client_id"]
        return Told(200, {"token_type": "Bearer", "expires_in": 3600, "access_token": token})

    def _secret(self, asked: Asked) -> Told:
        token = asked.headers.get("authorization", "").removeprefix("Bearer ")
        client = self._tokens.get(token)
        if client is None:
            return self.challenge()
        if client != READER:
            return forbidden("ForbiddenByRbac", client)
        _, _, name, version, *_ = [*asked.path.split("/"), ""]
        versions = self._secrets.get(name.lower(), {})
        version = version or next(reversed(versions), "")
        if version not in versions:
            return failure(404, "SecretNotFound", f"A secret with {name} was not found.")
        where = f"https://{self.host}/secrets/{name}/{version}"
        return Told(200, {"value": versions[version], "id": where, "attributes": {"enabled": True}})

    def challenge(self) -> Told:
        """Say where to log in, for Key Vault's own resource as the public cloud does."""
        where = f'authorization="https://{self.host}/{TENANT}", resource="https://vault.azure.net"'
        told = failure(401, "Unauthorized", "AKV10000: Request is missing a token.")
        return Told(401, told.body, {"WWW-Authenticate": f"Bearer {where}"})


def failure(status: int, code: str, message: str, inner: str | None = None) -> Told:
    """Answer with an error in Key Vault's form."""
    error: dict[str, Any] = {"code": code, "message": message}
    if inner:
        error["innererror"] = {"code": inner}
    return Told(status, {"error": error})


def forbidden(inner: str, client: str) -> Told:
    """Deny a client."""
    return failure(
        403,
        "Forbidden",
        "Caller is not authorized to perform action on resource.\r\n"
        f"Caller: appid={client};oid={client[::-1]};iss=https://sts.windows.net/{TENANT}/\r\n"
        "Action: 'Microsoft.KeyVault/vaults/secrets/getSecret/action'",
        inner,
    )
