"""The settings of a store: the environment, over those that `.env` may contain."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from ..keys_file import readable_from_file

__all__ = ["Environ", "only_in_file", "read_env_file", "read_environ"]


class Environ(dict[str, str]):
    """Variables, and the names of those that only `.env` has."""

    def __init__(self, variables: Mapping[str, str], in_file: frozenset[str]) -> None:
        """*in_file*: the names that the environment does not have."""
        super().__init__(variables)
        self.in_file = in_file


def read_env_file(path: Path) -> dict[str, str | None]:
    """Read `.env`; empty if it cannot be read, which is reported when the settings are loaded."""
    try:
        return dotenv_values(path, encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}


def read_environ(scheme: str, env_file: Path) -> Environ:
    """Read the settings of a store; an empty variable hides the one in `.env`.

    A store of another distribution gets all of `.env`: only that store knows what is safe.
    """
    found = {
        name: value
        for name, value in read_env_file(env_file).items()
        if value is not None and name not in os.environ and readable_from_file(scheme, name)
    }
    return Environ({**found, **os.environ}, frozenset(found))


def only_in_file(environ: Mapping[str, str], name: str) -> bool:
    """Return whether a variable comes from `.env` and not from the environment."""
    return isinstance(environ, Environ) and name in environ.in_file
