"""The headers in which a request carries a key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

__all__ = [
    "BEARER_HEADER",
    "KEY_HEADER",
    "has_foreign_key",
    "key_header_names",
    "key_headers",
    "raw_key_headers",
]

KEY_HEADER = "x-goog-api-key"
BEARER_HEADER = "authorization"
_RAW_NAMES = frozenset({KEY_HEADER.encode(), BEARER_HEADER.encode()})


def has_foreign_key(headers: Mapping[str, Any] | None, own: tuple[str, ...]) -> bool:
    """Return whether the caller has set a key header other than the client's own key."""
    if not headers:
        return False
    for name in key_header_names(tuple(headers)):
        if name.lower() == KEY_HEADER and headers[name].strip() not in own:
            return True
    return False


def key_headers(headers: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return the headers that can carry a key."""
    return [(name, text) for name, text in headers if name.lower() in (KEY_HEADER, BEARER_HEADER)]


def raw_key_headers(headers: Any) -> list[tuple[str, str]]:
    """Return the headers of httpx that can carry a key, their names in lower case.

    Only these are decoded: all headers, as httpx has them, take ten times as long.
    """
    return [
        (name.lower().decode("ascii"), text.decode("utf-8", "replace"))
        for name, text in headers.raw
        if name.lower() in _RAW_NAMES
    ]


@lru_cache(maxsize=256)
def key_header_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Choose the headers that can carry a key; programs use few sets of names, each many times."""
    return tuple(name for name in names if name.lower() in (KEY_HEADER, BEARER_HEADER))
