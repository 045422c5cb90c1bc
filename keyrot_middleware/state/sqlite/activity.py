"""The activity of a pool as records: counts per slot of a span and per Pacific day, and calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...core.activity import (
    CALLS_KEPT,
    COUNTERS,
    DAY,
    FAILURES_KEPT,
    HOUR,
    POOL,
    ActivityBatch,
    ActivityView,
    CallRecord,
    DayUsage,
    History,
    ShareKind,
    Span,
    dump_call,
    is_share,
    load_call,
    make_history,
    share_entry,
)
from ...core.windows import pacific_day
from .records import RowRecords

__all__ = ["add", "failures", "history", "shares", "view"]

_KINDS = {HOUR: "minute", DAY: "slot"}


def add(records: RowRecords, batch: ActivityBatch) -> None:
    """Add *batch* to the records."""
    for span, counts in ((HOUR, batch.minutes), (DAY, batch.buckets())):
        for (slot, entry), more in counts.items():
            _add(records.slots[span], _name(span, slot, entry), f"key:{entry}", more)
    for (day, entry), usage in batch.days.items():
        amounts = [usage.input_tokens, usage.output_tokens, usage.nano_usd]
        _add(records.days, f"day:{day}", f"key:{entry}", amounts)
    if batch.calls:
        _put_first(records.calls, "calls:", batch.calls, CALLS_KEPT)
    for key_id, calls in batch.failures.items():
        _put_first(records.failures, f"failures:{key_id}", calls, FAILURES_KEPT)


def _name(span: Span, slot: int, entry: str) -> str:
    return f"{_KINDS[span]}:{slot}{':shares' if is_share(entry) else ''}"


def _add(table: Any, name: str, entry: str, amounts: Sequence[int]) -> None:
    record = table.get(name) or {}
    known = _numbers(record.get(entry), len(amounts))
    record[entry] = [have + more for have, more in zip(known, amounts, strict=True)]
    table[name] = record


def _put_first(table: Any, name: str, calls: Iterable[CallRecord], most: int) -> None:
    latest = [dump_call(call) for call in calls][::-1]
    table[name] = (latest + (table.get(name) or []))[:most]


def view(records: RowRecords, key_ids: Sequence[str], now: float) -> ActivityView:
    """Return the activity of *key_ids* and of the pool as of *now*, epoch seconds."""
    day = records.days.get(f"day:{pacific_day(now)}") or {}
    histories: dict[str, History] = {}
    today: dict[str, DayUsage] = {}
    for entry in (*key_ids, POOL):
        found = history(records, entry, HOUR, now)
        if any(found.requests) or any(found.calls):
            histories[entry] = found
        if f"key:{entry}" in day:
            today[entry] = DayUsage(*_numbers(day[f"key:{entry}"], 3))
    return ActivityView(histories, today, _calls(records.calls.get("calls:")))


def history(records: RowRecords, entry: str, span: Span, now: float) -> History:
    """Return the counts of an entry over a span."""
    found = _slots(records, entry, span, now)
    return make_history([_numbers(slot.get(f"key:{entry}"), len(COUNTERS)) for slot in found])


def shares(records: RowRecords, kind: ShareKind, span: Span, now: float) -> dict[str, list[int]]:
    """Return the counts of each model, or of each workload, over a span."""
    start, sums = share_entry(kind, ""), dict[str, list[int]]()
    for slot in _slots(records, start, span, now):
        for name, counts in slot.items():
            entry = name.removeprefix("key:")
            if entry.startswith(start):
                known = sums.setdefault(entry.removeprefix(start), [0] * len(COUNTERS))
                for place, count in enumerate(_numbers(counts, len(COUNTERS))):
                    known[place] += count
    return sums


def failures(records: RowRecords, key_id: str) -> list[CallRecord]:
    """Return the last calls in which a key failed, the latest first."""
    return _calls(records.failures.get(f"failures:{key_id}"))


def _slots(records: RowRecords, entry: str, span: Span, now: float) -> list[dict[str, Any]]:
    """Return the records of the slots in which an entry is counted."""
    names = [_name(span, slot, entry) for slot in span.numbers(now)]
    records.read(names)
    return [records.slots[span].get(name) or {} for name in names]


def _calls(texts: Iterable[Any] | None) -> list[CallRecord]:
    found = map(load_call, texts or ())
    return [call for call in found if call is not None]


def _numbers(found: object, count: int) -> Sequence[int]:
    """Return so many numbers of a record, of which the last may be missing; else zeros."""
    if isinstance(found, list) and len(found) <= count and all(isinstance(n, int) for n in found):
        return [*found, *[0] * (count - len(found))]
    return [0] * count
