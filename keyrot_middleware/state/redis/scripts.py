"""The Lua scripts of ../lua, with the constants and the numbers of fields that Python uses too.

They are put in front of each script, so that the two languages cannot differ.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

from ...core import spending, windows

__all__ = [
    "HEALTH",
    "LEARNED",
    "QUOTA",
    "RECORD_TTL_S",
    "SPENDING",
    "Script",
    "ScriptCall",
    "script",
]

QUOTA = (
    "minute",
    "requests",
    "requests_next",
    "tokens",
    "tokens_next",
    "day_end",
    "day_requests",
)
"""The fields of a quota record, in order; also the attributes of `QuotaWindows`."""
LEARNED = ("learned_until", "learned_rpm", "learned_tpm", "learned_rpd")
"""Those that follow if a limit was reported."""
HEALTH = ("last_used", "successes", "errors", "value", "last_error")
SPENDING = ("spending_day_end", "spent", "highest", "reserved")
EPOCH = ("id", "changes", "kept_id", "kept_changes")

RECORD_TTL_S = 30 * 86_400
"""How long records without an end, and those of an unused pool, are kept."""
_CONSTANTS = {
    "GUARD_S": windows.GUARD_S,
    "MINUTE_S": 60,
    "HOUR_S": windows.HOUR_S,
    "DAY_S": windows.DAY_S,
    "SHORT_DAY_S": windows.SHORT_DAY_S,
    "AHEAD_S": windows.AHEAD_S,
    "PROBE_S": windows.PROBE_S,
    "POLL_S": windows.PROBE_POLL_S,
    "BUCKETS_KEPT": spending.BUCKETS_KEPT,
    "RECORD_TTL_S": RECORD_TTL_S,
    "REPLIES_TTL_S": 180,  # how long the replies of a minute are kept
    "MAX_COOLDOWNS": 64,  # cooldowns kept for one key, project or account
    "SETTLED": "settled ",  # begins the reply of a lease that has ended
}


class Script(NamedTuple):
    """A script and the digest by which EVALSHA calls it."""

    text: str
    digest: str


class ScriptCall(NamedTuple):
    """One run of a script with its records and arguments."""

    script: Script
    keys: tuple[Any, ...]
    args: tuple[Any, ...]


@cache
def script(name: str) -> Script:
    """Return the script *name* with the constants and shared.lua in front."""
    folder = files("keyrot_middleware.state") / "lua"
    parts = [
        _constants(),
        *((folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("shared", name)),
    ]
    text = "\n".join(parts)
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _constants() -> str:
    """Return Lua that defines the constants, and the number of each field in its record."""
    values = {
        name: f"'{value}'" if isinstance(value, str) else f"{value:.17g}"
        for name, value in _CONSTANTS.items()
    }
    for fields in ((*QUOTA, *LEARNED), HEALTH, SPENDING, EPOCH):
        values |= {field.upper(): str(number) for number, field in enumerate(fields, 1)}
    return f"local {', '.join(values)} = {', '.join(values.values())}"
