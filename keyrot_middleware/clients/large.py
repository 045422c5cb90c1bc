"""Large bodies of JSON: what is read of them, so that none holds an event loop for long.

Parsing holds the interpreter's lock, so it would hold the loop from another thread too. Long texts
are cut before it and long lists of numbers are counted: neither is needed. What has more than a
million values even then is not parsed at all.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

_LARGE = 65_536
"""Bytes from which on a body is shortened before it is parsed."""
_MOST_VALUES = 1_000_000
"""So many are parsed in a few tenths of a second."""
_LONG = 8_192, 512
"""Bytes of a long text; where its like leave too many values, of a shorter one."""
_NUMBERS = 8
"""A list of numbers is long from an eighth of that on."""
_BEGINNING = 128
_MARKS = frozenset({b":", b",", b"]", b"}"})
"""What follows the end of a text."""
_REST = re.compile(rb'(?:[^"\\]++|\\.)*+(?=")', re.DOTALL)
"""Of a text, up to its end."""
_ENDS = 65_536
"""Bytes at both ends that are searched for what a body says that is not parsed."""
_NAMED = re.compile(r'"(model|stream|store|background)"\s*:\s*(?:"([^"\\]{1,256})"|true)')


def parse_body(content: bytes) -> dict[str, Any]:
    """Return the JSON object that the body of a request is, shortened; empty if it is none.

    Of one that is not parsed there is one text of its size, so that its tokens are estimated, and
    its model and switches, if they stand at its beginning or its end. Lost are the stored things
    that it names, and which conversation it continues.
    """
    if content.lstrip()[:1] != b"{":
        return {}
    short = shortened(content)
    if short is None:
        ends = _ends(content).decode("utf-8", "replace")
        named = {name: text or True for name, text in _NAMED.findall(ends)}
        return {**named, "input": f"\0{len(content)}"}
    try:
        body = json.loads(short.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def text_of(content: bytes) -> tuple[str, bool]:
    """Return a body as text, without the long texts of a large one, and whether that is all of it.

    Of one that is not to be parsed it is the beginning and the end, where most have their usage.
    """
    short = shortened(content)
    text = _ends(content) if short is None else short
    return text.decode("utf-8", "replace"), short is not None


def _ends(content: bytes) -> bytes:
    """Return beginning and end of a body, which together are no JSON."""
    return b"\0".join((content[:_ENDS], content[-_ENDS:]))


def shortened(content: bytes) -> bytes | None:
    """Return a body without its long texts and lists of numbers; None: it is not to be parsed.

    Each text has its beginning, a NUL, and its size in UTF-8, and a list of numbers is a text of
    four bytes for each; see `providers.base.text_size`.
    """
    if len(content) < _LARGE:
        return content
    for longest in _LONG:
        content = _without_long(content, longest)
        if not is_vast(content):
            return content
    return None


def is_vast(content: bytes | bytearray) -> bool:
    """Return whether a body may have more values than are parsed."""
    if len(content) <= _MOST_VALUES:
        return False
    return content.count(b",") + content.count(b"[") + content.count(b"{") > _MOST_VALUES


def _without_long(content: bytes, longest: int) -> bytes:
    parts, done, begin = list[bytes](), 0, 0
    while begin < len(content):
        quote = content.rfind(b'"', begin, begin + longest)
        if quote < 0:
            quote = content.find(b'"', begin + longest)
            what = _follows(content, begin)
            if what == "text" and content[quote - 1 : quote] == b"\\":
                rest = _REST.match(content, begin)
                quote = rest.end() if rest else -1
            end = len(content) if quote < 0 else quote
            if what == "values":
                parts += (content[done:begin], _counted(content[begin:end], longest // _NUMBERS))
                done = end
            elif what == "text" and quote >= 0:
                parts += (content[done:begin], _cut(content, begin, end))
                done = end
            quote = end
        begin = quote + 1
    return b"".join((*parts, content[done:]))


def _follows(content: bytes, begin: int) -> Literal["text", "values", ""]:
    """Return what follows the quote before a place; empty where that is not certain."""
    before, behind = content[begin - 2 : begin - 1], content[begin : begin + 2].lstrip()[:1]
    if begin == 0 or (behind in _MARKS and before != b"\\"):
        return "values"
    return "text" if before in (b":", b" ", b"[", b",") else ""


def _cut(content: bytes, begin: int, end: int) -> bytes:
    """Return the beginning of a text and its size."""
    size = end - begin
    if content.find(b"\\", begin, end) >= 0:
        escapes = content.count(b"\\", begin, end) - content.count(rb"\\", begin, end)
        size -= escapes + 2 * content.count(b"\\u", begin, end)
    return content[begin : begin + _BEGINNING].partition(b"\\")[0] + rb"\u0000%d" % size


def _counted(content: bytes, longest: int) -> bytes:
    """Return what stands between two texts, with the size of each long list of numbers.

    A list is one of numbers if its first item is one, and nothing in it is a list or an object.
    """
    parts, done = list[bytes](), 0
    for opening in _LISTS(content) if content.count(b"[") <= _MOST_LISTS else ():
        begin, end = opening.start() + 1, content.find(b"]", opening.start())
        end = len(content) if end < 0 else end  # a text follows
        if end - begin < longest or content.find(b"[", begin, end) >= 0:
            continue
        if content.find(b"{", begin, end) < 0:
            numbers = content[begin:end].rstrip()
            comma = b"," if numbers.endswith(b",") else b""
            size = 4 * (numbers.count(b",") + (not comma))
            parts += (content[done:begin], rb'"\u0000%d"%b' % (size, comma))
            done = end
    return b"".join((*parts, content[done:]))


_LISTS = re.compile(rb"\[\s*-?\d").finditer
_MOST_LISTS = 200_000
"""Of more none is long enough to matter."""
