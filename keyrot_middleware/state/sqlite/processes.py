"""Which process has a lease, and whether that process is seen to be gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from itertools import count
from pathlib import Path

__all__ = ["LeaseIds"]

_PROC = Path("/proc")


class LeaseIds:
    """The ids of leases: `<place>.<pid>.<start>:<number>`.

    A place is one boot of a host, one namespace of process ids and one user: only there does a
    process id say anything. Where that cannot be found out, leases of dead processes run out.
    """

    def __init__(self, is_lost: Callable[[str], bool]) -> None:
        """Start with this process.

        Args:
            is_lost: Returns whether a lease of this process will never be settled.
        """
        self._is_lost = is_lost
        self.renew()

    def renew(self) -> None:
        """Begin anew, in a forked child."""
        pid = os.getpid()
        self._place, start = _place(), _start(pid)
        self._mine = f"{self._place}.{pid}.{start or os.urandom(6).hex()}"
        self._numbers = count(1)

    def __next__(self) -> str:
        """Return a new id."""
        return f"{self._mine}:{next(self._numbers)}"

    def is_gone(self, lease_id: str) -> bool:
        """Return whether the lease will never be settled, as far as can be seen from here."""
        process = lease_id.partition(":")[0]
        if process == self._mine:
            return self._is_lost(lease_id)
        place, _, rest = process.partition(".")
        pid, _, start = rest.partition(".")
        if not self._place or place != self._place or not pid.isdecimal():
            return False
        return _start(int(pid)) != start


def _place() -> str:
    """Return what tells places apart; empty if it cannot be found out."""
    with suppress(OSError):
        boot = (_PROC / "sys/kernel/random/boot_id").read_bytes()
        names = f"{os.readlink(_PROC / 'self/ns/pid')} {os.getuid()}".encode()
        if _start(os.getpid()):
            return blake2b(boot + names, digest_size=6).hexdigest()
    return ""


def _start(pid: int) -> str:
    """Return when a process started, in ticks since the boot; empty if there is no such process."""
    with suppress(OSError, IndexError):
        state, *fields = (
            (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        )
        if state not in "ZX":  # it is dead, and its parent has not noticed
            return fields[18]
    return ""
