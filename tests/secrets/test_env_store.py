"""The env store reads variables and `.env` as the settings do."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret, SecretStore
from keyrot_middleware.secrets.stores import open_store


def look_up(store: SecretStore, key_id: str, ref: str | None = None) -> str:
    """Return the value of one key, or the text of the error."""
    found = store.resolve({key_id: ref})[key_id]
    return found.reveal() if isinstance(found, Secret) else str(found)


def test_the_environment_beats_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is found in .env, then in the environment, which hides .env also when empty."""
    (here / ".env").write_text("GEMINI_KEY_a=from-file\n")
    store = open_store("env")
    assert look_up(store, "a") == "from-file"
    monkeypatch.setenv("GEMINI_KEY_a", " from-environment ")
    assert look_up(store, "a") == "from-environment"
    monkeypatch.setenv("GEMINI_KEY_a", "")
    assert look_up(store, "a") == "key a: the variable GEMINI_KEY_a is empty"


def test_a_reference_names_another_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`env://NAME` reads NAME, and a batch has an answer for each key."""
    monkeypatch.setenv("MINE", "value")
    found = open_store("env://MINE").resolve({"a": "env://MINE", "b": None})
    assert found["a"] == Secret("value")
    assert isinstance(found["b"], SecretError)


def test_a_name_in_another_case_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capitals are the usual mistake."""
    monkeypatch.setenv("GEMINI_KEY_FLASH_01", "value")
    text = look_up(open_store("env"), "flash_01")
    assert text.endswith("nor in .env (GEMINI_KEY_FLASH_01 is: case matters)")
