"""Secrets in environment variables and in `.env`, read as the settings are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from ..errors import SecretError
from .base import Secret

__all__ = ["EnvStore"]

_PREFIX = "GEMINI_KEY_"
_SCHEME = "env://"


class EnvStore:
    """Find a key in `GEMINI_KEY_<key_id>`, or in the variable that `env://NAME` names.

    The environment beats `.env`, and an empty variable hides the one in `.env`.
    """

    scheme = "env"
    instant = True

    def __init__(self, env_file: Path | None = None) -> None:
        """Remember which `.env` to read; it need not exist. None: the one of this directory."""
        self._env_file = env_file or Path(".env").absolute()

    @property
    def fixed(self) -> bool:
        """Tell whether nothing can change: nobody edits the environment of a running process."""
        return not self._env_file.exists()

    def place(self, key_id: str) -> str:
        """Tell where a key is unless told otherwise."""
        return f"{_SCHEME}{_PREFIX}{key_id}"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up now, reading `.env` once."""
        in_file = self._read_file()
        return {key_id: _find(key_id, ref, in_file) for key_id, ref in refs.items()}

    def _read_file(self) -> dict[str, str | None]:
        try:
            return dotenv_values(self._env_file, encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            # Told when the settings were loaded; being rewritten now, it must not hide the
            # environment.
            return {}


def _find(key_id: str, ref: str | None, in_file: Mapping[str, str | None]) -> Secret | SecretError:
    name = ref.removeprefix(_SCHEME) if ref else f"{_PREFIX}{key_id}"
    value = os.environ.get(name, in_file.get(name))
    if value is None:
        return SecretError(
            f"key {key_id}: the variable {name} is set neither in the environment nor in .env"
            f"{_other_case(name, in_file)}"
        )
    return Secret(value) or SecretError(f"key {key_id}: the variable {name} is empty")


def _other_case(name: str, in_file: Mapping[str, str | None]) -> str:
    """Point to a variable whose name differs in upper and lower case only."""
    names = (other for other in (*os.environ, *in_file) if other.lower() == name.lower())
    other = next(names, None)
    return f" ({other} is: case matters)" if other else ""
