"""Who we are to Vault at the moment: renewed or logged in for anew before it is too late."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .vault_faults import Fault, Kind
from .vault_login import Identity, log_in, renew
from .vault_settings import VaultSettings

__all__ = ["Desk"]


class Desk:
    """Hand out the identity; one thread logs in, and the others wait for it."""

    def __init__(self, settings: VaultSettings, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self._held: Identity | None = None
        self._lock = threading.Lock()

    @property
    def held(self) -> Identity | None:
        """The identity at hand; it may have expired."""
        return self._held

    def identity(self) -> Identity | Fault:
        """Give an identity that should be good: renewed or new where the old one is not."""
        with self._lock:
            held, now = self._held, self._clock()
            if held is None or (held.over_at is not None and now >= held.over_at):
                return self._keep(log_in(self._settings, self._clock))
            if held.renew_at is None or now < held.renew_at:
                return held
            newer = self._prolonged(held)
            # Where that failed, the old one is good for some time yet.
            return held if isinstance(newer, Fault) else self._keep(newer)

    def another(self, refused: Identity) -> Identity | Fault | None:
        """Give another identity than the one that was refused; None: there is no other."""
        with self._lock:
            if self._held is not None and self._held is not refused:
                return self._held  # another thread was here first
            newer = log_in(self._settings, self._clock)
            if isinstance(newer, Identity) and newer.token == refused.token:
                return None
            return self._keep(newer)

    def _keep(self, newer: Identity | Fault) -> Identity | Fault:
        if isinstance(newer, Identity):
            self._held = newer
        return newer

    def _prolonged(self, held: Identity) -> Identity | Fault:
        """Renew the token, or log in anew where it cannot be renewed."""
        newer: Identity | Fault = Fault(Kind.REFUSED, "it cannot be renewed")
        if held.renewable:
            newer = renew(self._settings, self._clock, held)
        gone = isinstance(newer, Fault) and newer.kind is not Kind.DOWN
        if gone and self._settings.login.mount is not None:
            newer = log_in(self._settings, self._clock)
        return newer
