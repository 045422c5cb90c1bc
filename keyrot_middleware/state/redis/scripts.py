"""The Lua scripts, each one decision: read from the package once, known to the server by digest."""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

__all__ = ["Script", "script"]


class Script(NamedTuple):
    """A script and the name by which EVALSHA calls it."""

    text: str
    digest: str


@cache
def script(name: str) -> Script:
    """Read the script *name*, with what all of them share in front."""
    folder = files("keyrot_middleware.state") / "lua"
    text = "\n".join(
        (folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("shared", name)
    )
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())
