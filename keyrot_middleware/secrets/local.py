"""Secrets in settings, environment variables, `.env` and files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import SecretError
from ..settings import read_env_file
from .base import Secret


def read_env_safely(path: Path) -> dict[str, str | None]:
    """Read `.env`; empty if it cannot be read, which is reported when the settings are loaded."""
    try:
        return read_env_file(path)
    except (OSError, UnicodeDecodeError):
        return {}


class InlineStore:
    """Values of a setting (`GEMINI_API_KEYS`, an argument of install())."""

    scheme = "inline"
    instant = True
    fixed = True

    def __init__(self, values: Mapping[str, Secret]) -> None:
        self._values = dict(values)

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Return the values; places are ignored."""
        return {
            key_id: self._values.get(key_id)
            or SecretError(f"key {key_id}: no value was given for it")
            for key_id in refs
        }


_PREFIX = "GEMINI_KEY_"
_SCHEME = "env://"


class EnvStore:
    """Reads keys from `GEMINI_KEY_<key_id>`, or from the variable that `env://NAME` names.

    The environment beats `.env`, and an empty variable hides the one in `.env`.
    """

    scheme = "env"
    instant = True

    def __init__(self, env_file: Path | None = None) -> None:
        """*env_file* need not exist; None: `.env` in the working directory."""
        self._env_file = env_file or Path(".env").absolute()

    @property
    def fixed(self) -> bool:
        """Whether values never change: the environment does not, `.env` may."""
        return not self._env_file.exists()

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{_SCHEME}{_PREFIX}{key_id}"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up; `.env` is read once."""
        in_file = read_env_safely(self._env_file)
        return {key_id: _find(key_id, ref, in_file) for key_id, ref in refs.items()}


def _find(key_id: str, ref: str | None, in_file: Mapping[str, str | None]) -> Secret | SecretError:
    name = ref.removeprefix(_SCHEME) if ref else f"{_PREFIX}{key_id}"
    value = os.environ.get(name, in_file.get(name))
    if value is not None:
        return Secret(value) or SecretError(f"key {key_id}: the variable {name} is empty")
    other = next((one for one in (*os.environ, *in_file) if one.lower() == name.lower()), None)
    hint = f" ({other} is: case matters)" if other else ""
    text = f"the variable {name} is set neither in the environment nor in .env{hint}"
    return SecretError(f"key {key_id}: {text}")


# Files: Docker, Kubernetes and systemd mount secrets as a directory with one file each ----------


_FILE_SCHEME = "file://"
_DIRECTORY = Path("/run/secrets")
"""Where Docker and Podman mount secrets."""
_MAX_SIZE = 64 * 1024
"""Bytes; a key has about fifty, so a larger file is a mistake."""


def open_file(environ: Mapping[str, str]) -> FileStore:
    """Open the store for systemd's CREDENTIALS_DIRECTORY, else for /run/secrets."""
    return FileStore(Path(environ.get("CREDENTIALS_DIRECTORY") or _DIRECTORY))


class FileStore:
    """Reads keys from files: `<directory>/<key_id>`, or the one that `file:///path` names.

    Each look-up reads the file again. Links are followed, as Kubernetes uses them. Whitespace
    around a value is removed.
    """

    scheme = "file"

    def __init__(self, directory: Path) -> None:
        """Read nothing yet."""
        self._directory = directory

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{_FILE_SCHEME}{self._directory / key_id}"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Read the files."""
        return {key_id: self._find(key_id, ref) for key_id, ref in refs.items()}

    def _find(self, key_id: str, ref: str | None) -> Secret | SecretError:
        path = Path((ref or self.place(key_id)).removeprefix(_FILE_SCHEME))
        try:
            if path.exists() and not path.is_file():
                why = "no regular file"  # reading a pipe or a device may never end
            elif path.stat().st_size > _MAX_SIZE:
                why = f"larger than {_MAX_SIZE} bytes"
            else:
                return Secret(path.read_bytes().decode("utf-8-sig"))
        except (OSError, ValueError) as error:
            why = type(error).__name__
        return SecretError(f"key {key_id}: the file {path}: {why}")
