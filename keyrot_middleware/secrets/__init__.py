"""Where the values of keys come from; a store's library is imported when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.text import nearest, shown
from ..errors import ConfigError
from .base import Secret, SecretStore
from .inline import InlineStore
from .ring import Place, Ring

if TYPE_CHECKING:
    from ..config import Config, KeySpec

__all__ = ["Place", "Ring", "Secret", "SecretStore", "open_ring", "open_store"]


def _open_env(env_file: Path | None) -> SecretStore:
    from .env import EnvStore  # noqa: PLC0415 - each store is imported when it is opened

    return EnvStore(env_file)


_STORES = {"env": _open_env}


def open_store(uri: str, *, env_file: Path | None = None) -> SecretStore:
    """Open the secret store of a type (`env`) or of a place in it (`env://NAME`).

    Args:
        uri: Type or place.
        env_file: The `.env` to read; None: that of the working directory.

    Raises:
        ConfigError: If there is no such store.
    """
    scheme = uri.partition("://")[0].lower()
    if scheme not in _STORES:
        raise ConfigError(
            f"secret store: found {shown(scheme)}; allowed: {', '.join(_STORES)}."
            f"{nearest(scheme, _STORES)}"
        )
    return _STORES[scheme](env_file)


def open_ring(config: Config) -> Ring:
    """Open the stores that the keys name, each once, and look all keys up.

    Raises:
        ConfigError: If there is no such store. A key without a value raises nothing.
    """
    inline = InlineStore({k: Secret(v.get_secret_value()) for k, v in config.inline.items()})
    schemes = {_scheme(key, config) for key in config.keys}
    stores = {name: open_store(name, env_file=config.env_file) for name in sorted(schemes)}
    return Ring(
        {
            key.key_id: Place(inline)
            if key.key_id in config.inline
            else Place(stores[_scheme(key, config)], key.secret)
            for key in config.keys
        },
        optional=[config.last_resort] if config.last_resort else [],
    )


def _scheme(key: KeySpec, config: Config) -> str:
    return key.secret.partition("://")[0] if key.secret else config.settings.secret_store
