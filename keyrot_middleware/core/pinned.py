"""With which keys a call that touches stored things may go (ADR 0005)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from .call import Call
from .commands import Command, Owner
from .model import Block, Candidate

__all__ = ["may_leave", "owners"]

ONE_KEY = ("continuation:", "page:")
"""All hops of one answer, and all pages of one list, go with the very key of the first."""

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
    """Tell whether a new cache may be made elsewhere: nothing but cache storage stops its home.

    Nothing stored is named, so nothing is lost by it; who owns the cache is known afterwards.
    """
    if call.info.verb != NEW_CACHE or call.info.resources:
        return False
    why = {attempt.key_id: attempt.verdict.failure for attempt in call.attempts}
    why |= {key_id: block.reason for key_id, block in blocks.items()}
    return {why.get(key.key_id) for key in fixed} == {CACHE_STORAGE}
