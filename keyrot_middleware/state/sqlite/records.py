"""The records of a pool as rows, with names and JSON values.

What was read is kept until another process writes to the file, so a single process reads nothing
twice. A record that cannot be read counts as none: it is named in a warning, and written anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

from ...core.activity import DAY, HOUR
from ...core.ledger import Cooldowns, Health, Owner, Records, expires_at
from ...core.model import NO_LIMITS, Limits
from ...core.spending import Spending
from ...core.text import one_line
from ...core.windows import DAY_S, Cooldown, QuotaWindows
from .file import StateFile

__all__ = ["RowRecords"]

_log = logging.getLogger("keyrot_middleware")
_T = TypeVar("_T")
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode
HOUR_S = (HOUR.slots + 1) * HOUR.step_s
MOST_KEPT = 50_000
"""Records kept between transactions."""


class _Table(Generic[_T]):
    """The records of one kind; see `core.ledger.Table`."""

    def __init__(
        self,
        records: RowRecords,
        kind: str,
        read: Callable[[Any], _T],
        write: Callable[[_T], Any],
        kept_s: float | None = None,
    ) -> None:
        self._records, self._kind = records, kind
        self.read, self.write, self._kept_s = read, write, kept_s
        self._any: bool | None = None
        """Whether there is one; None: not known."""

    def get(self, name: str, /) -> _T | None:
        """Return a record; None if there is none."""
        records = self._records
        if name not in records.kept:
            records.read((name,))
        return cast("_T | None", records.kept[name])

    def __setitem__(self, name: str, record: _T, /) -> None:
        """Store a record that is new or was changed."""
        self._records.kept[name] = record
        self._records.changed[name] = self
        self._any = True

    def pop(self, name: str, default: None, /) -> _T | None:
        """Remove a record."""
        found = self.get(name)
        if found is not None:
            self._records.kept[name] = default
            self._records.changed[name] = self
        return found

    def items(self) -> Iterator[tuple[str, _T]]:
        """Return all records."""
        records = self._records
        names = records.read_all(f"{self._kind}:")
        names += [name for name, table in records.changed.items() if table is self]
        for name in dict.fromkeys(names):
            if (record := records.kept[name]) is not None:
                yield name, cast("_T", record)

    def __len__(self) -> int:
        """Return 0 if there are no records."""
        if self._any is None:
            self._any = self._records.has_any(f"{self._kind}:")
        return int(self._any)

    def expires_at(self, record: _T, now: float) -> float:
        """Return from when on a record may be dropped, epoch seconds."""
        return expires_at(record, now) if self._kept_s is None else now + self._kept_s

    def forget(self) -> None:
        """Look again whether there is any."""
        self._any = None


class RowRecords(Records):
    """All records of a pool; used in a transaction."""

    def __init__(self, file: StateFile, pool: str) -> None:
        """Read nothing yet.

        Args:
            file: Has the rows.
            pool: The prefix of their names.
        """
        self._file, self._prefix = file, f"{pool}:"
        self.kept: dict[str, Any] = {}
        """What is known of each record: None if there is none."""
        self.changed: dict[str, _Table[Any]] = {}
        self._version: object = None
        self._tables: dict[str, _Table[Any]] = {}
        self.quotas = self._table("quota", _read_quota, _write_quota)
        self.cooldowns = self._table("cooldown", _read_cooldowns, _write_cooldowns)
        self.leases = self._table("lease", _read_leases, _same)
        self.spending = self._table("spending", _read_spending, _write_spending)
        self.health = self._table("health", _read_health, _write_health)
        self.configured = self._table("configured", _read_limits, list)
        self.buckets = self._table("bucket", _read_text, _same)
        self.values = self._table("value", _read_text, _same)
        """The fingerprint of the value that some process has of each key."""
        self.owners = self._table("owner", _read_owner, list)
        self.claims = self._table("claim", _read_number, _same)
        self.slots = {
            HOUR: self._table("minute", _read_dict, _same, HOUR_S),
            DAY: self._table("slot", _read_dict, _same, (DAY.slots + 1) * DAY.step_s),
        }
        """The counts of each entry, by the number of the slot; models and workloads apart."""
        self.days = self._table("day", _read_dict, _same, 2 * DAY_S)
        """Tokens and cost of each key, by the Pacific day."""
        self.calls = self._table("calls", _read_list, _same, HOUR_S)
        """The latest calls, the latest first."""
        self.failures = self._table("failures", _read_list, _same, DAY_S)
        """The last calls in which each key failed, likewise."""

    def _table(
        self,
        kind: str,
        read: Callable[[Any], _T],
        write: Callable[[_T], Any],
        kept_s: float | None = None,
    ) -> _Table[_T]:
        table = self._tables[kind] = _Table(self, kind, read, write, kept_s)
        return table

    def begin(self) -> None:
        """Forget what was read before, if it may have changed since: a transaction begins."""
        version = self._file.version()
        if version != self._version or len(self.kept) > MOST_KEPT:
            self.forget()
            self._version = version

    def forget(self) -> None:
        """Forget all that was read, and what was changed and not stored."""
        self.kept, self.changed, self._version = {}, {}, None
        for table in self._tables.values():
            table.forget()

    def forget_later(self) -> None:
        """Forget all that was read when the next transaction begins."""
        self._version = None

    def read(self, names: Sequence[str]) -> None:
        """Read those of *names* that are not known, at once."""
        kept, prefix = self.kept, self._prefix
        wanted = [name for name in names if name not in kept]
        if wanted:
            rows = self._file.read([prefix + _text(name) for name in wanted])
            for name in wanted:
                text = rows.get(prefix + _text(name))
                kept[name] = None if text is None else self._read(name, text)

    def read_all(self, prefix: str) -> list[str]:
        """Read all records whose names begin with *prefix*; return their names."""
        cut, names = len(self._prefix), []
        for full_name, text in self._file.read_all(self._prefix + prefix).items():
            name = full_name[cut:]
            names.append(name)
            if name not in self.kept:
                self.kept[name] = self._read(name, text)
        return names

    def has_any(self, prefix: str) -> bool:
        """Return whether there is a record whose name begins with *prefix*."""
        return self._file.has_any(self._prefix + prefix)

    def store(self, now: float) -> None:
        """Write what has changed, and how long it is kept."""
        for name, table in self.changed.items():
            record = self.kept[name]
            if record is None:
                self._file.delete(self._prefix + _text(name))
            else:
                text = _encode(table.write(record))
                full_name = self._prefix + _text(name)
                self._file.write(full_name, text, table.expires_at(record, now))
        self.changed.clear()

    def _read(self, name: str, text: str) -> Any:
        try:
            return self._tables[name.partition(":")[0]].read(_decode(text))
        except _UNREADABLE:
            _log.warning(
                "%s: the record %s cannot be read and is dropped", self._file.path, one_line(name)
            )
            return None


def _text(name: str) -> str:
    """Return a name as UTF-8 can encode it; it may be from the program's request."""
    return name if name.isascii() else name.encode(errors="replace").decode()


# Records as JSON ---------------------------------------------------------------------------------


def _same(record: Any) -> Any:
    return record


def _read_number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise TypeError("no number")
    return value


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _read_dict(value: Any) -> dict[str, Any]:
    return dict(value.items())


def _read_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _read_limits(values: Any) -> Limits:
    limits = Limits(*(value if value is None else _read_number(value) for value in values))
    return NO_LIMITS if limits == NO_LIMITS else limits


def _read_quota(values: Any) -> QuotaWindows:
    quota = QuotaWindows()
    numbers = [*map(_read_number, values[:7])]
    quota.minute, quota.requests, quota.requests_next, *numbers = numbers
    quota.tokens, quota.tokens_next, quota.day_end, quota.day_requests = numbers
    if len(values) > 7:
        quota.learned_until = _read_number(values[7])
        quota.learned = _read_limits(values[8:11])
    return quota


def _write_quota(quota: QuotaWindows) -> list[Any]:
    values = [
        quota.minute,
        quota.requests,
        quota.requests_next,
        quota.tokens,
        quota.tokens_next,
        quota.day_end,
        quota.day_requests,
    ]
    if quota.learned is NO_LIMITS:
        return values
    return [*values, quota.learned_until, *quota.learned[:3]]


def _read_cooldowns(found: Any) -> Cooldowns:
    cooldowns = {}
    for scope, (until, length, count, failure, waitable, probe, probe_until) in found.items():
        cooldown = cooldowns[scope] = Cooldown()
        cooldown.until, cooldown.length = _read_number(until), _read_number(length)
        cooldown.failure_count, cooldown.failure = _read_number(count), _read_text(failure)
        cooldown.waitable = bool(waitable)
        cooldown.probe = None if probe is None else _read_text(probe)
        cooldown.probe_until = _read_number(probe_until)
    return cooldowns


def _write_cooldowns(cooldowns: Cooldowns) -> dict[str, Any]:
    return {
        scope: [
            one.until,
            one.length,
            one.failure_count,
            one.failure,
            one.waitable,
            one.probe,
            one.probe_until,
        ]
        for scope, one in cooldowns.items()
    }


def _read_leases(found: Any) -> dict[str, float]:
    return {lease_id: _read_number(until) for lease_id, until in found.items()}


def _read_spending(values: Any) -> Spending:
    spending = Spending()
    spending.day_end, spending.spent = map(_read_number, values[:2])
    spending.highest = {name: _read_number(cost) for name, cost in values[2].items()}
    spending.reserved = {
        lease_id: (_read_number(amount), _read_text(record))
        for lease_id, (amount, record) in values[3].items()
    }
    return spending


def _write_spending(spending: Spending) -> list[Any]:
    return [spending.day_end, spending.spent, spending.highest, spending.reserved]


def _read_health(values: Any) -> Health:
    last_used, successes, errors, last_error, fingerprint = values
    return Health(
        None if last_used is None else _read_number(last_used),
        _read_number(successes),
        _read_number(errors),
        None if last_error is None else _read_text(last_error),
        _read_text(fingerprint),
    )


def _write_health(health: Health) -> list[Any]:
    return [
        health.last_used,
        health.success_count,
        health.error_count,
        health.last_error,
        health.fingerprint,
    ]


def _read_owner(values: Any) -> Owner:
    key_id, project, until = values
    return Owner(_read_text(key_id), _read_text(project), _read_number(until))
