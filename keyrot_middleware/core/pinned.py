"""With which keys a call that touches stored things may go (ADR 0005)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from .call import Call
from .commands import Command, Owner
from .failures import REJECTIONS
from .model import HOME, Block, Candidate

__all__ = ["may_leave", "owners"]

ONE_KEY = ("continuation:", "page:")
"""All hops of one answer, and all pages of one list, go with the very key of the first."""

_NOT_CREATING = ("delete", "get", "list", "patch")

NEW_CACHE = "cachedContents"
"""The method that makes cached content."""

CACHE_STORAGE = "cache_storage"
"""The failure class that is about a project's room for cached content."""


def owners(call: Call) -> Generator[Command, Any, tuple[Candidate, ...]]:
    """Find whose stored things the call names; unknown and new ones are of its home project."""
    home, names = call.home, call.info.resources
    owner: tuple[str, str] | None = (yield Owner(names)) if names else None
    key, project = home, home.project if home is not None else ""
    if owner is not None:
        key, project = call.roster.keys.get(owner[0]), owner[1]
    one_key = any(name.startswith(ONE_KEY) for name in names)
    same = () if one_key else call.roster.of_project(project)
    fixed = ([key] if key is not None else []) + [k for k in same if k is not key]
    return tuple(fixed) or ((home,) if home is not None else ())


def may_leave(call: Call, fixed: Sequence[Candidate], blocks: Mapping[str, Block]) -> bool:
    """Say whether a call that creates something may go with any key, for its home never can.

    It names nothing stored, so any project may have what it makes, and its owner is known
    afterwards. A project's keys that are rejected, or have no room for a cache, may stay so.
    """
    if call.info.resources or call.info.verb in _NOT_CREATING:
        return False
    why = {attempt.key_id: attempt.verdict.failure for attempt in call.attempts}
    why |= {key_id: block.reason for key_id, block in blocks.items()}
    found = {why.get(key.key_id) for key in fixed}
    stranger = any(key.key_id.startswith(HOME) for key in fixed)
    never = frozenset() if stranger else REJECTIONS
    if call.info.verb == NEW_CACHE:
        never |= {CACHE_STORAGE}
    return bool(found) and found <= never
