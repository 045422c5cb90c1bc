"""`keyrot reset KEY_ID`: make a rejected or cooling key available again, while services run."""

from __future__ import annotations

import sys

from ..core.failures import REJECTIONS
from ..core.model import Candidate
from ..core.text import did_you_mean
from ..errors import KeyrotError
from ..state.base import KeyHealth
from ..telemetry.log_text import format_time
from .shared import NOT_SHARED, SharedPool, shared_pool

__all__ = ["reset"]


def reset(key_id: str) -> int:
    """Forget what cools the key down, its project and its account, and its learned limits.

    Returns:
        0; or 1 where that cannot be done, reported on stderr.
    """
    try:
        with shared_pool() as pool:
            if pool is None:
                print(NOT_SHARED, file=sys.stderr)
                return 1
            key = _find(pool, key_id)
            before = pool.state.snapshot([key])[key.key_id]
            pool.state.reset(key)
            print(_describe_reset(key, before, _others(pool, key, before)))
            return 0
    except KeyrotError as error:
        print(f"keyrot: {error}", file=sys.stderr)
        return 1


def _find(pool: SharedPool, key_id: str) -> Candidate:
    key = pool.keys.get(key_id)
    if key is None:
        known = ", ".join(pool.keys)
        hint = did_you_mean(key_id, pool.keys)
        raise KeyrotError(f"no key {key_id!r} in pool {pool.name!r}; there are: {known}.{hint}")
    return key


def _others(pool: SharedPool, key: Candidate, before: KeyHealth) -> list[str]:
    """List the other keys that were cooling down for the same reason."""
    scope = before.cooldown_scope or ""
    of = "billing_account" if scope == "billing" else "project" if "project" in scope else "key_id"
    same = [one for one in pool.keys.values() if getattr(one, of) == getattr(key, of)]
    return [one.key_id for one in same if one.key_id != key.key_id]


def _describe_reset(key: Candidate, before: KeyHealth, others: list[str]) -> str:
    until = before.cooldown_until
    if until is None:
        lines = [f"Key {key.key_id} was not cooling down."]
    else:
        state = (
            "rejected, to be tried again at"
            if before.cooldown_reason in REJECTIONS
            else "cooling down until"
        )
        why = f"{before.cooldown_reason} ({before.cooldown_scope})"
        lines = [
            f"Key {key.key_id} is available again. It was {state} {format_time(until)}: {why}.",
            "Running services use it within a minute.",
        ]
    if others:
        lines.append(f"Available again with it: {', '.join(others)}.")
    if not key.active:
        lines.append("It has active=false in keys.json, which stays as it is.")
    return "\n".join(lines)
