"""The home key of a client: its own, or one of the pool."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from ..core.model import POOL_KEY
from .call_info import option, origin_from_url

__all__ = ["fingerprint", "is_key", "needs_home"]

_SALT = os.urandom(16)


def needs_home(given: Mapping[str, Any], origins: Collection[str]) -> bool:
    """Return whether a client made with these arguments needs the pool's key as home key.

    Args:
        given: The arguments of the api client's constructor, by name.
        origins: Those that may have the pool's keys.
    """
    key = given.get("api_key")
    others = (given.get(name) for name in ("credentials", "project", "location"))
    if is_key(key) or any(others) or _vertex(given.get("vertexai")):
        return False  # a key of its own, Vertex AI, or arguments that the SDK refuses
    if key != POOL_KEY and is_key(_env_key()):
        return False
    base_url = option(given.get("http_options"), "base_url")
    return not base_url or origin_from_url(base_url) in origins


def is_key(key: Any) -> bool:
    """Return whether *key* is a key, neither empty nor the placeholder."""
    return isinstance(key, str) and key.strip() not in ("", POOL_KEY)


@lru_cache(maxsize=256)
def fingerprint(key: str) -> str:
    """Return a label for a key outside the pool; it does not reveal the key."""
    return blake2b(key.encode(), digest_size=4, key=_SALT).hexdigest()


def _env_key() -> str | None:
    """Read the variables as the SDK does: GOOGLE_API_KEY first."""
    return os.environ.get("GOOGLE_API_KEY") or os.environ.get("GEMINI_API_KEY")


def _vertex(asked: Any) -> bool:
    """Return whether the SDK will use Vertex AI, by its argument and its variables."""
    if asked is not None:
        return bool(asked)
    for name in ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI"):
        if (value := os.environ.get(name)) is not None:
            return value.lower() in ("true", "1")
    return False
