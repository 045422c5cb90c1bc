"""Secret stores, and the cache of their values. A store's library is imported when it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Secret, SecretStore
from .cache import START_TIMEOUT_S, SecretCache, SecretLocation
from .registry import Stores, open_store

if TYPE_CHECKING:
    from ..settings import Config

__all__ = [
    "Secret",
    "SecretCache",
    "SecretLocation",
    "SecretStore",
    "Stores",
    "open_secret_cache",
    "open_store",
]


def open_secret_cache(
    config: Config, stores: Stores | None = None, start_timeout_s: float = START_TIMEOUT_S
) -> SecretCache:
    """Open the stores that the keys name, and look all keys up, within so many seconds.

    Raises:
        ConfigError: A store does not exist or cannot be opened. Missing values raise nothing.
    """
    stores = stores or Stores(config.env_file)
    return SecretCache(
        stores.locate(config),
        optional=[config.last_resort] if config.last_resort else [],
        ttl_s=config.settings.secrets_ttl_s,
        start_timeout_s=start_timeout_s,
    )
