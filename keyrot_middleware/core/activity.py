"""What calls did lately, as values: for status pages and alerts, never for a decision.

Calls are counted per minute for an hour and per ten minutes for a day: of the pool, of each key and
project, and of the first models and workloads that a process names. Everything here is bounded.
"""

from __future__ import annotations

import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, TypeVar, cast

from .answering import Answered, answer_entry, is_other_model, read_answers
from .failures import NOT_OFFERED, REQUEST_FAILURES, UNKNOWN
from .html_pages import without_tags
from .json_rows import NUMBER, known_fields, read_row, read_rows
from .judgement import UnknownReply
from .model import DEFAULT_PLATFORM, DEFAULT_ZONE, NANO, NO_USAGE, Usage, nano_usd
from .outcomes import (
    ENDS_KEPT,
    FEW,
    MINUTE_S,
    SAID_MAX,
    End,
    EndKind,
    Minutes,
    dump_end,
    load_end,
)
from .windows import DAY_S, day_of

CALLS_KEPT = 100
FAILURES_KEPT = 20
"""Of each key: the last calls in which it failed."""
NAMES_KEPT = 100
"""Models, and workloads, that a process counts by their names; the rest is `OTHER`."""
LARGE_POOL = 500
"""In a pool with more keys, keys and projects are counted for an hour only, and quotas not at all.
"""
OTHER = "(other)"
POOL = ""
"""Stands in place of a key id for the sums over all keys."""

_T = TypeVar("_T")
_NUMBER, _TEXT = NUMBER | None, str | None
"""Of fields that may be empty."""

CallOutcome = Literal["ok", "failed", "exhausted", "abandoned"]
ShareKind = Literal["model", "workload", "pair", "unknown", "answer"]
"""What is counted by its name: `unknown` are the replies of a key that no row knows, `answer` which
other model has answered."""


class Span(NamedTuple):
    """How far back counts go, and how finely."""

    step_s: int
    slots: int

    def last(self, now: float) -> int:
        """Return the number of the slot of *now*."""
        return int(now // self.step_s)

    def numbers(self, now: float) -> range:
        """Return the numbers of all slots, the oldest first."""
        last = self.last(now)
        return range(last - self.slots + 1, last + 1)


MINUTES = 60
HOUR = Span(60, MINUTES)
DAY = Span(600, 144)


class Attempt(NamedTuple):
    """One request of a call."""

    key_id: str
    failure: str | None
    """The failure class; None where the request succeeded or was abandoned."""
    code: int | None
    """The HTTP status of a failure."""
    seconds: float
    project: str = ""
    """Of the key; empty if it names none."""
    message: str = ""
    """What the service wrote about the key; empty if it failed for another reason."""
    bucket: str = ""
    """In whose quota it counts, and as how many requests; empty: in none."""
    requests: int = 0
    error_type: str = ""
    """Of a failure: the HTTP status, or the class of its exception."""
    waited_s: float = 0.0
    """How long its key was looked and waited for."""
    cools_down: bool = False
    """The key was rejected, or it or its project cools down."""


class CallRecord(NamedTuple):
    """One call that ended."""

    at: float
    """When it ended, epoch seconds."""
    model: str
    seconds: float
    outcome: CallOutcome
    attempts: tuple[Attempt, ...]
    usage: Usage = NO_USAGE
    """Of the last attempt, with its cost if that is known."""
    waited: bool = False
    """It waited for a key."""
    workload: str = ""
    trace_id: str = ""
    """Of the trace that has its spans, 32 hexadecimal digits; empty if it is not traced."""
    service_tier: str = ""
    """The service tier that it asked for."""
    platform: str = DEFAULT_PLATFORM
    first_chunk_s: float = 0.0
    """When the first chunk of a stream came, after its start; 0: it is none."""
    block: str = ""
    """Of one that got no key: what blocked the key that is expected back first."""
    by_time: bool = False
    """Of one that got no key: a time ends that."""
    full: tuple[str, ...] = ()
    """The keys that it did not get since a limit of theirs was full, by the pool's own count."""


class Pair(NamedTuple):
    """A model that a workload calls."""

    platform: str
    model: str
    workload: str
    """Empty: calls of none."""


class DayUsage(NamedTuple):
    """Tokens and cost of one day."""

    input_tokens: int = 0
    output_tokens: int = 0
    nano_usd: int = 0
    cached_tokens: int = 0
    """Of the input."""
    estimated_tokens: int = 0
    """Of both, where the server has counted none."""
    unpriced_calls: int = 0
    """Calls with tokens whose cost is not known: no price is."""

    @property
    def cost_usd(self) -> float | None:
        """Return the cost in dollars of the calls that have a price; None if none has one."""
        return None if self.unpriced_calls and not self.nano_usd else self.nano_usd / NANO


class Held(NamedTuple):
    """How often a limit of a key ended a try today, of calls to one model."""

    held_back: int = 0
    """Calls that did not get it, since the pool had counted its limit full: nothing was sent."""
    refused: int = 0
    """Requests that the provider refused with 429."""


class History(NamedTuple):
    """Counts per slot of a span, the oldest first. Keys and projects have the first three."""

    requests: Sequence[int]
    failures: Sequence[int]
    """Requests that failed."""
    refused: Sequence[int]
    """Requests that were refused with 429; failures too."""
    calls: Sequence[int]
    failed_calls: Sequence[int]
    """Calls that raised: the last request failed, or no key was available."""
    waits: Sequence[int]
    """Calls that waited for a key."""
    input_tokens: Sequence[int]
    output_tokens: Sequence[int]
    nano_usd: Sequence[int]
    cached_tokens: Sequence[int]
    """Input tokens that came from a prompt cache."""
    estimated_tokens: Sequence[int]
    """Tokens that no server has counted."""
    unpriced_calls: Sequence[int]
    """Calls with tokens whose cost is not known."""


COUNTERS = History._fields
_OF_REQUESTS = 3
"""The counters that keys and projects have."""


def make_history(rows: Sequence[Sequence[int]]) -> History:
    """Return the history of slots with a count for each counter, or for the first of them."""
    missing = [0] * len(COUNTERS)
    full = [[*row, *missing][: len(COUNTERS)] for row in rows]
    return History(*([row[place] for row in full] for place in range(len(COUNTERS))))


class ActivityView(NamedTuple):
    """What is shown of the activity of a pool."""

    histories: dict[str, History]
    """Of the last hour, by key id, and under `POOL` the sums; keys without a request are
    missing."""
    today: dict[str, DayUsage]
    """By key id or `project_entry`, and under `POOL` the sums."""
    calls: list[CallRecord]
    """The latest first."""


def dump_call(record: CallRecord) -> str:
    """Return a call as text, for a state."""
    usage = record.usage
    sent, received = usage.input_tokens, usage.output_tokens
    shown = Usage(sent, received, cost_usd=usage.cost_usd, estimated=usage.estimated)
    return json.dumps(record._replace(usage=shown), separators=(",", ":"))


_CALL = (NUMBER, str, NUMBER, str, list, list, bool, str, str, str, str, NUMBER, str, bool, list)
_ATTEMPT = (str, _TEXT, _NUMBER, NUMBER, str, str, str, int, str, NUMBER, bool)
_FULL = len(_CALL) - 7
"""Where `CallRecord.full` is, behind the usage."""
_OF_USAGE = (*[_NUMBER] * 4, _TEXT, _TEXT, list, _NUMBER, list, _TEXT, bool)
"""What the fields are, of the rows that are read."""


def load_call(text: str | bytes) -> CallRecord:
    """Read a call.

    Raises:
        ValueError: It is none.
        TypeError: It lacks what each version writes.
    """
    at, model, seconds, outcome, attempts, usage, *more = read_row(text, _CALL)
    if len(more) > _FULL:
        more[_FULL] = tuple(map(str, more[_FULL]))
    parsed = tuple(Attempt(*known_fields(attempt, _ATTEMPT)) for attempt in attempts)
    return CallRecord(
        at, model, seconds, outcome, parsed, Usage(*known_fields(usage, _OF_USAGE)), *more
    )


def project_entry(project: str) -> str:
    """Return under which name a project is counted; no key has such an id."""
    return f"project:{project}"


def share_entry(kind: ShareKind, name: str) -> str:
    """Return under which name a model or a workload is counted; no key has such an id."""
    return f"{kind}:{name}"


def quota_entry(project: str, bucket: str) -> str:
    """Return under which name the requests in a quota are counted; no key has such an id.

    Args:
        project: Its name, or the id of a key that has none.
        bucket: The model bucket.
    """
    return f"quota:{project}\n{bucket}"


def is_share(entry: str) -> bool:
    """Return whether it is the name of a model or a workload."""
    return entry.startswith(("model:", "workload:", "unknown:"))


class BoundedNames:
    """The models and workloads that are counted by their names: the first ones."""

    def __init__(self) -> None:
        """Know none."""
        self._entries: dict[ShareKind, dict[str, str]] = {}

    def entry(self, kind: ShareKind, name: str) -> str:
        """Return under which name one is counted."""
        known = self._entries.setdefault(kind, {})
        entry = known.get(name)
        if entry is not None:
            return entry
        if len(known) >= NAMES_KEPT:
            return share_entry(kind, OTHER)
        entry = known[name] = share_entry(kind, name)
        return entry


class ActivityRows(NamedTuple):
    """What is added to the activity, for a state, which adds it up."""

    counts: dict[str, dict[str, int]]
    """By record and field."""
    texts: dict[str, tuple[list[str], int]]
    """By list: the latest last, and how many are kept."""


_USAGE = ("input", "output", "nano_usd", "cached", "estimated", "unpriced")
_RECORDS = {HOUR: "minute", DAY: "slot"}
TIMED = (*_RECORDS.values(), "day", "pairs", "unpriced", "outcomes", "limits", "answers")
"""The records of a time, which their names have."""
_LIFETIMES = {"minute": 3_660, "slot": 87_000, "day": 172_800, "calls": 3_660, "failures": 86_400}
_LIFETIMES |= {"processes": 300, "values": 3_660, "rotations": 34_560_000}
_LIFETIMES |= {
    "pairs": 172_800,
    "unpriced": 172_800,
    "limits": 172_800,
    "answers": 172_800,
    "lately": 172_800,
    "last": 172_800,
    "outcomes": 3_660,
}
_LIFETIMES |= {"settings": 3_660, "keys": 3_660}
_LIFETIMES |= {"versions": 86_400, "facts": 3_000_000, "epochs": 34_560_000, "emptied": 3_600}


def versions_name(now: float) -> str:
    """Return the record that counts in which versions of this package the pool is used today."""
    return f"versions:{int(now // DAY_S)}"


def lifetime_s(name: str) -> int:
    """Return how long a record or a list is kept after its last change, seconds."""
    return _LIFETIMES[name.partition(":")[0]]


def believed_until(name: str, now: float) -> float:
    """Return the latest end of a record that was changed by a clock like that of *now*.

    One that ends later was changed while the clock was ahead: its time is still to come, and what
    will be counted then must not be added to it. Clocks of processes may differ by a minute.
    """
    return now + lifetime_s(name) + HOUR.step_s


@dataclass(slots=True)
class ActivityBatch:
    """What one process adds to the activity of a pool. Not locked."""

    names: BoundedNames = field(default_factory=BoundedNames)
    is_large_pool: bool = False
    """It has more than `LARGE_POOL` keys."""
    zone: str = DEFAULT_ZONE
    """Where its days end."""
    process: str = ""
    """Which one it is."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """By record and field."""
    lists: dict[str, deque[CallRecord | str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is anything to add."""
        return bool(self.counts)

    def rows(self) -> ActivityRows:
        """Return it for a state."""
        texts = {
            name: ([one if isinstance(one, str) else dump_call(one) for one in kept], most)
            for name, kept in self.lists.items()
            if (most := kept.maxlen)
        }
        return ActivityRows(self.counts, texts)

    def add(self, record: CallRecord) -> End | None:
        """Count a call that ended, and what it cost, if its usage says that; return how it ended.

        None: it was cancelled, or names no model.
        """
        self._keep("calls", record, CALLS_KEPT)
        at, attempts = record.at, record.attempts
        failures = refused = 0
        for key_id, failure, code, _, project, message, bucket, requests, *_ in attempts:
            failed, limited = failure is not None, code == 429
            for entry in self._of_requests(key_id, project):
                self._count(at, entry, (1, failed, limited))
            if bucket and not self.is_large_pool:
                self._count(at, quota_entry(project or key_id, bucket), (requests,))
            failures, refused = failures + failed, refused + limited
            if failed:
                self._keep(f"failures:{key_id}", record, FAILURES_KEPT)
            if failure in UNKNOWN:
                said = re.sub(r"\S*\d\S*", "…", without_tags(message))  # without ids
                name = self.names.entry("unknown", f"{key_id}\n{code} {said}")
                self._count(at, name, (1,))
        has_failed = record.outcome in ("failed", "exhausted")
        amounts = _amounts(record.usage)
        whole = len(attempts), failures, refused, 1, has_failed, record.waited, *amounts
        self._count(at, POOL, whole)
        if record.workload:
            self._count(at, self.names.entry("workload", record.workload), whole)
        if record.model:
            self._count(at, self.names.entry("model", record.model), whole)
        for key_id, *_ in attempts[-1:]:
            for entry in (*self._of_requests(key_id, attempts[-1].project), POOL):
                self._add(f"day:{day_of(at, self.zone)}", entry, _USAGE, amounts)
        self._add_unpriced(record, amounts[-1])
        self._add_limits(record)
        self._add_answer(record)
        return self._add_end(record) if record.model else None

    def _add_unpriced(self, record: CallRecord, calls: int) -> None:
        named: tuple[tuple[ShareKind, str], ...]
        named = ("model", record.model), ("workload", record.workload)
        for entry in [self.names.entry(kind, name) for kind, name in named if name and calls]:
            row = self.counts.setdefault(f"unpriced:{day_of(record.at, self.zone)}", {})
            row[entry] = row.get(entry, 0) + calls

    def _add_limits(self, record: CallRecord) -> None:
        """Count which keys were held back, and which the provider refused with 429."""
        refused = [one.key_id for one in record.attempts if one.code == 429]
        if self.is_large_pool or not record.model or not (record.full or refused):
            return
        row = self.counts.setdefault(f"limits:{day_of(record.at, self.zone)}", {})
        model = self.names.entry("model", record.model).removeprefix("model:")
        for kind, keys in zip(Held._fields, (record.full, refused), strict=True):
            for key_id in keys:
                name = f"{key_id}\n{model}\n{kind}"
                row[name] = row.get(name, 0) + 1

    def _add_answer(self, record: CallRecord) -> None:
        """Count a call that another model has answered."""
        by = record.usage.model
        if by is None or not is_other_model(record.model, by):
            return
        name = self.names.entry("answer", answer_entry(record.platform, record.model, by))
        row = self.counts.setdefault(f"answers:{day_of(record.at, self.zone)}", {})
        name = name.removeprefix("answer:")
        row[name] = row.get(name, 0) + 1

    def _add_end(self, record: CallRecord) -> End | None:
        """Count a call of a model and a workload, and keep how it ended."""
        model = self.names.entry("model", record.model).removeprefix("model:").replace("\n", " ")
        pair = self.names.entry("pair", "\n".join((record.platform, model, record.workload)))
        name = pair.removeprefix("pair:")
        pairs = self.counts.setdefault(f"pairs:{day_of(record.at, self.zone)}", {})
        pairs[name] = pairs.get(name, 0) + 1
        if (end := end_of(record, self.process)) is not None:
            self._add(f"outcomes:{int(record.at // MINUTE_S)}", name, (end.kind,), (1,))
            text = dump_end(end)
            # Calls that got no key say nothing of those that did: they do not push them out.
            if end.kind == "no_key":
                self._keep(f"last:no_key:{name}", text, ENDS_KEPT)
            else:
                self._keep(f"lately:{name}", text, ENDS_KEPT)
            if end.kind == "failed" and (end.code or end.failure not in NOT_OFFERED):
                self._keep(f"last:failed:{name}", text, FEW)
        return end

    def _of_requests(self, key_id: str, project: str) -> tuple[str, ...]:
        return (key_id, project_entry(project)) if project else (key_id,)

    def _count(self, at: float, entry: str, more: Sequence[int]) -> None:
        """Count for an hour, and for a day too what few have."""
        is_of_pool = entry == POOL or is_share(entry)
        is_brief = entry.startswith("quota:") or (self.is_large_pool and not is_of_pool)
        for span in (HOUR,) if is_brief else (HOUR, DAY):
            self._add(_record(span, span.last(at), entry), entry, COUNTERS, more)

    def _add(self, record: str, entry: str, names: Sequence[str], more: Sequence[int]) -> None:
        row = self.counts.setdefault(record, {})
        for name, n in zip(names, more, strict=False):
            if n:
                place = sys.intern(f"{entry}:{name}")  # hundreds of records share the names
                row[place] = row.get(place, 0) + int(n)

    def _keep(self, name: str, one: CallRecord | str, most: int) -> None:
        kept = self.lists.setdefault(name, deque(maxlen=most))
        if not kept or kept[-1] is not one:  # a key may fail twice in one call
            kept.append(one)


def end_of(record: CallRecord, process: str) -> End | None:
    """Return how a call ended; None for one that was cancelled, which says nothing."""
    if record.outcome == "abandoned":
        return None
    last = record.attempts[-1] if record.attempts else None
    failure = last.failure or "" if last else ""
    if record.outcome == "ok":
        return End(record.at, "good", process=process)
    why = record.block or failure
    kind: EndKind = "refused" if failure in REQUEST_FAILURES else "failed"
    if record.outcome == "exhausted" and why not in NOT_OFFERED:
        kind = "no_key"
    end = End(record.at, kind, why or "not_sent", process=process, by_time=record.by_time)
    if last is None or failure != why or kind == "refused":
        return end._replace(code=last.code if last and failure == why else None)
    said = without_tags(last.message)
    said = said if len(said) <= SAID_MAX else f"{said[:SAID_MAX].rpartition(' ')[0]}…"
    return end._replace(code=last.code, said=said)


def _amounts(usage: Usage) -> tuple[int, ...]:
    """Return what `_USAGE` names, of one call."""
    sent, received = usage.input_tokens or 0, usage.output_tokens or 0
    total, cost = sent + received, usage.cost_usd
    estimated, unpriced = total if usage.estimated else 0, int(cost is None and total > 0)
    return sent, received, nano_usd(cost or 0.0), usage.cached_tokens or 0, estimated, unpriced


# What a state keeps -----------------------------------------------------------------------------


def _record(span: Span, slot: int, entry: str) -> str:
    return f"{_RECORDS[span]}:{slot}{':shares' if is_share(entry) else ''}"


class ActivityLog:
    """The activity of a pool, read from its state."""

    def __init__(
        self,
        read: Callable[[Sequence[str], Sequence[str] | None], list[Mapping[str, int]]],
        read_texts: Callable[[str], list[str]],
        zone: str = DEFAULT_ZONE,
        skipped: Callable[[str], object] = bool,
    ) -> None:
        """Read nothing yet.

        Args:
            read: Returns the counts of records: of some fields, or of all.
            read_texts: Returns a list, the latest first.
            zone: Where its days end.
            skipped: Gets the name of a list that has a row which is none.
        """
        self._read, self._read_texts, self.zone = read, read_texts, zone
        self._skipped = skipped

    def view(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Return what is known of *key_ids* and of the pool as of *now*, epoch seconds."""
        wanted = (*key_ids, POOL)
        fields = [f"{entry}:{one}" for entry in wanted for one in COUNTERS[:_OF_REQUESTS]]
        fields += [f"{POOL}:{one}" for one in COUNTERS[_OF_REQUESTS:]]
        rows = self._read([_record(HOUR, slot, POOL) for slot in HOUR.numbers(now)], fields)
        histories = {entry: _history(rows, entry) for entry in wanted}
        usage_fields = [f"{entry}:{name}" for entry in wanted for name in _USAGE]
        (day,) = self._read([f"day:{day_of(now, self.zone)}"], usage_fields)
        today = {
            entry: DayUsage(*(day.get(f"{entry}:{name}", 0) for name in _USAGE)) for entry in wanted
        }
        return ActivityView(
            {entry: history for entry, history in histories.items() if any(map(any, history))},
            {entry: usage for entry, usage in today.items() if usage != DayUsage()},
            self._rows("calls", load_call),
        )

    def history(self, entry: str, span: Span, now: float) -> History:
        """Return the counts of a key, a project, a model, a workload or the pool."""
        names = [_record(span, slot, entry) for slot in span.numbers(now)]
        return _history(self._read(names, [f"{entry}:{counter}" for counter in COUNTERS]), entry)

    def last_hour(self, entries: Sequence[str], now: float) -> dict[str, int]:
        """Return how many requests there were of each of *entries*."""
        fields = [f"{entry}:{COUNTERS[0]}" for entry in entries]
        rows = self._read([_record(HOUR, slot, POOL) for slot in HOUR.numbers(now)], fields)
        sums = (sum(row.get(one, 0) for row in rows) for one in fields)
        return dict(zip(entries, sums, strict=True))

    def shares(self, kind: ShareKind, span: Span, now: float) -> dict[str, list[int]]:
        """Return the counts of each model, or each workload, over a span."""
        start, sums = share_entry(kind, ""), dict[str, list[int]]()
        names = [_record(span, slot, start) for slot in span.numbers(now)]
        for row in self._read(names, None):
            for field_name, count in row.items():
                entry, _, counter = field_name.rpartition(":")
                if entry.startswith(start) and counter in COUNTERS:
                    known = sums.setdefault(entry.removeprefix(start), [0] * len(COUNTERS))
                    known[COUNTERS.index(counter)] += count
        return sums

    def unknown(self, now: float) -> list[UnknownReply]:
        """Return what keys were replied in the last hour in words that no row knows."""
        slots, start = HOUR.numbers(now), share_entry("unknown", "")
        replies = dict[tuple[str, str], dict[int, int]]()
        rows = self._read([_record(HOUR, slot, start) for slot in slots], None)
        for slot, row in zip(slots, rows, strict=True):
            for field_name, count in row.items():
                entry, _, counter = field_name.rpartition(":")
                key_id, _, said = entry.removeprefix(start).partition("\n")
                if entry.startswith(start) and said and counter == COUNTERS[0]:
                    replies.setdefault((key_id, said), {})[slot] = count
        key_ids = {key_id for key_id, _ in replies}
        fields = [f"{key_id}:{one}" for key_id in key_ids for one in COUNTERS[:2]]
        names = [_record(HOUR, slot, POOL) for slot in slots] if fields else []
        answered: dict[str, list[int]] = {key_id: [] for key_id in key_ids}
        for slot, row in zip(slots, self._read(names, fields) if names else [], strict=False):
            for key_id, known in answered.items():
                requests, failures = (row.get(f"{key_id}:{one}", 0) for one in COUNTERS[:2])
                if requests > failures:
                    known.append(slot)
        return [UnknownReply(*of, counts, answered[of[0]]) for of, counts in replies.items()]

    def pairs(self, now: float) -> dict[Pair, int]:
        """Return how often each model was called today by each workload; 0: yesterday only."""
        days = [f"pairs:{day_of(at, self.zone)}" for at in (now - DAY_S, now)]
        before, today = self._read(days, None)
        names = {name: name.split("\n", 2) for name in sorted({*before, *today})}
        return {Pair(*of): today.get(name, 0) for name, of in names.items() if len(of) == 3}

    def outcomes(self, now: float) -> dict[Pair, Minutes]:
        """Return how the calls of the last hour ended, by model and workload."""
        slots, by_pair = HOUR.numbers(now), dict[Pair, dict[int, dict[EndKind, int]]]()
        rows = self._read([f"outcomes:{slot}" for slot in slots], None)
        for slot, row in zip(slots, rows, strict=True):
            for field_name, count in row.items():
                name, _, kind = field_name.rpartition(":")
                pair = name.split("\n", 2)
                if len(pair) == len(Pair._fields):
                    counts = by_pair.setdefault(Pair(*pair), {}).setdefault(slot, {})
                    counts[cast(EndKind, kind)] = count
        return {pair: counts for pair, counts in by_pair.items()}

    def unpriced(self, kind: ShareKind, now: float) -> dict[str, int]:
        """Return how many calls of today have no known cost, by model or by workload."""
        (row,) = self._read([f"unpriced:{day_of(now, self.zone)}"], None)
        start = share_entry(kind, "")
        return {entry.removeprefix(start): n for entry, n in row.items() if entry.startswith(start)}

    def limits(self, now: float) -> dict[str, dict[str, Held]]:
        """Return how often a limit ended a try today, by key and model."""
        (row,) = self._read([f"limits:{day_of(now, self.zone)}"], None)
        found = dict[str, dict[str, Held]]()
        for name, n in row.items():
            key_id, _, rest = name.partition("\n")
            model, _, kind = rest.rpartition("\n")
            if kind in Held._fields:
                models = found.setdefault(key_id, {})
                models[model] = models.get(model, Held())._replace(**{kind: n})
        return found

    def answers(self, now: float) -> list[Answered]:
        """Return which models others have answered, today and yesterday, the most calls first.

        Of yesterday the calls are not counted.
        """
        days = [f"answers:{day_of(at, self.zone)}" for at in (now - DAY_S, now)]
        before, today = self._read(days, None)
        return read_answers(dict.fromkeys(before, 0) | dict(today))

    def ends(self, pair: Pair) -> list[End]:
        """Return how the last calls of a model and a workload ended, the latest first.

        Ten that were sent, ten that got no key, and the last three that failed: many good ones
        must not hide them.
        """
        name = "\n".join(pair)
        ends = self._rows(f"lately:{name}", load_end)
        for kind in ("failed", "no_key"):
            older = self._rows(f"last:{kind}:{name}", load_end)
            ends += [end for end in older if end not in ends]
        return sorted(ends, key=lambda end: -end.at)

    def failures(self, key_id: str) -> list[CallRecord]:
        """Return the last calls in which a key failed, the latest first."""
        return self._rows(f"failures:{key_id}", load_call)

    def _rows(self, name: str, load: Callable[[str], _T]) -> list[_T]:
        return read_rows(self._read_texts(name), load, partial(self._skipped, name))


def _history(rows: Iterable[Mapping[str, int]], entry: str) -> History:
    return make_history([[row.get(f"{entry}:{one}", 0) for one in COUNTERS] for row in rows])
