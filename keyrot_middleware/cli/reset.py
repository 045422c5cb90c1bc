"""`keyrot reset`, `disable` and `enable`: change a key of a shared state, while services run."""

from __future__ import annotations

import sys

from ..core.failures import REJECTIONS
from ..core.model import Candidate
from ..core.text import did_you_mean, hide_secrets, one_line
from ..errors import KeyrotError
from ..state.base import KeyHealth
from ..telemetry.log_text import format_time
from .shared_pool import NOT_SHARED, SharedPool, report_of_shared, shared_pool

__all__ = ["reset", "set_active"]


def reset(key_id: str) -> int:
    """Clear the cooldowns of a key, its project and billing account, and its learned limits.

    Returns:
        0; 1 with a message on stderr if that fails.
    """
    try:
        with shared_pool() as pool:
            if pool is None:
                print(NOT_SHARED, file=sys.stderr)
                return 1
            key = _find(pool, key_id)
            before = pool.state.snapshot([key])[key.key_id]
            pool.state.reset(key)
            print(_describe_reset(key, before, _keys_in_same_cooldown(pool, key, before)))
            return 0
    except KeyrotError as error:
        print(f"keyrot: {error}", file=sys.stderr)
        return 1


def set_active(key_id: str, *, active: bool) -> int:
    """Disable or enable a key for all processes that share the state.

    Returns:
        0; 1 with a message on stderr if that fails.
    """
    try:
        with shared_pool() as pool:
            if pool is None:
                print(NOT_SHARED, file=sys.stderr)
                return 1
            _find(pool, key_id)
            print(one_line(report_of_shared(pool).set_active(key_id, active)))
            return 0
    except KeyrotError as error:
        print(f"keyrot: {error}", file=sys.stderr)
        return 1


def _find(pool: SharedPool, key_id: str) -> Candidate:
    key = pool.keys.get(key_id)
    if key is None:
        known = ", ".join(pool.keys)
        hint = did_you_mean(key_id, pool.keys)
        named = repr(hide_secrets(key_id))  # some give the value of a key
        raise KeyrotError(f"no key {named} in pool {pool.name!r}; keys: {known}.{hint}")
    return key


def _keys_in_same_cooldown(pool: SharedPool, key: Candidate, before: KeyHealth) -> list[str]:
    """Return the other keys in the scope of the key's cooldown."""
    scope = before.cooldown_scope or ""
    of = "billing_account" if scope == "billing" else "project" if "project" in scope else "key_id"
    same = [one for one in pool.keys.values() if getattr(one, of) == getattr(key, of)]
    return [one.key_id for one in same if one.key_id != key.key_id]


def _describe_reset(key: Candidate, before: KeyHealth, others: list[str]) -> str:
    until = before.cooldown_until
    if until is None:
        lines = [f"Key {key.key_id} was not cooling down; nothing to reset."]
    else:
        state = (
            "rejected, with the next probe at"
            if before.cooldown_reason in REJECTIONS
            else "cooling down until"
        )
        why = f"{before.cooldown_reason} ({before.cooldown_scope})"
        lines = [
            f"Key {key.key_id} is available again. It was {state} {format_time(until)}: {why}.",
            "Running services use it again within a minute.",
        ]
    if others:
        lines.append(f"Also available again: {', '.join(others)}.")
    if key.disabled:
        lines.append(f"It stays disabled: {key.disabled}.")
    return "\n".join(lines)
