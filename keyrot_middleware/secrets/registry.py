"""How stores are opened: built-in ones by name, others by entry point."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.text import did_you_mean, display
from ..errors import ConfigError, MissingExtraError
from ..keys_file import BUILT_STORES, GROUP, entry_point_stores
from .base import Secret, SecretStore
from .cache import SecretLocation
from .local import EnvStore, InlineStore, read_env_safely

if TYPE_CHECKING:
    from ..keys_file import KeySpec
    from ..settings import Config


def open_store(uri: str, *, env_file: Path | None = None) -> SecretStore:
    """Open the secret store of a scheme (`env`) or of a place (`env://NAME`).

    Args:
        uri: Scheme or place.
        env_file: The `.env` to read; None: the one in the working directory.

    Raises:
        ConfigError: There is no such store, a setting of it is wrong, or its extra is not
            installed. A store of ours that is not reachable raises nothing.
    """
    scheme = uri.partition("://")[0].lower()
    env_file = env_file or Path(".env").absolute()
    found = EnvStore(env_file) if scheme == "env" else _open(scheme, env_file)
    if isinstance(found, ConfigError):
        raise found
    return found


def _open(scheme: str, env_file: Path) -> SecretStore | ConfigError:
    """Return a store, or an error without frames: their local variables hold the environment."""
    try:
        opener = _opener(scheme)
    except (ImportError, AttributeError) as error:  # or the entry point names what is not there
        return _import_error(scheme, error)
    try:
        store: SecretStore = opener(_environ(env_file))
    except ConfigError as error:
        return error.with_traceback(None)
    except ImportError as error:
        return _import_error(scheme, error)
    except Exception as error:
        return ConfigError(f"the secret store {scheme} cannot be opened: {type(error).__name__}")
    return store


def _opener(scheme: str) -> Callable[[Mapping[str, str]], SecretStore]:
    """Import the function that opens a store."""
    opener: Callable[[Mapping[str, str]], SecretStore]
    others = entry_point_stores()
    if scheme in BUILT_STORES:
        module = {"file": "local"}.get(scheme, scheme)
        opener = getattr(import_module(f"{__package__}.{module}"), f"open_{scheme}")
    elif scheme in others:
        opener = others[scheme].load()
    else:
        known = (*BUILT_STORES, *others)
        raise ConfigError(
            f"secret store: found {display(scheme)}; allowed: {', '.join(known)} (others plug in "
            f"by the entry point {GROUP}).{did_you_mean(scheme, known)}"
        )
    return opener


def _environ(env_file: Path) -> dict[str, str]:
    """Return the environment, over the variables of `.env` that begin with KEYROT_."""
    in_file = read_env_safely(env_file).items()
    return {n: v for n, v in in_file if n.startswith("KEYROT_") and v} | os.environ


def _import_error(scheme: str, error: ImportError | AttributeError) -> ConfigError:
    if scheme not in BUILT_STORES:
        return ConfigError(f"secret store {scheme}, an entry point of {GROUP}: {error}")
    package = (error.name or "its library").partition(".")[0]
    wanted_by = f"the secret store {scheme}"
    return MissingExtraError(wanted_by=wanted_by, package=package, extra=scheme)


class Stores:
    """The stores of one pool; each is opened once, for its first key."""

    def __init__(self, env_file: Path) -> None:
        """Open no store yet."""
        self._env_file = env_file
        self._open: dict[str, SecretStore] = {}

    def locate(self, config: Config) -> dict[str, SecretLocation]:
        """Return where the value of each key is kept, in the order of the pool.

        Raises:
            ConfigError: A store that a key names does not exist or cannot be opened.
        """
        given = {k: Secret(v.get_secret_value()) for k, v in config.inline.items()}
        inline = InlineStore(given)
        default = config.settings.secret_store
        return {
            key.key_id: SecretLocation(inline)
            if key.key_id in given
            else self._location(key, default)
            for key in config.keys
        }

    def _location(self, key: KeySpec, default: str) -> SecretLocation:
        scheme = key.secret.partition("://")[0] if key.secret else default
        if scheme not in self._open:
            self._open[scheme] = open_store(scheme, env_file=self._env_file)
        return SecretLocation(self._open[scheme], key.secret)
