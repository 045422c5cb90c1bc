"""Google's Secret Manager and the token endpoint of a service account, on one HTTP port.

Answers in the forms of the Secret Manager REST API v1 and of google.rpc.Status.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from support.cloud_emulator import CloudEmulator
from support.json_server import Request, Response

PROJECT = "keyrot-tests"
READER = f"reader@{PROJECT}.iam.gserviceaccount.com"
UNPRIVILEGED = f"nobody@{PROJECT}.iam.gserviceaccount.com"
_AUDIENCE = "https://oauth2.googleapis.com/token"
"""google-auth requests this one wherever the token endpoint is."""
_PATH = re.compile(
    r"/v1/projects/([^/]+)/secrets/([^/:]+)(?:/versions/([^/:]+):access|:addVersion)?"
)


class SecretManager(CloudEmulator):
    """Secrets by project, name and version; `latest` is the newest."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._secrets: dict[tuple[str, str], list[bytes]] = {}
        self.described: dict[str, dict[str, object]] = {}
        """What more is said of a secret, by its name."""
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.url = f"http://127.0.0.1:{self.server.port}"

    def credentials(self, account: str) -> Path:
        return credentials_file(self._directory, account, f"{self.url}/token", self._key)

    def write(self, name: str, value: str | bytes, project: str = PROJECT) -> str:
        data = value.encode() if isinstance(value, str) else value
        versions = self._secrets.setdefault((project, name), [])
        versions.append(data)
        return str(len(versions))

    def empty(self) -> None:
        self._secrets.clear()
        self.odd = lambda _: None

    def answer(self, request: Request) -> Response:
        return self._token(request) if request.path == "/token" else self._access(request)

    def _token(self, request: Request) -> Response:
        try:
            claims = jwt.decode(
                request.form["assertion"],
                self._key.public_key(),
                algorithms=["RS256"],
                audience=_AUDIENCE,
            )
        except jwt.InvalidTokenError:
            return Response(400, {"error": "invalid_grant", "error_description": "Invalid JWT"})
        token = self.issue_token(str(claims["iss"]))
        return Response(200, {"access_token": token, "expires_in": 3600, "token_type": "Bearer"})

    def _access(self, request: Request) -> Response:
        account = self.identity_of(request)
        if account is None:
            return status(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        match = _PATH.fullmatch(request.path)
        if match is None:
            return status(404, "NOT_FOUND", "The requested URL was not found.")
        project, name, version = match.groups()
        where = f"projects/{project}/secrets/{name}/versions/{version}"
        if account != READER:
            permission = "Permission 'secretmanager.versions.access' denied"
            message = f"{permission} for resource '{where}' (or it may not exist)."
            return status(403, "PERMISSION_DENIED", message, "IAM_PERMISSION_DENIED")
        if request.method == "GET" and version is None:
            return Response(200, {"name": where.partition("/versions/")[0], **self.described[name]})
        if version is None:
            data = base64.b64decode(json.loads(request.body)["payload"]["data"])
            number = self.write(name, data, project)
            return Response(200, {"name": f"projects/1/secrets/{name}/versions/{number}"})
        versions = self._secrets.get((project, name), [])
        number = len(versions) if version == "latest" else int(version)
        if not 0 < number <= len(versions):
            message = f"Secret [projects/1/secrets/{name}] not found or has no versions."
            return status(404, "NOT_FOUND", message)
        return payload(f"{where.rpartition('/')[0]}/{number}", versions[number - 1])


def credentials_file(
    directory: Path, account: str, token_uri: str, key: rsa.RSAPrivateKey | None = None
) -> Path:
    """Write the credentials file of a service account, with a private key of its own or *key*."""
    key = key or rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    info = {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "FAKE",
        "private_key": key.private_bytes(serialization.Encoding.PEM, form, plain).decode(),
        "client_email": account,
        "token_uri": token_uri,
    }
    file = directory / f"{account.partition('@')[0]}.json"
    file.write_text(json.dumps(info))
    return file


def payload(name: str, data: bytes) -> Response:
    encoded = base64.b64encode(data).decode()
    return Response(200, {"name": name, "payload": {"data": encoded}})


def status(code: int, name: str, message: str, reason: str | None = None) -> Response:
    error: dict[str, Any] = {"code": code, "message": message, "status": name}
    if reason:
        kind = "type.googleapis.com/google.rpc.ErrorInfo"
        error["details"] = [{"@type": kind, "reason": reason, "domain": "googleapis.com"}]
    return Response(code, {"error": error})
