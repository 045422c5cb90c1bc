"""Which store a key is in, and how a store is opened: ours by name, others by entry point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.text import nearest, shown
from ..errors import ConfigError, MissingExtraError
from ..schemes import BUILT_STORES, GROUP, plugged_in
from .base import Secret, SecretStore
from .env import EnvStore
from .environ import read_environ
from .handle import Handle
from .inline import InlineStore
from .ring import Place

if TYPE_CHECKING:
    from ..config import Config, KeySpec

__all__ = ["Stores", "open_store"]

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
    store = Handle(scheme, partial(_open, _opener(scheme), scheme, env_file))
    store.open()
    return store


def _opener(scheme: str) -> Callable[[], Opener]:
    """Find what opens a store; it is imported when it is called."""
    if scheme in BUILT_STORES:
        return lambda: getattr(import_module(f"{__package__}.{scheme}"), f"open_{scheme}")
    others = plugged_in()
    if scheme in others:
        return others[scheme].load
    known = (*BUILT_STORES, *others)
    raise ConfigError(
        f"secret store: found {shown(scheme)}; allowed: {', '.join(known)} (others plug in by the "
        f"entry point {GROUP}).{nearest(scheme, known)}"
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

    def places(self, config: Config) -> dict[str, Place]:
        """Tell where the value of each key is kept, in the order of the pool.

        Raises:
            ConfigError: A store that a key names is not known, or cannot be opened.
        """
        given = {k: Secret(v.get_secret_value()) for k, v in config.inline.items()}
        inline = InlineStore(given)
        default = config.settings.secret_store
        return {
            key.key_id: Place(inline) if key.key_id in given else self._place(key, default)
            for key in config.keys
        }

    def _place(self, key: KeySpec, default: str) -> Place:
        scheme = key.secret.partition("://")[0] if key.secret else default
        if scheme not in self._open:
            self._open[scheme] = open_store(scheme, env_file=self._env_file)
        return Place(self._open[scheme], key.secret)
