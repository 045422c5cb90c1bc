"""HTML pages in place of an answer: whether a text is one, and what it shows."""

from __future__ import annotations

import re
from html import unescape

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
