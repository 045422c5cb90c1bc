"""Shortlists as acquire.lua takes them: the names of all records are made here, and once.

In the script they would have to be made for every call, at half of its time.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ...core.model import NO_LIMITS, Candidate, Lease
from ...core.roster import Shortlist
from .codec import text

__all__ = ["Offers"]

MADE_KEPT = 50_000


class _Offer(NamedTuple):
    """One candidate for one bucket."""

    key: Candidate
    spec: bytes
    names: tuple[bytes, ...]


class Offers:
    """Writes shortlists; what it wrote of a candidate is kept."""

    def __init__(self, base: str) -> None:
        """Write nothing yet; all names begin with *base*."""
        self._base = text(base)
        self._made: dict[tuple[str, bytes], _Offer] = {}

    def args(self, shortlist: Shortlist, model: bytes, bucket: bytes) -> list[Any]:
        """Return the arguments that follow the fixed ones.

        Args:
            shortlist: The candidates.
            model: As asked for.
            bucket: In which it is counted, as far as is known.
        """
        specs: list[Any] = []
        names: list[Any] = [b"%b:bucket:%b" % (self._base, model), self._base + b":epoch"]
        for group, key in shortlist:
            offer = self._made.get((key.key_id, bucket))
            if offer is None or offer.key is not key:
                offer = self._make(key, bucket)
            specs += (group, offer.spec)
            names += offer.names
        return specs + names

    def names(self, lease: Lease) -> tuple[bytes, ...]:
        """Return the names of the records that a lease is about."""
        bucket = text(lease.bucket)
        offer = self._made.get((lease.key_id, bucket))
        if offer is not None and _same_owners(offer.key, lease):
            return offer.names
        record = lease.record or lease.key_id
        key = Candidate(lease.key_id, lease.project, lease.billing_account, record=record)
        return self._names(key, bucket)

    def _make(self, key: Candidate, bucket: bytes) -> _Offer:
        if len(self._made) >= MADE_KEPT:
            self._made.clear()
        offer = _Offer(key, _spec(key), self._names(key, bucket))
        self._made[(key.key_id, bucket)] = offer
        return offer

    def _names(self, key: Candidate, bucket: bytes) -> tuple[bytes, ...]:
        account, project, record = map(text, (key.billing_account, key.project, key.record))
        names = (
            b"cooldown:billing:%b" % account,
            b"cooldown:project:%b" % project,
            b"cooldown:key:%b" % record,
            b"quota:%d:%b:%b" % (len(project), project, bucket),
            b"health:%b" % text(key.key_id),
        )
        return tuple(b"%b:%b" % (self._base, name) for name in names)


def _same_owners(key: Candidate, lease: Lease) -> bool:
    mine = (key.project, key.billing_account, key.record)
    return mine == (lease.project, lease.billing_account, lease.record or lease.key_id)


def _spec(key: Candidate) -> bytes:
    """Write weight and limits as JSON, and whose leases are counted; nothing for the defaults."""
    if key.limits == NO_LIMITS and key.weight == 1.0:
        return b""
    limits = (-1 if limit is None else limit for limit in key.limits)
    return text(json.dumps([key.weight, *limits, key.record], ensure_ascii=False))
