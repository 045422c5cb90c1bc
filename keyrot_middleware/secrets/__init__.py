"""Where the values of keys come from; a store's library is imported when it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Secret, SecretStore
from .cache import SecretCache, SecretLocation
from .registry import Stores, open_store

if TYPE_CHECKING:
    from ..config import Config

__all__ = [
    "Secret",
    "SecretCache",
    "SecretLocation",
    "SecretStore",
    "Stores",
    "open_secret_cache",
    "open_store",
]


def open_secret_cache(config: Config, stores: Stores | None = None) -> SecretCache:
    """Open the stores that the keys name, each once, and look all keys up.

    Raises:
        ConfigError: If there is no such store. A key without a value raises nothing.
    """
    stores = stores or Stores(config.env_file)
    return SecretCache(
        stores.places(config),
        optional=[config.last_resort] if config.last_resort else [],
        ttl_s=config.settings.secrets_ttl_s,
    )
