"""The headers in which a request carries a key."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

KEY_HEADER = "x-goog-api-key"
BEARER_HEADER = "authorization"


def has_foreign_key(headers: Mapping[str, Any] | None, own: tuple[str, ...]) -> bool:
    """Return whether the caller has set a key header other than the client's own key."""
    if not headers:
        return False
    for name in key_header_names(tuple(headers)):
        if name.lower() == KEY_HEADER and headers[name].strip() not in own:
            return True
    return False


@lru_cache(maxsize=256)
def key_header_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Choose the headers that can carry a key; programs use few sets of names, each many times."""
    return tuple(name for name in names if name.lower() in (KEY_HEADER, BEARER_HEADER))
