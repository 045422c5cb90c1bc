"""Shortlists as acquire.lua takes them: the names of all records are made here, and once.

In the script they would have to be made for every call, at half of its time.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from ...core.model import NO_LIMITS, Candidate, Lease
from ...core.roster import Shortlist
from .calls import bulk
from .codec import text

__all__ = ["Offers"]

MADE_KEPT = 50_000
MOST_GROUPS = 8
_GROUPS = tuple(bulk(b"%d" % group) for group in range(MOST_GROUPS))


class _Offer(NamedTuple):
    """One candidate for one bucket; words in the server's protocol."""

    key: Candidate
    spec: bytes
    names: bytes


class Offers:
    """Writes shortlists; what it wrote of a candidate is kept."""

    def __init__(self, base: str) -> None:
        self._base = text(base)
        self._made: dict[tuple[str, bytes], _Offer] = {}
        self._heads: dict[bytes, bytes] = {}

    def __call__(self, shortlist: Shortlist, model: bytes, bucket: bytes) -> tuple[int, bytes]:
        """Write what follows the fixed words: their number, and they themselves.

        Args:
            shortlist: The candidates.
            model: As asked for.
            bucket: In which it is counted, as far as is known.
        """
        made, specs, names = self._made, [], [self._heads.get(model) or self._head(model)]
        for group, key in shortlist:
            offer = made.get((key.key_id, bucket))
            if offer is None or offer.key is not key:
                offer = self._make(key, bucket)
            specs.append(_GROUPS[group] if 0 <= group < MOST_GROUPS else bulk(b"%d" % group))
            specs.append(offer.spec)
            names.append(offer.names)
        return 2 + 7 * len(shortlist), b"".join(specs + names)

    def names(self, lease: Lease) -> tuple[int, bytes]:
        """Write the names of the records that a lease is about; their number, and they."""
        bucket = text(lease.bucket)
        offer = self._made.get((lease.key_id, bucket))
        if offer is not None and _same_owners(offer.key, lease):
            return 5, offer.names
        record = lease.record or lease.key_id
        key = Candidate(lease.key_id, lease.project, lease.billing_account, record=record)
        return 5, self._names(key, bucket)

    def _head(self, model: bytes) -> bytes:
        if len(self._heads) >= MADE_KEPT:
            self._heads.clear()
        head = bulk(b"%b:b:%b" % (self._base, model)) + bulk(self._base + b":epoch")
        self._heads[model] = head
        return head

    def _make(self, key: Candidate, bucket: bytes) -> _Offer:
        if len(self._made) >= MADE_KEPT:
            self._made.clear()
        offer = _Offer(key, bulk(_spec(key)), self._names(key, bucket))
        self._made[(key.key_id, bucket)] = offer
        return offer

    def _names(self, key: Candidate, bucket: bytes) -> bytes:
        account, project, record = map(text, (key.billing_account, key.project, key.record))
        names = (
            b"c:b:%b" % account,
            b"c:p:%b" % project,
            b"c:k:%b" % record,
            b"q:%d:%b:%b" % (len(project), project, bucket),
            b"h:%b" % text(key.key_id),
        )
        return b"".join(bulk(b"%b:%b" % (self._base, name)) for name in names)


def _same_owners(key: Candidate, lease: Lease) -> bool:
    mine = (key.project, key.billing_account, key.record)
    return mine == (lease.project, lease.billing_account, lease.record or lease.key_id)


def _spec(key: Candidate) -> bytes:
    """Write weight and limits as JSON, and whose leases are counted; nothing for the defaults."""
    if key.limits == NO_LIMITS and key.weight == 1.0:
        return b""
    limits = (-1 if limit is None else limit for limit in key.limits)
    return text(json.dumps([key.weight, *limits, key.record], ensure_ascii=False))
