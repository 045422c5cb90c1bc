"""How messages write names, times and numbers: in one line, as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_FIRST, _LAST = -62135596800, 253402300799
"""The calendar of datetime in epoch seconds: the years 1 to 9999."""


def one_line(text: str) -> str:
    """Escape control characters, which move the cursor, color a terminal or break lines.

    And those that nobody sees, with which two names look alike.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean "x"?` for the known name closest to *name*; empty if none is close."""
    import difflib  # noqa: PLC0415 - only needed where something is wrong already

    names = {one.lower(): one for one in known}
    longer = [one for one in names if one.startswith(f"{name.lower()}_")]
    close = longer or difflib.get_close_matches(name.lower(), names, n=1)
    return f' Did you mean "{names[close[0]]}"?' if close else ""


def utc(moment: float) -> datetime:
    """Return finite epoch seconds as a time in UTC, clamped to the years 1 to 9999.

    A message about a failure must not fail itself, whatever time a server reports.
    """
    return datetime.fromtimestamp(min(max(moment, _FIRST), _LAST), UTC)


def plural(number: int, one: str) -> str:
    """Return a number with its noun: `1 key`, `1,200 keys`."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def of_all(number: int, total: int, one: str) -> str:
    """Return a part of a number with its noun: `0 of 1 keys`, `1 of 1 key`, `1 of 20 keys`."""
    return f"{number:,} of {total:,} {one}{'' if number == total == 1 else 's'}"


def short_time(at: str) -> str:
    """Write an ISO time as `2026-01-02 08:00Z`."""
    return f"{datetime.fromisoformat(at):%Y-%m-%d %H:%MZ}"


def remaining(seconds: float) -> str:
    """Say how long it is until a moment: `in 40 s`, `in 14 min`, `in 5 h`, `in 3 days`."""
    for most, unit, name in ((90, 1, "s"), (5_400, 60, "min"), (172_800, 3_600, "h")):
        if seconds < most:
            return f"in {max(round(seconds / unit), 0)} {name}"
    return f"in {round(seconds / 86_400)} days"
