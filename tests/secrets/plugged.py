"""Secret stores as another distribution would plug them in, by a real `entry_points.txt`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret

__all__ = ["SafeStore", "open_safe", "plug_in"]

OPENED: list[Mapping[str, str]] = []
"""What the openers were given."""


class SafeStore:
    """A store that keeps keys in upper case."""

    scheme = "safe"

    def resolve(self, refs: Mapping[str, str | None]) -> Mapping[str, Secret | SecretError]:
        """Give a value for each key that has a good id."""
        return {
            key_id: SecretError(f"key {key_id}: not in the safe")
            if key_id == "missing"
            else Secret(f"FAKE-{key_id}-of-{ref or 'default'}")
            for key_id, ref in refs.items()
        }


def open_safe(environ: Mapping[str, str]) -> SafeStore:
    """Open it."""
    OPENED.append(environ)
    return SafeStore()


def open_broken(environ: Mapping[str, str]) -> SafeStore:
    """Fail as a store does whose server is down."""
    OPENED.append(environ)
    raise ConnectionRefusedError(environ["SAFE_TOKEN"])


def open_flawed(environ: Mapping[str, str]) -> SafeStore:
    """Fail as a store does that has a fault of its own."""
    raise AttributeError("safe")


def plug_in(folder: Path, *schemes: str) -> str:
    """Write the metadata of a distribution that has these stores; give the path to import from."""
    info = folder / "safe_keyrot-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: safe-keyrot\nVersion: 1.0\n")
    group = "[keyrot_middleware.secret_stores]\n"
    lines = "".join(f"{name} = {sys.modules[__name__].__name__}:open_{name}\n" for name in schemes)
    (info / "entry_points.txt").write_text(group + lines)
    return str(folder)
