"""Recorded dialogues with the three clouds: the requests, the expected results, the format.

They are recorded from the emulators (tools/record_cloud_cassettes.py) under the names of the real
services, and replayed by stores that call those. A cassette keeps only the parts of a request that
it is matched by and of an answer that a store reads; no credential, no address of the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import vcr
from azure.identity import ClientSecretCredential

from keyrot_middleware.secrets import SecretStore
from keyrot_middleware.secrets import cloud as reading
from keyrot_middleware.secrets.aws import open_aws
from keyrot_middleware.secrets.azure import AzureLogin, AzureStore
from keyrot_middleware.secrets.gcp import open_gcp
from support.fake_key_vault import READER, SECRET, TENANT
from support.fake_secret_manager import PROJECT
from support.moto_server import REGION

__all__ = ["FOLDER", "SCENARIOS", "Scenario", "one_by_one", "recorder", "store_of"]

FOLDER = Path(__file__).resolve().parents[2] / "cassettes" / "secrets"
VAULT = "keyrot-tests.vault.azure.net"
LOGIN = "login.microsoftonline.com"

_HERE = re.compile(r"(?:localhost|127\.0\.0\.1):\d+")
_KEPT = ("content-type", "www-authenticate")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One look-up of a store."""

    refs: Mapping[str, str | None]
    expected: Mapping[str, str]
    """The value of each key id, or a part of the error."""
    secrets: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    """What the service holds: JSON objects, or texts."""
    identity: str = "reader"
    """`denied` may read nothing; `expired` presents an expired token once."""

    @property
    def stored(self) -> dict[str, str]:
        """The secrets as texts."""
        return {n: v if isinstance(v, str) else json.dumps(v) for n, v in self.secrets.items()}


_POOL = {"flash_01": "FAKE-value-of-flash", "pro_01": "FAKE-value-of-pro"}
_ALL = {"flash_01": None, "pro_01": None}
_GCP = f"gcp://{PROJECT}"
_DASHED = {"flash-01": _POOL["flash_01"], "pro-01": _POOL["pro_01"]}

SCENARIOS: Mapping[str, Scenario] = {
    "aws/found": Scenario(_ALL, _POOL, {"keyrot": _POOL}),
    "aws/batch": Scenario(
        {"a": "aws://team/a", "b": "aws://team/b#x", "c": "aws://team/none"},
        {"a": "FAKE-value-of-a", "b": "FAKE-value-of-b", "c": "there is no such secret"},
        {"team/a": "FAKE-value-of-a", "team/b": {"x": "FAKE-value-of-b"}},
    ),
    "aws/denied": Scenario(_ALL, dict.fromkeys(_ALL, "assumed-role/nobody"), identity="denied"),
    "aws/expired": Scenario(_ALL, _POOL, {"keyrot": _POOL}, identity="expired"),
    "azure/found": Scenario(
        {**_ALL, "lite_01": None}, {**_POOL, "lite_01": "there is no such secret"}, _DASHED
    ),
    "azure/denied": Scenario(_ALL, dict.fromkeys(_ALL, "ForbiddenByRbac"), _DASHED, "denied"),
    "azure/expired": Scenario(_ALL, _POOL, _DASHED, "expired"),
    "gcp/found": Scenario(_ALL, _POOL, {"keyrot": _POOL}),
    "gcp/several": Scenario(
        {"a": f"{_GCP}/a", "b": f"{_GCP}/b#x", "c": f"{_GCP}/none"},
        {"a": "FAKE-value-of-a", "b": "FAKE-value-of-b", "c": "there is no such secret"},
        {"a": "FAKE-value-of-a", "b": {"x": "FAKE-value-of-b"}},
    ),
    "gcp/denied": Scenario(_ALL, dict.fromkeys(_ALL, "access denied to"), identity="denied"),
    "gcp/expired": Scenario(_ALL, _POOL, {"keyrot": _POOL}, "expired"),
}


def store_of(scheme: str, directory: Path, account: Path) -> SecretStore:
    """Open a store of the real service; only a cassette can answer it.

    Args:
        scheme: `aws`, `azure` or `gcp`.
        directory: Holds no settings of boto3.
        account: A credentials file of Google's.
    """
    if scheme == "aws":
        none = str(directory / "none")
        mine = {"AWS_ACCESS_KEY_ID": "FAKE", "AWS_SECRET_ACCESS_KEY": "FAKE", "AWS_REGION": REGION}
        return open_aws({**mine, "AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none})
    if scheme == "azure":
        whom = partial(ClientSecretCredential, TENANT, READER, SECRET)
        credential = partial(whom, disable_instance_discovery=True, retry_total=0)
        return AzureStore(AzureLogin({}, credential=credential), VAULT)
    found = {"GOOGLE_APPLICATION_CREDENTIALS": str(account), "GOOGLE_CLOUD_PROJECT": PROJECT}
    return open_gcp(found)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Read no two secrets at once.

    vcrpy removes its patches for a moment whenever a connection is made, so that another
    thread's new connection would go out for real.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "MAX_CONCURRENCY", 1)
        patch.setattr(reading, "RETRY_PAUSE_S", 0.01)
        yield


def recorder(record_mode: str = "none") -> Any:
    """Make a `vcr.VCR` that keeps what may be kept, under the names of the real services."""
    tape = vcr.VCR(
        record_mode=record_mode,
        match_on=["method", "scheme", "host", "path", "operation"],
        before_record_request=_scrub,
        before_record_response=_scrub_answer,
        decode_compressed_response=True,
    )
    tape.register_matcher("operation", _same_operation)
    return tape


def _scrub(request: Any) -> Any:
    """Give a request its official address; remove whatever may hold a credential."""
    parts = urlsplit(request.uri)
    if _HERE.fullmatch(parts.netloc):
        request.uri = f"https://{_official(request, parts.path)}{parts.path}"
    target = request.headers.get("X-Amz-Target")
    operation = target.decode() if isinstance(target, bytes) else target
    request.headers = {"X-Amz-Target": operation} if operation else {}
    request.body = request.body if operation else None
    return request


def _official(request: Any, path: str) -> str:
    if "X-Amz-Target" in request.headers:
        return f"secretsmanager.{REGION}.amazonaws.com"
    if path.startswith("/v1/projects/"):
        return "secretmanager.googleapis.com"
    if path == "/token":
        return "oauth2.googleapis.com"
    return VAULT if path.startswith("/secrets/") else LOGIN


def _scrub_answer(answer: dict[str, Any]) -> dict[str, Any]:
    """Remove headers that change or identify the server; name hosts as in requests."""
    headers = {
        name: [_named(value) for value in values]
        for name, values in answer["headers"].items()
        if name.lower() in _KEPT
    }
    body = _named(answer["body"]["string"].decode()).encode()
    return {**answer, "headers": headers, "body": {"string": body}}


def _named(text: str) -> str:
    return _HERE.sub(VAULT, re.sub(f"{_HERE.pattern}(?=/{TENANT})", LOGIN, text))


def _same_operation(one: Any, other: Any) -> None:
    """Distinguish the operations of AWS, which all go to one path."""
    assert one.headers.get("X-Amz-Target") == other.headers.get("X-Amz-Target")
    if "X-Amz-Target" in one.headers:
        assert json.loads(one.body) == json.loads(other.body)
