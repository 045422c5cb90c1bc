"""The limits that keys are configured with, so that a change is noticed after a restart too.

One hash for a pool, `configured`: from the key id to `[rpm, tpm, rpd]`; a key without limits is not
in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ...core.model import Candidate

__all__ = ["compare"]

KEPT_S = 30 * 86_400
AT_ONCE = 500
"""Keys in one HMGET: well under a millisecond of the server's time."""

_NOTHING = json.dumps([None, None, None])


def compare(
    ask: Callable[[Sequence[Sequence[Any]]], list[Any]], base: str, keys: Sequence[Candidate]
) -> tuple[list[Candidate], list[list[str]]]:
    """Find the keys whose limits are not those that were noted, and the commands that note them."""
    name = f"{base}:configured"
    ids = [key.key_id for key in keys]
    parts = [("HMGET", name, *ids[i : i + AT_ONCE]) for i in range(0, len(ids), AT_ONCE)]
    noted = [text for reply in (ask(parts) if parts else ()) for text in reply]
    commands = [["EXPIRE", name, str(KEPT_S)]]
    changed = []
    for key, text in zip(keys, noted, strict=True):
        now = json.dumps(key.limits[:3])
        if now != (text.decode(errors="replace") if text else _NOTHING):
            changed.append(key)
            gone = now == _NOTHING
            commands.append(["HDEL", name, key.key_id] if gone else ["HSET", name, key.key_id, now])
    return changed, [*commands[1:], commands[0]]
