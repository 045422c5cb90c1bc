"""The variables that configure a store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..settings import read_env_file

__all__ = ["read_env_safely", "read_environ"]


def read_env_safely(path: Path) -> dict[str, str | None]:
    """Read `.env`; empty if it cannot be read, which is reported when the settings are loaded."""
    try:
        return read_env_file(path)
    except (OSError, UnicodeDecodeError):
        return {}


def read_environ(env_file: Path) -> Mapping[str, str]:
    """Return the environment, over the variables of `.env` that begin with KEYROT_.

    A `.env` may come with a directory from somebody else: it does not say where logins go.
    """
    found = read_env_safely(env_file)
    in_file = {n: value for n, value in found.items() if n.startswith("KEYROT_") and value}
    return {**in_file, **os.environ}
