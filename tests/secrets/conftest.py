"""An empty working directory, and an environment without keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keyrot_middleware.secrets import reading

_OF_OTHERS = (
    *("GEMINI_", "GOOGLE_", "KEYROT_", "SECRET_STORE", "ENABLE_KEY", "REDIS_URL"),
    *("AWS_", "AZURE_", "CLOUDSDK_", "GCE_"),
)
_AUTHORITIES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
"""Some machines have them, and a server of the tests would be checked by them."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to an empty directory and forget all variables of ours and the SDK's."""
    for name in list(os.environ):
        if name.startswith(_OF_OTHERS) or name in _AUTHORITIES:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a busy store again at once."""
    monkeypatch.setattr(reading, "PAUSE_S", 0.01)
