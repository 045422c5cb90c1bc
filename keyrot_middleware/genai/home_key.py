"""The home key of a client: its own, or one of the pool."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..adapters.pooled_calls import is_key
from ..adapters.urls import origin_from_url
from ..core.model import EXPRESS_POOL_KEY, GEMINI_API, POOL_KEY, VERTEX_EXPRESS, Platform
from ..settings import AllowedOrigins
from .call_info import option

__all__ = ["placeholder_for", "platform_of"]


def placeholder_for(given: Mapping[str, Any], allowed: AllowedOrigins) -> str | None:
    """Return the placeholder of a client made with these arguments; None if it needs no home key.

    Args:
        given: The arguments of the api client's constructor, by name.
        allowed: Where the pool's keys may go.
    """
    key = given.get("api_key")
    others = (given.get(name) for name in ("credentials", "project", "location"))
    if is_key(key) or any(others):
        return None  # a key of its own, Vertex AI, or arguments that the SDK refuses
    platform = VERTEX_EXPRESS if _vertex(given.get("vertexai")) else GEMINI_API
    if key != POOL_KEY and is_key(_env_key()):
        return None
    if key != POOL_KEY and platform == VERTEX_EXPRESS and _has_own_auth():
        return None
    base_url = option(given.get("http_options"), "base_url")
    if base_url and origin_from_url(base_url) not in allowed[platform]:
        return None
    return POOL_KEY if platform == GEMINI_API else EXPRESS_POOL_KEY


def platform_of(client: Any) -> Platform | None:
    """Return the platform of an api client; None for Vertex AI with a project or credentials."""
    if not client.vertexai:
        return GEMINI_API
    others = (client.project, client.location, client._credentials)
    return VERTEX_EXPRESS if client.api_key and not any(others) else None


def _env_key() -> str | None:
    """Read the variables as the SDK does: GOOGLE_API_KEY first."""
    return os.environ.get("GOOGLE_API_KEY") or os.environ.get("GEMINI_API_KEY")


def _has_own_auth() -> bool:
    """Return whether a client of Vertex AI has no placeholder in the environment, or ignores it."""
    others = ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION")
    return _env_key() != POOL_KEY or any(os.environ.get(name) for name in others)


def _vertex(asked: Any) -> bool:
    """Return whether the SDK will use Vertex AI, by its argument and its variables."""
    if asked is not None:
        return bool(asked)
    for name in ("GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI"):
        if (value := os.environ.get(name)) is not None:
            return value.lower() in ("true", "1")
    return False
