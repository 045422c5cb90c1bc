"""What hides secrets in texts: keys behind escapes, and passwords in URLs."""

from __future__ import annotations

import re
from collections.abc import Callable

_SCHEME = re.compile(r"\s*[a-z][a-z0-9+.-]*:/+", re.IGNORECASE)
_PASSWORD = re.compile(r"((?:password|username)=)[^&]*", re.IGNORECASE)

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
