"""An empty working directory, an environment without keys, and a Vault with one key."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.openbao import OpenBao, policy, shared
from support.store_servers.vault import VALUE, VaultServer

_OF_OTHERS = (
    *("GEMINI_", "GOOGLE_", "KEYROT_", "SECRET_STORE", "ENABLE_KEY", "REDIS_URL"),
    *("AWS_", "AZURE_", "CLOUDSDK_", "GCE_"),
)
_AUTHORITIES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
"""Certificate settings of the machine, with which a server of the tests would be verified."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(_OF_OTHERS) or name in _AUTHORITIES:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def bao() -> OpenBao:
    return shared()


@pytest.fixture(scope="module")
def _mount() -> Iterator[str]:
    server = VaultServer()
    server.put("a", VALUE)
    yield server.mount
    server.close()


@pytest.fixture
def at(_mount: str, bao: OpenBao) -> dict[str, str]:
    return {"VAULT_ADDR": bao.url, "KEYROT_VAULT_PLACE": f"{_mount}/keyrot"}


@pytest.fixture(scope="module")
def reading(_mount: str, bao: OpenBao) -> str:
    return bao.allow(policy(f"{_mount}/data/keyrot"))
