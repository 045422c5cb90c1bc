"""Secrets in environment variables and in `.env`, read as the settings are."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from ..errors import SecretError
from .base import Secret

__all__ = [
    "EnvStore",
    "FileStore",
    "InlineStore",
    "open_file",
]

# Values that stood in a setting itself (`GEMINI_API_KEYS`, an argument of install()) -----------


class InlineStore:
    """Give back what it was made with."""

    scheme = "inline"
    instant = True
    fixed = True

    def __init__(self, values: Mapping[str, Secret]) -> None:
        self._values = dict(values)

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Look the keys up by id; their places do not matter."""
        return {
            key_id: self._values.get(key_id)
            or SecretError(f"key {key_id}: no value was given for it")
            for key_id in refs
        }


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
        """Return where a key is kept by default."""
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


# Secrets in files: what Docker, Kubernetes and systemd put under a directory, one file each ----
#
# A file is read anew at each look-up, so a value that the orchestrator replaces is seen. Files are
# followed through links, as Kubernetes lays them out.


_FILE_SCHEME = "file://"
_DIRECTORY = Path("/run/secrets")
"""Where Docker and Podman mount secrets."""
_LONGEST = 64 * 1024
"""Bytes; a key has some fifty, and what is longer was not meant."""


def open_file(environ: Mapping[str, str]) -> FileStore:
    """Open the store whose default place is systemd's CREDENTIALS_DIRECTORY, else /run/secrets."""
    return FileStore(Path(environ.get("CREDENTIALS_DIRECTORY") or _DIRECTORY))


class FileStore:
    """Find a key in the file `<directory>/<key_id>`, or in the one that `file:///path` names.

    Blanks and line ends around a value are dropped.
    """

    scheme = "file"

    def __init__(self, directory: Path) -> None:
        """Read nothing yet."""
        self._directory = directory

    def place(self, key_id: str) -> str:
        """Return where a key is kept by default."""
        return f"{_FILE_SCHEME}{self._directory / key_id}"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Read the files now."""
        return {key_id: self._find(key_id, ref) for key_id, ref in refs.items()}

    def _find(self, key_id: str, ref: str | None) -> Secret | SecretError:
        path = Path((ref or self.place(key_id)).removeprefix(_FILE_SCHEME))
        try:
            secret = Secret(_read(path))
        except _NoTextError as error:
            why = str(error)
        except FileNotFoundError:
            why = "there is no such file"
        except UnicodeDecodeError:
            why = "it is not UTF-8 text"
        except (OSError, ValueError) as error:
            why = f"it cannot be read: {getattr(error, 'strerror', None) or 'no path'}"
        else:
            if secret:
                return secret
            why = "it is empty"
        return SecretError(f"key {key_id}: the file {path}: {why}")


class _NoTextError(Exception):
    """Say what a path leads to instead of a secret."""


def _read(path: Path) -> str:
    """Read a regular file; a pipe would hang, a device never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise _NoTextError("it is no regular file")
    if found.st_size > _LONGEST:
        raise _NoTextError(f"it is larger than {_LONGEST} bytes")
    return path.read_bytes().decode("utf-8-sig")
