"""A Key Vault and the Entra tenant that it sends its clients to, on one HTTPS port.

Answers in the forms of the Key Vault REST API 7.x, of OAuth 2.0 and OpenID discovery, as far as
SecretClient and azure-identity use them.
"""

import json
from typing import Any

from support.certificate_authority import CertificateAuthority
from support.cloud_emulator import CloudEmulator
from support.json_server import Request, Response

TENANT = "11111111-1111-4111-8111-111111111111"
READER = "22222222-2222-4222-8222-222222222222"
UNPRIVILEGED = "33333333-3333-4333-8333-333333333333"
SECRET = "FAKE-client-secret"


class KeyVault(CloudEmulator):
    """Secrets by name and version; the newest is read where no version is requested."""

    def __init__(self, authority: CertificateAuthority) -> None:
        super().__init__(authority.context())
        self._secrets: dict[str, dict[str, str]] = {}
        self.expires: dict[str, int] = {}
        """When a secret expires, by its name; epoch seconds."""
        self.host = f"localhost:{self.server.port}"
        self.ca = str(authority.file)

    def write(self, name: str, value: str) -> str:
        version = f"{next(self.numbers):032x}"
        self._secrets.setdefault(name.lower(), {})[version] = value
        return version

    def remove(self, name: str) -> None:
        self._secrets.pop(name.lower(), None)

    def empty(self) -> None:
        self._secrets.clear()
        self.odd = lambda _: None

    def answer(self, request: Request) -> Response:
        if request.path.endswith("/.well-known/openid-configuration"):
            return self._discovery()
        if request.path.endswith("/oauth2/v2.0/token"):
            return self._token(request)
        return self._secret(request)

    def _discovery(self) -> Response:
        tenant = f"https://{self.host}/{TENANT}"
        return Response(
            200,
            {
                "issuer": f"{tenant}/v2.0",
                "authorization_endpoint": f"{tenant}/oauth2/v2.0/authorize",
                "token_endpoint": f"{tenant}/oauth2/v2.0/token",
            },
        )

    def _token(self, request: Request) -> Response:
        if request.form.get("client_secret") != SECRET:
            message = "AADSTS7000215: Invalid client secret provided."
            return Response(401, {"error": "invalid_client", "error_description": message})
        token = self.issue_token(request.form["client_id"])
        return Response(200, {"token_type": "Bearer", "expires_in": 3600, "access_token": token})

    def _secret(self, request: Request) -> Response:
        client = self.identity_of(request)
        if client is None:
            return self.challenge()
        if client != READER:
            return forbidden("ForbiddenByRbac", client)
        _, _, name, version, *_ = [*request.path.split("/"), ""]
        if request.method == "PUT":
            version = self.write(name, json.loads(request.body)["value"])
        versions = self._secrets.get(name.lower(), {})
        if version == "versions":
            return Response(200, {"value": [self._described(name, one) for one in versions]})
        version = version or next(reversed(versions), "")
        if version not in versions:
            return failure(404, "SecretNotFound", f"A secret with {name} was not found.")
        return Response(200, {"value": versions[version]} | self._described(name, version))

    def _described(self, name: str, version: str) -> dict[str, Any]:
        where = f"https://{self.host}/secrets/{name}/{version}"
        ends = {"exp": self.expires[name]} if name in self.expires else {}
        return {"id": where, "attributes": {"enabled": True, "created": int(version, 16), **ends}}

    def challenge(self) -> Response:
        """Return the 401 that names where to log in; its resource is the public cloud's."""
        where = f'authorization="https://{self.host}/{TENANT}", resource="https://vault.azure.net"'
        denied = failure(401, "Unauthorized", "AKV10000: Request is missing a token.")
        return Response(401, denied.body, {"WWW-Authenticate": f"Bearer {where}"})


def failure(status: int, code: str, message: str, inner: str | None = None) -> Response:
    error: dict[str, Any] = {"code": code, "message": message}
    if inner:
        error["innererror"] = {"code": inner}
    return Response(status, {"error": error})


def forbidden(inner: str, client: str) -> Response:
    return failure(
        403,
        "Forbidden",
        "Caller is not authorized to perform action on resource.\r\n"
        f"Caller: appid={client};oid={client[::-1]};iss=https://sts.windows.net/{TENANT}/\r\n"
        "Action: 'Microsoft.KeyVault/vaults/secrets/getSecret/action'",
        inner,
    )
