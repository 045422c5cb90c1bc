"""Texts for people: escapes, passwords in URLs, times and numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from html import unescape

_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:/+", re.IGNORECASE)
_PASSWORD = re.compile(r"((?:password|username)=)[^&]*", re.IGNORECASE)
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_FIRST, _LAST = -62135596800, 253402300799
"""The calendar of datetime in epoch seconds: the years 1 to 9999."""


# A character as JSON, Python and JavaScript escape it, as URLs do, and as HTML does: also where it
# was escaped twice.
_ESCAPE = re.compile(
    r"(?<!\\)\\++(?:(?:u00|x)([2-7][0-9a-fA-F])|(/))|%(?:25)*+([2-7][0-9a-fA-F])"
    r"|&(?:amp;)*+#(?:[xX]0*+([2-7][0-9a-fA-F])|0*+([1-9][0-9]{1,2}));"
)
_UNQUOTED = re.compile(r"[!#-&(-\[\]-~]")
"""What keys are made of, and never ends the string of a JSON text."""


def hide_escaped(text: str, hide: Callable[[str], str]) -> str:
    r"""Apply *hide* to a text; if that finds something behind its escapes only, to the plain text.

    Servers repeat a key as JSON, as a URL or as HTML: `\u0041Iza…`, `%41Iza…`, `&#65;Iza…`.
    """
    text = hide(text)
    if not ("%" in text or "#" in text or "\\u00" in text or "\\x" in text or "\\/" in text):
        return text
    plain = _ESCAPE.sub(_unescape, text)
    hidden = hide(plain)
    return text if hidden == plain else hidden


def _unescape(escape: re.Match[str]) -> str:
    code, slash, quoted, entity, number = escape.groups()
    char = slash or chr(int(number) if number else int(code or quoted or entity, 16))
    return char if _UNQUOTED.fullmatch(char) else escape[0]


def mask_url(text: str) -> str:
    """Replace user and password in the URL *text*, in front of the host or as an option.

    Malformed URLs contain passwords too, with unencoded `/`, `#` and blanks, or a misspelt scheme.
    So everything between the scheme and the last `@` is replaced.
    """
    text = _PASSWORD.sub(r"\1[redacted]", text)
    before, _, host = text.rpartition("@")
    if ":" not in before and "//" not in before:
        return text
    scheme = _SCHEME.match(before)
    return f"{scheme[0] if scheme else ''}[redacted]@{host}"


def one_line(text: str) -> str:
    """Escape control characters, which move the cursor, color a terminal or break lines.

    And those that nobody sees, with which two names look alike.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_PAGE = re.compile(
    r"[\s\ufeff]*(?:<\?xml[^<>]*>\s*)?(?:<!--.{0,1000}?-->\s*)?"
    r"<(?:!doctype\s+html|html|head|title|meta|body|center|h[1-6]|div|p|script|style)\b",
    re.IGNORECASE | re.DOTALL,
)
_UNSEEN = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[a-zA-Z!?][^<>]*(?:>|$)")
"""Of a page, which may be cut."""


def is_page(text: str) -> bool:
    """Return whether a text begins like an HTML page."""
    return _PAGE.match(text) is not None


def without_tags(text: str) -> str:
    """Return a text in one line, without tags of HTML."""
    return " ".join(_TAG.sub(" ", text).split())


def text_of_page(text: str) -> str:
    """Return what an HTML page shows, in one line; any other text as it is."""
    if not is_page(text):
        return text
    return " ".join(unescape(without_tags(_UNSEEN.sub(" ", text))).strip("\ufeff").split())


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


_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds_in(text: str) -> float:
    """Return how long `90s`, `15m`, `6h` or `30d` is.

    Raises:
        ValueError: It is no such time, or longer than ten years.
    """
    found = re.fullmatch(r"(\d{1,9})([smhd])", text.strip().lower(), re.ASCII)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= 3_650 * _UNITS["d"]:
        found_text = json.dumps(text[:12], ensure_ascii=False)  # no key is as short
        raise ValueError(
            f"found {one_line(found_text)}; allowed: a time such as 90s, 15m, 6h or 30d"
        )
    return seconds


def remaining(seconds: float) -> str:
    """Say how long it is until a moment: `in 40 s`, `in 14 min`, `in 5 h`, `in 3 days`."""
    for most, unit, name in ((90, 1, "s"), (5_400, 60, "min"), (172_800, 3_600, "h")):
        if seconds < most:
            return f"in {max(round(seconds / unit), 0)} {name}"
    return f"in {round(seconds / 86_400)} days"
