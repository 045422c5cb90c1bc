"""Which values of keys Google has refused for good: one sorted set for a pool, by time.

A member is `<key id> <fingerprint>`: 32 bits of a digest, of which nothing of a key can be had.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["noting", "pairs", "reading"]

KEPT_S = 30 * 86_400
"""How long it is known: as long as a retirement."""


def noting(base: str, key_id: str, fingerprint: str, now: float) -> list[list[str]]:
    """Write the commands that note one and forget the old."""
    name = f"{base}:refused"
    return [
        ["ZADD", name, repr(now), f"{key_id} {fingerprint}"],
        ["ZREMRANGEBYSCORE", name, "-inf", repr(now - KEPT_S)],
        ["EXPIRE", name, str(KEPT_S)],
    ]


def reading(base: str) -> list[str]:
    """Write the command that reads all."""
    return ["ZRANGE", f"{base}:refused", "0", "-1"]


def pairs(members: Iterable[bytes]) -> frozenset[tuple[str, str]]:
    """Read members: key ids and fingerprints."""
    halves = (member.decode().partition(" ") for member in members)
    return frozenset((key_id, fingerprint) for key_id, _, fingerprint in halves)
