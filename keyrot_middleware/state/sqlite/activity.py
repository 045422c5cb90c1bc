"""The activity of a pool as records: one per minute, one per Pacific day, and the latest calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.activity import (
    CALLS_KEPT,
    MINUTES,
    POOL,
    ActivityBatch,
    ActivityView,
    DayUsage,
    History,
    dump_call,
    load_call,
)
from ...core.windows import pacific_day
from .records import RowRecords

__all__ = ["add", "view"]

WAITS = "waits"
"""The name of the waits in a minute; no key has such an id with a leading space."""


def add(records: RowRecords, batch: ActivityBatch) -> None:
    """Add *batch* to the records."""
    for (minute, key_id), counts in batch.minutes.items():
        _add(records.minutes, f"minute:{minute}", f"key:{key_id}", counts)
    for minute, waits in batch.waits.items():
        _add(records.minutes, f"minute:{minute}", WAITS, [waits])
    for (day, key_id), usage in batch.days.items():
        amounts = [usage.input_tokens, usage.output_tokens, usage.nano_usd]
        _add(records.days, f"day:{day}", f"key:{key_id}", amounts)
    if batch.calls:
        calls = [dump_call(call) for call in reversed(batch.calls)]
        records.calls["calls:"] = (calls + (records.calls.get("calls:") or []))[:CALLS_KEPT]


def _add(table: Any, name: str, entry: str, amounts: Sequence[int]) -> None:
    record = table.get(name) or {}
    known = _numbers(record.get(entry), len(amounts))
    record[entry] = [have + more for have, more in zip(known, amounts, strict=True)]
    table[name] = record


def view(records: RowRecords, key_ids: Sequence[str], now: float) -> ActivityView:
    """Return the activity of *key_ids* and of the pool as of *now*, epoch seconds."""
    wanted, last = (*key_ids, POOL), int(now // 60)
    names = [f"minute:{minute}" for minute in range(last - MINUTES + 1, last + 1)]
    records.read(names)
    minutes = [records.minutes.get(name) or {} for name in names]
    day = records.days.get(f"day:{pacific_day(now)}") or {}
    histories: dict[str, History] = {}
    today: dict[str, DayUsage] = {}
    for key_id in wanted:
        entry = f"key:{key_id}"
        counts = [_numbers(minute.get(entry), 2) for minute in minutes]
        history = History([one[0] for one in counts], [one[1] for one in counts])
        if any(history.requests):
            histories[key_id] = history
        if entry in day:
            today[key_id] = DayUsage(*_numbers(day[entry], 3))
    waits = sum(_numbers(minute.get(WAITS), 1)[0] for minute in minutes)
    calls = [load_call(text) for text in records.calls.get("calls:") or []]
    return ActivityView(histories, waits, today, [call for call in calls if call is not None])


def _numbers(found: object, count: int) -> Sequence[int]:
    """Return so many numbers of a record; zeros where something else wrote it."""
    if isinstance(found, list) and len(found) == count and all(isinstance(n, int) for n in found):
        return found
    return [0] * count
