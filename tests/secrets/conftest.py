"""An empty working directory, and an environment without keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to an empty directory and forget all variables of ours and the SDK's."""
    for name in list(os.environ):
        if name.startswith(("GEMINI_", "GOOGLE_API", "KEYROT_", "SECRET_STORE", "ENABLE_KEY")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
