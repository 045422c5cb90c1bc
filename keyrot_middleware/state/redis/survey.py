"""What the records of a pool say of its keys: for status pages, not for calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from ...core.model import Candidate
from ...core.windows import Cooldown
from ..base import KeyHealth
from ..memory import snapshot
from . import codec

__all__ = ["survey", "with_values"]

AT_ONCE = 500
"""Records in one MGET: well under a millisecond of the server's time."""

Ask = Callable[[Sequence[Sequence[Any]]], list[Any]]


def survey(
    ask: Ask, base: str, keys: Sequence[Candidate], now: float | None
) -> tuple[dict[str, KeyHealth], float]:
    """Read what is known of *keys*.

    Args:
        ask: Sends commands together and gives their answers.
        base: How all names begin.
        keys: Whom to tell of.
        now: Instead of the server's clock, in tests.

    Returns:
        The health of each by its id, and the time it holds for.
    """
    time, buckets = ask([("TIME",), ("ZRANGE", f"{base}:buckets", 0, -1)])
    moment = now if now is not None else int(time[0]) + int(time[1]) / 1e6
    projects = dict.fromkeys(key.project for key in keys)
    places = list(product(projects, [bucket.decode() for bucket in buckets]))
    quota_names = [f"{base}:quota:{len(p.encode())}:{p}:{bucket}" for p, bucket in places]
    quotas = dict(zip(places, _records(ask, quota_names), strict=True))
    health = _records(ask, [f"{base}:health:{key.key_id}" for key in keys])
    known = snapshot(
        keys,
        {k.key_id: codec.health_of(r) for k, r in zip(keys, health, strict=True) if r},
        {place: codec.quota_of(record) for place, record in quotas.items() if record},
        _cooldowns(ask, base, keys),
        moment,
    )
    return known, moment


def with_values(ask: Ask, base: str, keys: Sequence[Candidate]) -> list[Candidate]:
    """Return *keys*, whose values are not known here, as those of the values they were used with."""
    records = _records(ask, [f"{base}:health:{key.key_id}" for key in keys])
    pairs = zip(keys, records, strict=True)
    return [key.with_value(codec.fingerprint_of(r)) if r else key for key, r in pairs]


def _cooldowns(ask: Ask, base: str, keys: Sequence[Candidate]) -> dict[tuple[str, ...], Cooldown]:
    owners = [("key", key.record) for key in keys]
    owners += dict.fromkeys(("project", key.project) for key in keys)
    owners += dict.fromkeys(("billing", key.billing_account) for key in keys)
    records = _records(ask, [f"{base}:cooldown:{kind}:{owner}" for kind, owner in owners])
    found: dict[tuple[str, ...], Cooldown] = {}
    for (_, owner), record in zip(owners, records, strict=True):
        if record:
            found |= codec.cooldowns_of(record, owner)
    return found


def _records(ask: Ask, names: Sequence[str]) -> list[bytes | None]:
    parts = [("MGET", *names[i : i + AT_ONCE]) for i in range(0, len(names), AT_ONCE)]
    return [record for reply in (ask(parts) if parts else ()) for record in reply]
