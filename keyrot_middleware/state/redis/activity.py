"""The activity of a pool in Redis: hashes per slot of a span and per Pacific day, lists of calls.

All of it expires: minutes after an hour, ten minutes after a day, calls an hour after the last one,
failures of a key a day after the last one, days after two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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

__all__ = ["commands_of", "read", "read_failures", "read_history", "read_shares"]

_KINDS = {HOUR: "minute", DAY: "slot"}
DAY_TTL_S = 2 * 86_400
FAILURES_TTL_S = 86_400
KEYS_AT_ONCE = 200
"""Keys in one HMGET of a minute: well under a millisecond of the server's time."""
_OF_KEYS = COUNTERS[:2]
"""What a page shows of the last hour of each key."""

Run = Callable[[Sequence[Sequence[Any]]], list[Any]]


def commands_of(batch: ActivityBatch, base: str) -> list[tuple[Any, ...]]:
    """Return the commands that add *batch* to the records under *base*."""
    commands: list[tuple[Any, ...]] = []
    touched: dict[str, int] = {}
    for span, counts in ((HOUR, batch.minutes), (DAY, batch.buckets())):
        for (slot, entry), more in counts.items():
            name = _name(base, span, slot, entry)
            touched[name] = _ttl_s(span)
            commands += [
                ("HINCRBY", name, f"{entry}:{counter}", count)
                for counter, count in zip(COUNTERS, more, strict=False)
                if count
            ]
    for (day, entry), usage in batch.days.items():
        name = f"{base}:day:{day}"
        touched[name] = DAY_TTL_S
        for field, amount in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("nano_usd", usage.nano_usd),
        ):
            if amount:
                commands.append(("HINCRBY", name, f"{entry}:{field}", amount))
    commands += [("EXPIRE", name, seconds) for name, seconds in touched.items()]
    if batch.calls:
        commands += _push(f"{base}:calls", batch.calls, CALLS_KEPT, _ttl_s(HOUR))
    for key_id, calls in batch.failures.items():
        commands += _push(f"{base}:failures:{key_id}", calls, FAILURES_KEPT, FAILURES_TTL_S)
    return commands


def _name(base: str, span: Span, slot: int, entry: str) -> str:
    return f"{base}:{_KINDS[span]}:{slot}{':shares' if is_share(entry) else ''}"


def _ttl_s(span: Span) -> int:
    return (span.slots + 1) * span.step_s


def _push(name: str, calls: Iterable[CallRecord], most: int, seconds: int) -> list[tuple[Any, ...]]:
    texts = map(dump_call, calls)
    return [("LPUSH", name, *texts), ("LTRIM", name, 0, most - 1), ("EXPIRE", name, seconds)]


def read(run: Run, base: str, key_ids: Iterable[str], now: float) -> ActivityView:
    """Read the activity of *key_ids* and of the pool as of *now*, epoch seconds."""
    wanted = (*key_ids, POOL)
    day = f"{base}:day:{pacific_day(now)}"
    calls = run([("LRANGE", f"{base}:calls", 0, CALLS_KEPT - 1)])[0]
    histories: dict[str, History] = {}
    today: dict[str, DayUsage] = {}
    for start in range(0, len(wanted), KEYS_AT_ONCE):
        some = wanted[start : start + KEYS_AT_ONCE]
        counts = [f"{entry}:{counter}" for entry in some for counter in _OF_KEYS]
        usages = [f"{entry}:{field}" for entry in some for field in ("input", "output", "nano_usd")]
        *rows, used = run(
            [("HMGET", f"{base}:minute:{minute}", *counts) for minute in HOUR.numbers(now)]
            + [("HMGET", day, *usages)]
        )
        for place, entry in enumerate(some):
            first = len(_OF_KEYS) * place
            history = make_history(
                [[*map(_number, row[first : first + len(_OF_KEYS)])] for row in rows]
            )
            if any(history.requests):
                histories[entry] = history
            usage = DayUsage(*map(_number, used[3 * place : 3 * place + 3]))
            if usage != DayUsage():
                today[entry] = usage
    whole = read_history(run, base, POOL, HOUR, now)
    if any(whole.calls) or any(whole.requests):
        histories[POOL] = whole
    return ActivityView(histories, today, _calls(calls))


def read_history(run: Run, base: str, entry: str, span: Span, now: float) -> History:
    """Read the counts of an entry over a span."""
    fields = [f"{entry}:{counter}" for counter in COUNTERS]
    names = [_name(base, span, slot, entry) for slot in span.numbers(now)]
    rows = run([("HMGET", name, *fields) for name in names])
    return make_history([[*map(_number, row)] for row in rows])


def read_shares(
    run: Run, base: str, kind: ShareKind, span: Span, now: float
) -> dict[str, list[int]]:
    """Read the counts of each model, or of each workload, over a span."""
    start, sums = share_entry(kind, ""), dict[str, list[int]]()
    names = [_name(base, span, slot, start) for slot in span.numbers(now)]
    for found in run([("HGETALL", name) for name in names]):
        for field, count in _pairs(found):
            entry, _, counter = field.decode(errors="replace").rpartition(":")
            if entry.startswith(start) and counter in COUNTERS:
                known = sums.setdefault(entry.removeprefix(start), [0] * len(COUNTERS))
                known[COUNTERS.index(counter)] += _number(count)
    return sums


def read_failures(run: Run, base: str, key_id: str) -> list[CallRecord]:
    """Read the last calls in which a key failed, the latest first."""
    return _calls(run([("LRANGE", f"{base}:failures:{key_id}", 0, FAILURES_KEPT - 1)])[0])


def _pairs(found: Any) -> Iterable[tuple[bytes, bytes]]:
    """Return the fields of a hash: redis-py makes a dict of it, or leaves it as the server sent."""
    if isinstance(found, Mapping):
        return found.items()
    return zip(found[::2], found[1::2], strict=False)


def _calls(texts: Iterable[bytes]) -> list[CallRecord]:
    return [call for call in map(load_call, texts) if call is not None]


def _number(text: bytes | None) -> int:
    try:
        return int(text) if text is not None else 0
    except ValueError:
        return 0
