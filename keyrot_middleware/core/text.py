"""How values are shown to people: without keys and passwords, and long ones cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime

__all__ = [
    "check_key_format",
    "did_you_mean",
    "display",
    "hide_secrets",
    "holds_key",
    "mask_keys",
    "mask_url",
    "one_line",
    "standard_key_hint",
    "utc",
]

# Two formats are in use: standard keys, AIza and 35 characters, and auth keys, AQ. and more
# (GEMINI.md B6). One that was cut or copied badly is as secret. The repeats are open-ended, so that
# no tail of a longer run stays behind.
_KEY = re.compile(r"(A?Iza)[0-9A-Za-z_-]{20,}|(AQ\.)[0-9A-Za-z_-]{20,}")
_RUN = re.compile(r"[0-9A-Za-z_-]{30,}")
_EDGE = re.compile(r"(?<=\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d)")
_MOST_EDGES = 3
"""Where letters meet digits in a name that people write; in 30 characters of a key it is 8."""
_KEY_ANY_CASE = re.compile(_KEY.pattern, re.IGNORECASE)
_STARTS = re.compile(r"AIza|AQ\.")
_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:/+", re.IGNORECASE)
_PASSWORD = re.compile(r"((?:password|username)=)[^&]*", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST = 80
_FIRST, _LAST = -62135596800, 253402300799
"""The calendar of datetime in epoch seconds: the years 1 to 9999."""


def holds_key(text: str) -> bool:
    """Tell whether something in *text* has the shape of a Gemini API key."""
    return _KEY.search(text) is not None


def mask_keys(text: str) -> str:
    """Replace everything that has the shape of a Gemini API key by `AIza…[redacted]`."""
    if "Iza" not in text and "AQ." not in text:
        return text
    return _KEY.sub(lambda key: f"{key[1] or key[2]}…[redacted]", text)


_STANDARD_KEY_LENGTH = 39
_PLACEHOLDER = re.compile(
    r"^(?:<.*>|\.\.\.|x{3,}|(?:your|my|insert|enter|paste|put|replace|change)[-_ ]?\w*[-_ ].*"
    r"|change_?me|placeholder|todo|none|null)$|(?:api[-_]?key|key)[-_](?:here|goes[-_]here)$",
    re.IGNORECASE,
)


def check_key_format(value: str) -> str | None:
    """Say why the value of a key looks like none of Gemini; nothing of the value is in it."""
    if ";" in value or len(_STARTS.findall(value)) > 1:
        return "its value holds several keys in one; put a comma between keys"
    if value.startswith("sk-"):
        return "its value begins with sk-, as keys of other providers do, and not with AIza or AQ."
    if _PLACEHOLDER.search(value):
        return "its value looks like a placeholder that was never replaced"
    if value.startswith("AIza") and len(value) < _STANDARD_KEY_LENGTH:
        return "its value begins like a Gemini API key and is too short for one; it may be cut off"
    return None


STANDARD_KEYS = (
    "Google no longer accepts unrestricted standard keys, which begin with AIza: "
    "https://ai.google.dev/gemini-api/docs/api-key"
)
"""What may be behind the rejection of such a key, though Google's answer does not say so."""


def standard_key_hint(value: str, failure: str) -> str | None:
    """Give the sentence that explains the rejection of a standard key; None for other cases."""
    unexplained = failure in ("key_invalid", "unauthorized")
    return STANDARD_KEYS if unexplained and value.startswith("AIza") else None


def mask_url(text: str) -> str:
    """Replace user and password in the URL *text*, in front of the host or as an option.

    A wrong URL has passwords too: `/`, `#` and blanks in them that nobody encoded, or a scheme
    that is misspelt. So everything goes that stands between a scheme and the last `@`.
    """
    text = _PASSWORD.sub(r"\1[redacted]", text)
    before, _, host = text.rpartition("@")
    if ":" not in before and "//" not in before:
        return text
    scheme = _SCHEME.match(before)
    return f"{scheme[0] if scheme else ''}[redacted]@{host}"


def one_line(text: str) -> str:
    """Escape what moves the cursor, colors a terminal or begins a line."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def display(value: object) -> str:
    """Show *value* in an error message: as in JSON, without keys and passwords, in short."""
    if isinstance(value, list | tuple | set):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if value is not None and not isinstance(value, str | int | float):
        return f"a value of type {type(value).__name__}"
    value = mask_url(value) if isinstance(value, str) else value
    text = hide_secrets(json.dumps(value, ensure_ascii=False))
    text = text.encode("utf-8", "backslashreplace").decode()  # half a character is no text
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def hide_secrets(text: str) -> str:
    """Replace what may be a key, also one that was cut or copied badly, by `[a key]`.

    For texts about what people wrote by hand: letters and digits in a long and lively mixture are
    no word, in whichever case they arrive here.
    """
    return _RUN.sub(_word, _KEY_ANY_CASE.sub("[a key]", text))


def _word(run: re.Match[str]) -> str:
    return "[a key]" if len(_EDGE.findall(run[0])) > _MOST_EDGES else run[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that *name* was probably meant to be: ` Did you mean "x"?`."""
    import difflib  # noqa: PLC0415 - only needed where something is wrong already

    names = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f' Did you mean "{names[close[0]]}"?' if close else ""


def utc(moment: float) -> datetime:
    """Give finite epoch seconds as a time in UTC; the last of the calendar for what is beyond it.

    A text about a failure must not fail itself, however late a server says that it ends.
    """
    return datetime.fromtimestamp(min(max(moment, _FIRST), _LAST), UTC)
