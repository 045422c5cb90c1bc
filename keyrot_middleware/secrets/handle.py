"""A store that needs a library or a network: opened late, and again where it has to be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from ..errors import KeyrotError, SecretError
from ..forks import after_fork
from .base import Secret, SecretStore

__all__ = ["Handle"]

Answers = Mapping[str, Secret | SecretError]


class Handle:
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
        after_fork(self, Handle._renew)

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
        """Tell where a key is unless told otherwise; None where the store does not say."""
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
