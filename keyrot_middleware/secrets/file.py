"""Secrets in files: what Docker, Kubernetes and systemd put under a directory, one file each.

A file is read anew at each look-up, so a value that the orchestrator replaces is seen. Files are
followed through links, as Kubernetes lays them out.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from ..errors import SecretError
from .base import Secret

__all__ = ["FileStore", "open_file"]

_SCHEME = "file://"
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
        """Tell where a key is unless told otherwise."""
        return f"{_SCHEME}{self._directory / key_id}"

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        """Read the files now."""
        return {key_id: self._find(key_id, ref) for key_id, ref in refs.items()}

    def _find(self, key_id: str, ref: str | None) -> Secret | SecretError:
        path = Path((ref or self.place(key_id)).removeprefix(_SCHEME))
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
