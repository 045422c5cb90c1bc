"""Renews the leases of calls in flight that count in `max_concurrency` (ADR 0021).

One thread per process, so that neither a blocked event loop nor a long call loses its lease. It
runs only while there is a lease to renew.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ..core.model import Lease
from ..forks import after_fork
from .base import Holder, HolderRef, is_abandoned

__all__ = ["LeaseRenewals"]

_log = logging.getLogger("keyrot_middleware")

LEASES_AT_ONCE = 500
"""Leases in one script or transaction: a few milliseconds."""


class LeaseRenewals:
    """The leases of this process that are renewed, and the thread that renews them."""

    def __init__(self, renew: Callable[[Sequence[str]], object], lease_s: float) -> None:
        """Start without leases.

        Args:
            renew: Renews leases, passed as alternating records of keys and lease ids.
            lease_s: How long a lease is valid without renewal, seconds.
        """
        self._renew = renew
        self._every_s = min(lease_s / 3, threading.TIMEOUT_MAX)
        self._leases: dict[str, tuple[str, HolderRef]] = {}
        """By lease id: the record of its key, and the holder."""
        self._closed = False
        self._begin()
        after_fork(self, LeaseRenewals._begin)

    def _begin(self) -> None:
        """Drop all leases, also in a forked child: they are its parent's."""
        self._leases = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        """It sets this to None when it ends; if it died, the next lease starts another one."""

    def add(self, lease: Lease, holder: Holder | None) -> None:
        """Renew *lease*, if it counts in `max_concurrency`, until removed or *holder* is gone."""
        reservation: Any = lease.reservation
        if not getattr(reservation, "counted", False):
            return
        with self._lock:
            is_alive = None if holder is None else weakref.ref(holder)
            self._leases[reservation.lease_id] = (
                lease.record or lease.key_id,
                is_alive,
            )
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="keyrot-leases", daemon=True)
                self._thread.start()

    def remove(self, lease: Lease) -> None:
        """Stop renewing *lease*: it is settled."""
        reservation: Any = lease.reservation
        if getattr(reservation, "counted", False):
            with self._lock:
                self._leases.pop(reservation.lease_id, None)
                if self._closed and not self._leases:
                    self._wake.set()

    def close(self) -> None:
        """End the thread when no call is in flight any more."""
        self._closed = True
        self._wake.set()

    def _run(self) -> None:
        pause_s = self._every_s
        while True:
            self._wake.wait(pause_s)
            self._wake.clear()
            leases = self._due()
            if not leases:
                return
            try:
                for start in range(0, len(leases), 2 * LEASES_AT_ONCE):
                    self._renew(leases[start : start + 2 * LEASES_AT_ONCE])
                pause_s = self._every_s
            except Exception as error:  # the next renewal may succeed
                _log.debug("the leases of calls in flight could not be renewed: %s", error)
                pause_s = self._every_s / 5

    def _due(self) -> list[str]:
        """Return alternating records and lease ids to renew; without any the thread ends."""
        with self._lock:
            for lease_id in [
                one for one, (_, holder) in self._leases.items() if self._is_over(holder)
            ]:
                del self._leases[lease_id]
            if not self._leases:
                self._thread = None
            return [word for one, (record, _) in self._leases.items() for word in (record, one)]

    def _is_over(self, holder: HolderRef) -> bool:
        # Without a holder it is unknown after close() whether the lease will ever be settled.
        return (self._closed and holder is None) or is_abandoned(holder)
