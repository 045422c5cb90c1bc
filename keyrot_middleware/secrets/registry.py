"""How stores are opened: built-in ones by name, others by entry point."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.text import did_you_mean, display
from ..errors import ConfigError, MissingExtraError, SecretError
from ..forks import after_fork
from ..keys_file import BUILT_STORES, GROUP, entry_point_stores
from .base import Secret, SecretStore
from .cache import SecretLocation
from .local import EnvStore, InlineStore, read_env_safely

if TYPE_CHECKING:
    from ..config import Config
    from ..keys_file import KeySpec


class _OpenedStore:
    """A store that is opened again in a forked child, and at a look-up after opening has failed.

    Two processes on one connection would read each other's responses.
    """

    def __init__(self, scheme: str, opener: Callable[[], SecretStore]) -> None:
        """Open the store, if it is reachable now; *opener* opens it.

        Raises:
            ConfigError: A setting of the store is wrong, or its library is missing.
        """
        self.scheme = scheme
        self._opener = opener
        self._store: SecretStore | None = None
        self._reset()
        after_fork(self, _OpenedStore._reset)
        try:
            self._opened()
        except ConfigError:
            raise
        except Exception:  # noqa: S110 - the look-up that follows tries again and reports it
            pass

    def place(self, key_id: str) -> str | None:
        """Return where a key is kept by default; None: the store does not say."""
        place = getattr(self._store, "place", None)
        return str(place(key_id)) if callable(place) else None

    def resolve(self, refs: Mapping[str, str | None]) -> Mapping[str, Secret | SecretError]:
        """Look the keys up in the store; see `SecretStore.resolve`."""
        return self._opened().resolve(refs)

    def _opened(self) -> SecretStore:
        with self._lock:
            if self._store is None:
                self._store = self._opener()
            return self._store

    def _reset(self) -> None:
        self._lock, self._store = threading.Lock(), None


Opener = Callable[[Mapping[str, str]], SecretStore]


def open_store(uri: str, *, env_file: Path | None = None) -> SecretStore:
    """Open the secret store of a scheme (`env`) or of a place (`env://NAME`).

    Args:
        uri: Scheme or place.
        env_file: The `.env` to read; None: the one in the working directory.

    Raises:
        ConfigError: There is no such store, a setting of it is wrong, or its extra is not
            installed. A store that is not reachable raises nothing.
    """
    scheme = uri.partition("://")[0].lower()
    env_file = env_file or Path(".env").absolute()
    if scheme == "env":
        return EnvStore(env_file)
    return _OpenedStore(scheme, partial(_open, _opener(scheme), scheme, env_file))


def _opener(scheme: str) -> Callable[[], Opener]:
    """Return a function that imports what opens a store."""
    if scheme in BUILT_STORES:
        module = {"file": "local"}.get(scheme, scheme)
        return lambda: getattr(import_module(f"{__package__}.{module}"), f"open_{scheme}")
    others = entry_point_stores()
    if scheme in others:
        return others[scheme].load
    known = (*BUILT_STORES, *others)
    raise ConfigError(
        f"secret store: found {display(scheme)}; allowed: {', '.join(known)} (others plug in by "
        f"the entry point {GROUP}).{did_you_mean(scheme, known)}"
    )


def _open(find: Callable[[], Opener], scheme: str, env_file: Path) -> SecretStore:
    """Open a store by the environment, over the variables of `.env` that begin with KEYROT_.

    Raises:
        ConfigError: Without the frames of the store: their local variables hold the environment,
            and error reporters show them.
        Exception: What else the store raises.
    """
    problem: ConfigError
    in_file = read_env_safely(env_file).items()
    ours = {name: value for name, value in in_file if name.startswith("KEYROT_") and value}
    try:
        opener = find()
    except (ImportError, AttributeError) as error:  # or the entry point names what is not there
        problem = _import_error(scheme, error)
    else:
        try:
            return opener({**ours, **os.environ})
        except ConfigError as error:
            problem = error.with_traceback(None)
        except ImportError as error:
            problem = _import_error(scheme, error)
    raise problem


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
