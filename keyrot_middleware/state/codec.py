"""The records of core/ledger.py as JSON, for a file and for Redis."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import inf
from typing import Any

from ..core.ledger import Configured, Cooldowns, Health, Owner
from ..core.model import Limits
from ..core.windows import DAY_S, Cooldown, Learned, QuotaWindows, Spending

FOREVER = 1e12
"""In place of an infinite time, which JSON does not have."""
UNUSED_S = 30 * DAY_S
"""How long records are kept that have no end."""


def _cooldowns_of(rows: dict[str, list[Any]]) -> Cooldowns:
    return {
        scope: Cooldown(inf if until >= FOREVER else until, *rest)
        for scope, (until, *rest) in rows.items()
    }


READERS: dict[str, Callable[[Any], Any]] = {
    "quotas": lambda row: QuotaWindows(*row),
    "learned": lambda row: Learned(row[0], Limits(*row[1:])),
    "cooldowns": _cooldowns_of,
    "spending": lambda row: Spending(*row),
    "health": lambda row: Health(*row),
    "configured": lambda row: Configured(*row),
    "buckets": str,
    "owners": lambda row: Owner(*row),
}


def load(table: str, text: str | bytes) -> Any:
    """Parse a record of a table.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        return READERS[table](json.loads(text))
    except (TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(f"a record of {table} cannot be read") from error


def dump(record: object) -> str:
    """Return a record as text."""
    match record:
        case QuotaWindows() | Spending() | Cooldown():
            row = [getattr(record, name) for name in record.__slots__]
        case Learned(until, limits):
            row = [until, *limits[:3]]
        case dict():
            rows = (f"{json.dumps(scope)}:{dump(one)}" for scope, one in record.items())
            return f"{{{','.join(rows)}}}"
        case str():
            return json.dumps(record)
        case tuple():
            row = list(record)
        case _:
            raise TypeError(type(record))
    return json.dumps([min(one, FOREVER) if one == inf else one for one in row])


def expires_at(record: object, now: float) -> float:
    """Return from when on a record says no more than none does, epoch seconds."""
    match record:
        case QuotaWindows():
            return record.day_end + 120.0
        case Spending():
            return record.day_end
        case Learned() | Owner():
            return record.until
        case dict():
            return max((one.until for one in record.values()), default=now) + DAY_S
        case _:
            return now + UNUSED_S
