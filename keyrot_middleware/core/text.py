"""Display of values: keys and passwords removed, long values truncated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

# Two formats are in use: standard keys, AIza and 35 characters, and auth keys, AQ. and more
# (docs/gemini-api.md#formats). One that was cut or copied badly is as secret. The repeats are
# open-ended, so that no tail of a longer run stays behind.
_KEY = re.compile(r"(A?Iza)[0-9A-Za-z_-]{20,}|(AQ\.)[0-9A-Za-z_-]{20,}")
_RUN = re.compile(r"[0-9A-Za-z_-]{30,}")
_EDGE = re.compile(r"(?<=\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d)")
_MOST_EDGES = 3
"""Transitions between letters and digits in a name; 30 characters of a key have about 8."""
_KEY_ANY_CASE = re.compile(_KEY.pattern, re.IGNORECASE)
_STARTS = re.compile(r"AIza|AQ\.")
_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:/+", re.IGNORECASE)
_PASSWORD = re.compile(r"((?:password|username)=)[^&]*", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 80
_FIRST, _LAST = -62135596800, 253402300799
"""The calendar of datetime in epoch seconds: the years 1 to 9999."""


def holds_key(text: str) -> bool:
    """Return whether something in *text* has the shape of a Gemini API key."""
    return _KEY.search(text) is not None


def mask_keys(text: str) -> str:
    """Replace everything that has the shape of a Gemini API key by `AIza…[redacted]`."""
    if "Iza" not in text and "AQ." not in text:
        return text
    return _KEY.sub(lambda key: f"{key[1] or key[2]}…[redacted]", text)


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


_STANDARD_KEY_LENGTH = 39
_SEPARATOR = re.compile(r"[,;|\s]")
_PLACEHOLDER = re.compile(
    r"^(?:<.*>|\.\.\.|x{3,}|(?:your|my|insert|enter|paste|put|replace|change)[-_ ]?\w*[-_ ].*"
    r"|change_?me|placeholder|todo|none|null)$|(?:api[-_]?key|key)[-_](?:here|goes[-_]here)$",
    re.IGNORECASE,
)


def check_key_format(value: str) -> str | None:
    """Return why *value* does not look like a Gemini key, without quoting it; None if it does."""
    if _SEPARATOR.search(value) or len(_STARTS.findall(value)) > 1:
        return "its value holds several keys in one; put them into GEMINI_API_KEYS, with commas"
    if value.startswith("sk-"):
        return "its value begins with sk-, as keys of other providers do, and not with AIza or AQ."
    if _PLACEHOLDER.search(value):
        return "its value looks like a placeholder that was never replaced"
    if value.startswith("AIza") and len(value) < _STANDARD_KEY_LENGTH:
        return "its value begins like a Gemini API key and is too short for one; it may be cut off"
    return None


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
    """Escape control characters: those that move the cursor, color a terminal or break lines."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def display(value: object) -> str:
    """Return *value* for an error message: as JSON, truncated, without keys and passwords."""
    if isinstance(value, list | tuple | set):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if value is not None and not isinstance(value, str | int | float):
        return f"a value of type {type(value).__name__}"
    value = mask_url(value) if isinstance(value, str) else value
    text = one_line(hide_secrets(json.dumps(value, ensure_ascii=False)))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def hide_secrets(text: str) -> str:
    """Replace what may be a key, also one that was cut or copied badly, by `[a key]`.

    For text written by hand: a long mixture of letters and digits is no word, in any case.
    """
    return _RUN.sub(_word, _KEY_ANY_CASE.sub("[a key]", text))


def _word(run: re.Match[str]) -> str:
    return "[a key]" if len(_EDGE.findall(run[0])) > _MOST_EDGES else run[0]


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
        raise ValueError(f"found {display(text)}; allowed: a time such as 90s, 15m, 6h or 30d")
    return seconds


def remaining(seconds: float) -> str:
    """Say how long it is until a moment: `in 40 s`, `in 14 min`, `in 5 h`, `in 3 days`."""
    for most, unit, name in ((90, 1, "s"), (5_400, 60, "min"), (172_800, 3_600, "h")):
        if seconds < most:
            return f"in {max(round(seconds / unit), 0)} {name}"
    return f"in {round(seconds / 86_400)} days"
