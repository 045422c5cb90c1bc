"""Which store a key is in, and how a store is opened: ours by name, others by entry point."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.text import did_you_mean, display
from ..errors import ConfigError, KeyrotError, MissingExtraError, SecretError
from ..forks import after_fork
from ..keys_file import BUILT_STORES, GROUP, plugged_in
from .base import Secret, SecretStore
from .cache import SecretLocation
from .environ import read_environ
from .local import EnvStore, InlineStore

if TYPE_CHECKING:
    from ..config import Config, KeySpec

__all__ = [
    "LazyStore",
    "Stores",
    "open_store",
]

# A store that needs a library or a network: opened late, and again where it has to be ----------


Answers = Mapping[str, Secret | SecretError]


class LazyStore:
    """Pass questions on to the store that *opener* gives.

    A child after a fork opens one of its own: two processes on one connection would read each
    other's answers. A store that could not be opened is tried again by the next question.
    """

    def __init__(self, scheme: str, opener: Callable[[], SecretStore]) -> None:
        """Open nothing yet."""
        self.scheme = scheme
        self._opener = opener
        self._store: SecretStore | None = None
        self._lock = threading.Lock()
        after_fork(self, LazyStore._renew)

    def open(self) -> None:
        """Open the store, if that can be done now.

        Raises:
            ConfigError: A setting of the store is wrong, or its library is missing.
        """
        try:
            self._opened()
        except (KeyrotError, ImportError) as error:
            if not isinstance(error, SecretError):
                raise
        except Exception:  # noqa: S110 - said by the look-up that comes now, and tries again
            pass

    def place(self, key_id: str) -> str | None:
        """Return where a key is kept by default; None where the store does not say."""
        tell = getattr(self._store, "place", None)
        return str(tell(key_id)) if callable(tell) else None

    def resolve(self, refs: Mapping[str, str | None]) -> Answers:
        """Ask the store; see `SecretStore.resolve`.

        Raises:
            Exception: What the opener raises, or the store.
        """
        return self._opened().resolve(refs)

    def _opened(self) -> SecretStore:
        with self._lock:
            if self._store is None:
                self._store = self._opener()
            return self._store

    def _renew(self) -> None:
        self._lock, self._store = threading.Lock(), None

    def __repr__(self) -> str:
        return f"<secret store {self.scheme}>"


Opener = Callable[[Mapping[str, str]], SecretStore]


def open_store(uri: str, *, env_file: Path | None = None) -> SecretStore:
    """Open the secret store of a type (`env`) or of a place in it (`env://NAME`).

    Args:
        uri: Type or place.
        env_file: The `.env` to read; None: that of the working directory.

    Raises:
        ConfigError: If there is no such store, a setting of it is wrong, or its extra is not
            installed. A store that is out of reach is no error here.
    """
    scheme = uri.partition("://")[0].lower()
    env_file = env_file or Path(".env").absolute()
    if scheme == "env":
        return EnvStore(env_file)
    store = LazyStore(scheme, partial(_open, _opener(scheme), scheme, env_file))
    store.open()
    return store


def _opener(scheme: str) -> Callable[[], Opener]:
    """Find what opens a store; it is imported when it is called."""
    if scheme in BUILT_STORES:
        module = {"file": "local"}.get(scheme, scheme)
        return lambda: getattr(import_module(f"{__package__}.{module}"), f"open_{scheme}")
    others = plugged_in()
    if scheme in others:
        return others[scheme].load
    known = (*BUILT_STORES, *others)
    raise ConfigError(
        f"secret store: found {display(scheme)}; allowed: {', '.join(known)} (others plug in by "
        f"the entry point {GROUP}).{did_you_mean(scheme, known)}"
    )


def _open(find: Callable[[], Opener], scheme: str, env_file: Path) -> SecretStore:
    """Open a store.

    Raises:
        ConfigError: Without the frames of the store: their local variables hold the environment,
            and tools that report errors show them.
        Exception: What else the store raises.
    """
    problem: ConfigError
    try:
        return _found(find, scheme)(read_environ(scheme, env_file))
    except ConfigError as error:
        problem = error.with_traceback(None)
    except ImportError as error:
        problem = _cannot_be_imported(scheme, error)
    raise problem


def _found(find: Callable[[], Opener], scheme: str) -> Opener:
    """Import what opens a store."""
    try:
        return find()
    except AttributeError as error:  # an entry point that names what is not there
        problem = _cannot_be_imported(scheme, error)
    raise problem


def _cannot_be_imported(scheme: str, error: ImportError | AttributeError) -> ConfigError:
    if scheme not in BUILT_STORES:
        return ConfigError(f"secret store {scheme}, an entry point of {GROUP}: {error}")
    package = (error.name or "its library").partition(".")[0]
    wanted_by = f"the secret store {scheme}"
    return MissingExtraError(wanted_by=wanted_by, package=package, extra=scheme)


class Stores:
    """The stores of one pool, each opened once, when the first key is in it."""

    def __init__(self, env_file: Path) -> None:
        """Open nothing yet."""
        self._env_file = env_file
        self._open: dict[str, SecretStore] = {}

    def places(self, config: Config) -> dict[str, SecretLocation]:
        """Tell where the value of each key is kept, in the order of the pool.

        Raises:
            ConfigError: A store that a key names is not known, or cannot be opened.
        """
        given = {k: Secret(v.get_secret_value()) for k, v in config.inline.items()}
        inline = InlineStore(given)
        default = config.settings.secret_store
        return {
            key.key_id: SecretLocation(inline) if key.key_id in given else self._place(key, default)
            for key in config.keys
        }

    def _place(self, key: KeySpec, default: str) -> SecretLocation:
        scheme = key.secret.partition("://")[0] if key.secret else default
        if scheme not in self._open:
            self._open[scheme] = open_store(scheme, env_file=self._env_file)
        return SecretLocation(self._open[scheme], key.secret)
