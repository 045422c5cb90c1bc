"""What this process knows of the server's data set, and what it has counted in it.

The server numbers the changes of its counts in an *epoch*. If it returns to older data (a restored
snapshot, a replica that lagged), the number falls, and a new epoch begins; if it loses all data, a
new one begins too. Each process then reports what it has counted since that data was saved. To do
so, it keeps its latest requests with the number at which each was counted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ...forks import after_fork
from ..base import Counted, DataLoss, DataLostError

__all__ = ["DataEpoch", "Known"]

COUNTED_KEPT = 10_000
"""Requests that are kept: about 3 MB."""
EPOCHS_KEPT = 8
"""Earlier epochs whose data is recognized as older."""


class Known(NamedTuple):
    """What a process knows of the epoch, for the scripts."""

    epoch: str
    """Its id; empty before the first reply."""
    changes: int
    """The highest number that a reply had."""
    earlier: str
    """Ids of earlier epochs, between spaces."""


class _Entry:
    """A request or a cost, and in which changes it was counted: more than one after a loss."""

    __slots__ = ("changes", "counted")

    def __init__(self, counted: Counted, epoch: str, number: int) -> None:
        self.counted = counted
        self.changes: tuple[tuple[str, int], ...] = ((epoch, number),)

    def is_in(self, epoch: str, number: int) -> bool:
        """Return whether the data of an epoch has it, as it was at a number."""
        return any(one == epoch and at <= number for one, at in self.changes)


class DataEpoch:
    """The epoch of one pool. Safe for threads."""

    def __init__(self) -> None:
        """Start without knowing the epoch."""
        self._known = Known("", 0, "")
        self._entries: deque[_Entry] = deque(maxlen=COUNTED_KEPT)
        self._loss: DataLoss | None = None
        self._missing: list[_Entry] = []
        self._kept: list[_Entry] = []
        """The entries that the data of the loss has."""
        self._is_taken = False
        """The loss is being reported."""
        self._lock = threading.Lock()
        after_fork(self, DataEpoch._after_fork)

    @property
    def known(self) -> Known:
        """Return what scripts need to recognize older data."""
        return self._known

    def read(self, epoch: str, changes: int, counted: Counted | None = None) -> None:
        """Record the epoch of a reply, and the request that it has counted.

        Raises:
            DataLostError: Another reply has shown that this data is lost.
        """
        with self._lock:
            known = self._known
            if self._loss is not None or epoch != (known.epoch or epoch):
                raise DataLostError
            if changes > known.changes or not known.epoch:
                self._known = known._replace(epoch=epoch, changes=changes)
            if counted is not None:
                self._entries.append(_Entry(counted, epoch, changes))

    def record(self, epoch: str, number: int, counted: Iterable[Counted]) -> None:
        """Record what was counted in a change; it may be in another epoch than the known one."""
        with self._lock:
            self._entries.extend(_Entry(one, epoch, number) for one in counted)

    def find_loss(self, epoch: str, changes: int, kept_epoch: str, kept_changes: int) -> None:
        """Record that the server is in another epoch.

        Args:
            epoch: That epoch.
            changes: Its latest number.
            kept_epoch: Of the older data to which the server returned; `-` if it lost everything.
            kept_changes: The latest number in that data.
        """
        with self._lock:
            if epoch == self._known.epoch or (self._loss is not None and self._loss.epoch == epoch):
                return
            self._missing, self._kept = [], []
            for one in self._entries:
                is_kept = one.is_in(kept_epoch, kept_changes)
                (self._kept if is_kept else self._missing).append(one)
            is_known = f" {kept_epoch} " in f" {self._known.epoch} {self._known.earlier}"
            is_all = not is_known or len(self._missing) == COUNTED_KEPT
            counted = None if is_all else tuple(one.counted for one in self._missing)
            self._loss, self._is_taken = DataLoss(epoch, changes, counted), False

    def take_loss(self) -> DataLoss | None:
        """Return the data loss that was found, once; None if there is none."""
        with self._lock:
            if self._is_taken:
                return None
            self._is_taken = self._loss is not None
            return self._loss

    def accept(self, loss: DataLoss, changes: int) -> None:
        """Continue in the epoch of *loss*.

        Args:
            loss: What was missing in it is reported.
            changes: The number at which it was counted.
        """
        with self._lock:
            if self._loss is not loss:
                return
            for one in self._missing:
                one.changes += ((loss.epoch, changes),)
            for one in self._kept:
                one.changes += ((loss.epoch, 0),)
            earlier = [*self._known.earlier.split(), self._known.epoch][-EPOCHS_KEPT:]
            self._known = Known(loss.epoch, changes, f" {' '.join(earlier)} ")
            self._forget_loss()

    def _forget_loss(self) -> None:
        self._loss, self._is_taken, self._missing, self._kept = None, False, [], []

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._entries.clear()  # the parent reports them
        self._forget_loss()
