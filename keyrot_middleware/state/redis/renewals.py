"""A worker shows that it lives: the places of its calls under way are renewed in time (ADR 0021).

One thread for all of a process, so that neither a loop that is blocked nor a call that takes long
loses a place. It is there only while a lease holds one.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence

from ...core.model import Lease
from ...forks import after_fork
from ..base import Holder, HolderRef, is_abandoned
from . import codec

__all__ = ["Renewals"]

_log = logging.getLogger("keyrot_middleware")

AT_ONCE = 500
"""Places in one script: a few milliseconds of the server's time."""


class Renewals:
    """The leases of this process that hold a place, and the thread that renews them."""

    def __init__(self, renew: Callable[[Sequence[str]], object], lease_s: float) -> None:
        """Hold nothing yet.

        Args:
            renew: Renews places: of each its key's record and its lease.
            lease_s: How long a place is kept without being renewed.
        """
        self._renew = renew
        self._every_s = min(lease_s / 3, threading.TIMEOUT_MAX)
        self._held: dict[str, tuple[str, HolderRef]] = {}
        """By lease the record of its key, and who holds it."""
        self._closed = False
        self._begin()
        after_fork(self, Renewals._begin)

    def _begin(self) -> None:
        """Begin anew, in a forked child: what is under way is its parent's."""
        self._held = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._running = False

    def hold(self, lease: Lease, holder: Holder | None) -> None:
        """Renew the place of *lease*, if it has one, until it is dropped or *holder* is gone."""
        reservation = lease.reservation
        if not isinstance(reservation, codec.RedisReservation) or not reservation.held:
            return
        with self._lock:
            is_alive = None if holder is None else weakref.ref(holder)
            self._held[reservation.lease_id] = (lease.record or lease.key_id, is_alive)
            if not self._running:
                thread = threading.Thread(target=self._run, name="keyrot-leases", daemon=True)
                thread.start()
                self._running = True

    def drop(self, lease: Lease) -> None:
        """Renew *lease* no more: it is settled."""
        reservation = lease.reservation
        if isinstance(reservation, codec.RedisReservation) and reservation.held:
            with self._lock:
                self._held.pop(reservation.lease_id, None)
                if self._closed and not self._held:
                    self._wake.set()

    def close(self) -> None:
        """End the thread as soon as no call is under way any more."""
        self._closed = True
        self._wake.set()

    def _run(self) -> None:
        pause_s = self._every_s
        while True:
            self._wake.wait(pause_s)
            self._wake.clear()
            places = self._places()
            if not places:
                return
            try:
                for start in range(0, len(places), 2 * AT_ONCE):
                    self._renew(places[start : start + 2 * AT_ONCE])
                pause_s = self._every_s
            except Exception as error:  # whatever it is, the next turn may do better
                _log.debug("the places of calls under way could not be renewed: %s", error)
                pause_s = self._every_s / 5

    def _places(self) -> list[str]:
        """List what is to be renewed, by key and lease; with nothing to do the thread is over."""
        with self._lock:
            for lease_id in [one for one, (_, holder) in self._held.items() if self._gone(holder)]:
                del self._held[lease_id]
            self._running = bool(self._held)
            return [word for one, (record, _) in self._held.items() for word in (record, one)]

    def _gone(self, holder: HolderRef) -> bool:
        # Of who gave no holder, nobody can tell after close() whether it will ever settle.
        return (self._closed and holder is None) or is_abandoned(holder)
