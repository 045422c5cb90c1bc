"""The activity of a pool in Redis: a hash per minute, a hash per Pacific day, a list of calls.

All of it expires: minutes after an hour, calls an hour after the last one, days after two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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

__all__ = ["commands_of", "read"]

MINUTE_TTL_S = (MINUTES + 1) * 60
DAY_TTL_S = 2 * 86_400
KEYS_AT_ONCE = 200
"""Keys in one HMGET of a minute: well under a millisecond of the server's time."""

Run = Callable[[Sequence[Sequence[Any]]], list[Any]]


def commands_of(batch: ActivityBatch, base: str) -> list[tuple[Any, ...]]:
    """Return the commands that add *batch* to the records under *base*."""
    commands: list[tuple[Any, ...]] = []
    touched: dict[str, int] = {}
    for (minute, key_id), (requests, failures) in batch.minutes.items():
        name = f"{base}:minute:{minute}"
        touched[name] = MINUTE_TTL_S
        commands.append(("HINCRBY", name, f"{key_id}:requests", requests))
        if failures:
            commands.append(("HINCRBY", name, f"{key_id}:failures", failures))
    for minute, waits in batch.waits.items():
        commands.append(("HINCRBY", f"{base}:minute:{minute}", f"{POOL}:waits", waits))
    for (day, key_id), usage in batch.days.items():
        name = f"{base}:day:{day}"
        touched[name] = DAY_TTL_S
        for field, amount in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("nano_usd", usage.nano_usd),
        ):
            if amount:
                commands.append(("HINCRBY", name, f"{key_id}:{field}", amount))
    commands += [("EXPIRE", name, seconds) for name, seconds in touched.items()]
    if batch.calls:
        calls = f"{base}:calls"
        commands.append(("LPUSH", calls, *(dump_call(record) for record in batch.calls)))
        commands += [("LTRIM", calls, 0, CALLS_KEPT - 1), ("EXPIRE", calls, MINUTE_TTL_S)]
    return commands


def read(run: Run, base: str, key_ids: Iterable[str], now: float) -> ActivityView:
    """Read the activity of *key_ids* and of the pool as of *now*, epoch seconds."""
    wanted, last = (*key_ids, POOL), int(now // 60)
    minutes = range(last - MINUTES + 1, last + 1)
    day = f"{base}:day:{pacific_day(now)}"
    calls = run([("LRANGE", f"{base}:calls", 0, CALLS_KEPT - 1)])[0]
    histories: dict[str, History] = {}
    today: dict[str, DayUsage] = {}
    for start in range(0, len(wanted), KEYS_AT_ONCE):
        some = wanted[start : start + KEYS_AT_ONCE]
        counts = [f"{key_id}:{field}" for key_id in some for field in ("requests", "failures")]
        usages = [
            f"{key_id}:{field}" for key_id in some for field in ("input", "output", "nano_usd")
        ]
        *rows, used = run(
            [("HMGET", f"{base}:minute:{minute}", *counts) for minute in minutes]
            + [("HMGET", day, *usages)]
        )
        for place, key_id in enumerate(some):
            history = History(
                [_number(row[2 * place]) for row in rows],
                [_number(row[2 * place + 1]) for row in rows],
            )
            if any(history.requests):
                histories[key_id] = history
            usage = DayUsage(*map(_number, used[3 * place : 3 * place + 3]))
            if usage != DayUsage():
                today[key_id] = usage
    waits = run([("HGET", f"{base}:minute:{minute}", f"{POOL}:waits") for minute in minutes])
    records = [record for record in map(load_call, calls) if record is not None]
    return ActivityView(histories, sum(map(_number, waits)), today, records)


def _number(text: bytes | None) -> int:
    try:
        return int(text) if text is not None else 0
    except ValueError:
        return 0
