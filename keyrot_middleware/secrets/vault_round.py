"""One look-up of several paths: it may log in again once, and ends at the first outage."""

from __future__ import annotations

from .vault_desk import Desk
from .vault_faults import Fault, Kind
from .vault_login import Identity
from .vault_paths import Fields, Shelf
from .vault_settings import VaultSettings
from .vault_wire import Line

__all__ = ["Round"]


class Round:
    """Read paths one after the other, from one thread; a context manager that ends in closing."""

    def __init__(
        self,
        settings: VaultSettings,
        desk: Desk,
        shelf: Shelf,
        identity: Identity,
        *,
        may_log_in: bool,
    ) -> None:
        self._settings, self._desk, self._shelf = settings, desk, shelf
        self._who, self._may_log_in = identity, may_log_in
        self._line = Line(settings, identity.token)
        self._outage: Fault | None = None

    def read(self, path: str) -> Fields | Fault:
        """Read one path, as another identity where this one is refused."""
        if self._outage:
            return self._outage
        found = self._shelf.read(self._line, path)
        why_not = None
        if isinstance(found, Fault) and found.kind is Kind.DENIED:
            why_not = self._log_in_again()
            if why_not is None:
                found = self._shelf.read(self._line, path)
        if isinstance(found, Fault):
            return self._told(found, why_not)
        return found

    def _log_in_again(self) -> str | None:
        """Become another identity; tell why not, empty where there is none to become."""
        if not self._may_log_in:
            return ""
        self._may_log_in = False
        newer = self._desk.another(self._who)
        if newer is None:
            return ""
        if isinstance(newer, Fault):
            return f"; logging in again failed: {newer.text}"
        self._who = newer
        self._line.close()
        self._line = Line(self._settings, newer.token)
        return None

    def _told(self, fault: Fault, why_not: str | None) -> Fault:
        if fault.kind is Kind.DOWN:
            self._outage = fault
        if fault.kind is not Kind.DENIED:
            return fault
        who = f"{self._settings.server} denies {self._who.name}"
        return Fault(Kind.DENIED, f"{who} to read {fault.text}{why_not or ''}")

    def __enter__(self) -> Round:
        return self

    def __exit__(self, *error: object) -> None:
        self._line.close()
