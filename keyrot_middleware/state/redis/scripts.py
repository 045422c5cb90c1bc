"""The Lua scripts of ../lua, with the constants and the numbers of fields that Python uses too.

They are put in front of each script, so that the two languages cannot differ.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

from ...core import spending, windows

__all__ = [
    "LEARNED",
    "QUOTA",
    "RECORD_TTL_S",
    "SPENDING",
    "Packer",
    "Script",
    "ScriptCall",
    "pack_texts",
    "script",
    "unpack_quota",
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
SPENDING = ("spending_day_end", "spent", "highest", "reserved")
EPOCH = ("id", "changes", "kept_id", "kept_changes")

CANDIDATE = (
    *("group", "weight", "rpm", "tpm", "rpd", "concurrency", "budget"),
    *("project", "names"),
)
"""The parts of a candidate in an argument of acquire.lua: numbers, then texts.

`names` are its billing account, its record and its id, packed as texts too: few are needed.
"""
SETTLE = (
    *("granted_minute", "near_boundary", "granted_day_end", "settled_requests"),
    *("settled_tokens", "used", "granted"),
    *("settled_key", "project_of_settle", "settled_account", "settled_record"),
    *("bucket", "settled_verb", "settled_lease"),
)
"""Those of a lease whose request succeeded: `used` are its true tokens, -1 if unknown."""

MAX_PACKED = 10_000
"""Combinations of texts that one kind of argument keeps packed."""
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
    "CANDIDATE_FORMAT": ">" + 7 * "d" + 2 * "I4c0",  # as Packer packs
    "NAMES_FORMAT": ">" + 3 * "I4c0",
    "SETTLE_FORMAT": ">" + 7 * "d" + 7 * "I4c0",
    # requests, tokens, spread (1 or 0), lease seconds, cost of the input, cost with the longest
    # answer; midnights (JSON, ascending), model, verb, bucket as the caller knows it, price suffix
    "CALL_FORMAT": ">" + 6 * "d" + 5 * "I4c0",
    "QUOTA_FORMAT": ">" + len(QUOTA) * "d",
    "LEARNED_FORMAT": ">" + len((*QUOTA, *LEARNED)) * "d",
}


def unpack_quota(record: bytes) -> tuple[float, ...]:
    """Return the numbers of a quota record.

    Raises:
        ValueError: It is none.
    """
    numbers, rest = divmod(len(record), struct.calcsize("d"))
    if rest or numbers not in (len(QUOTA), len(QUOTA) + len(LEARNED)):
        raise ValueError("no quota")
    return struct.unpack(f">{numbers}d", record)


class Packer:
    """Packs the values of one argument: doubles, then each text with its length."""

    def __init__(self) -> None:
        """Start empty."""
        self._packed: dict[tuple[str | bytes, ...], bytes] = {}

    def __call__(self, numbers: Sequence[float], *texts: str | bytes) -> bytes:
        """Return the argument; the packed texts are kept for the next one."""
        packed = self._packed.get(texts)
        if packed is None:
            if len(self._packed) >= MAX_PACKED:
                self._packed.clear()
            packed = self._packed[texts] = pack_texts(*texts)
        return struct.pack(f">{len(numbers)}d", *numbers) + packed


def pack_texts(*texts: str | bytes) -> bytes:
    """Return texts, each with its length; UTF-8 may not be able to encode all of a program's."""
    encoded = [t if isinstance(t, bytes) else t.encode(errors="replace") for t in texts]
    return b"".join([struct.pack(">I", len(text)) + text for text in encoded])


class Script(NamedTuple):
    """A script and the digest by which EVALSHA calls it."""

    text: str
    digest: str


class ScriptCall(NamedTuple):
    """One run of a script with its arguments."""

    script: Script
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
    for fields in ((*QUOTA, *LEARNED), SPENDING, EPOCH, (*CANDIDATE, "next"), SETTLE):
        values |= {field.upper(): str(number) for number, field in enumerate(fields, 1)}
    return f"local {', '.join(values)} = {', '.join(values.values())}"
