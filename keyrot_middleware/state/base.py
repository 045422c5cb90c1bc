"""What state backends share: the interface, threads for tasks, and records as JSON.

A backend counts usage and decides on leases atomically.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import sys
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache, partial
from math import inf, isfinite
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar
from weakref import WeakSet

from ..core.activity import ActivityRows
from ..core.failures import ENDED_BY_PERSON
from ..core.ledger import Cooldowns, Health, KeyHealth, Ledger, Owner, Reservation, quota_name
from ..core.model import (
    NO_LIMITS,
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Strategy,
    Terms,
    Unavailable,
    part_of,
)
from ..core.selection import RankedCandidates
from ..core.windows import (
    DAY_S,
    HOUR_S,
    PROBE_POLL_S,
    SLOTS,
    Cooldown,
    Learned,
    QuotaWindows,
    Spending,
)
from ..core.wording import one_line
from ..errors import KeyrotError, warn_unless_logged
from ..forks import after_fork
from ..locks import Lock

_T = TypeVar("_T")
_P = ParamSpec("_P")


class OtherVersionError(KeyrotError):
    """Another version of this package uses the state in a way that this one does not know."""


class UnreadableRecordError(OtherVersionError):
    """A record that holds a limit cannot be read; it must not be begun anew."""


class BusyError(KeyrotError):
    """What was tried at once has to wait: nothing of it was done, and it belongs in a thread."""


at_once: ContextVar[bool] = ContextVar("at_once", default=False)
"""Whether a decision is made on an event loop, and may wait for nobody."""


class InFlight:
    """The leases of this process that count in `max_concurrency`.

    A lease that nobody settles ends with its last reference.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._lock = Lock()
        self._begin()
        after_fork(self, InFlight._begin)

    def _begin(self) -> None:
        self.leases: dict[str, WeakSet[Reservation]] = {}

    def blocks(
        self, candidates: Iterable[Candidate], now: float, terms: Terms | None = None
    ) -> dict[str, Block]:
        """Return the keys that have no room for another request."""
        with self._lock:
            return self._blocks(candidates, now, terms)

    def _blocks(
        self, candidates: Iterable[Candidate], now: float, terms: Terms | None
    ) -> dict[str, Block]:
        found = {}
        for key in candidates:
            if (most := key.limits.max_concurrency) is None:
                continue
            leases, note = _living(self.leases.get(key.record)), None
            if terms is not None and terms.share < 1.0:
                share = part_of(most, terms.share)
                if sum(terms.workload in one.parts for one in leases) >= share:
                    note = terms.note("share", "concurrency", share, most)
            if note or len(leases) >= most:
                until = now + PROBE_POLL_S
                found[key.key_id] = Block("concurrency", until, waitable=True, note=note or "")
        return found

    def add(self, lease: Lease, most: int | None) -> bool:
        """Count a lease; return False if there is no room any more."""
        if most is None or not isinstance(lease.reservation, Reservation):
            return True
        with self._lock:
            leases = self.leases.setdefault(lease.record, WeakSet())
            if len(_living(leases)) >= most:
                return False
            leases.add(lease.reservation)
            return True

    def remove(self, lease: Lease) -> None:
        """Count a lease no more."""
        if isinstance(lease.reservation, Reservation):
            with self._lock:
                self.leases.get(lease.record, WeakSet()).discard(lease.reservation)


def _living(leases: WeakSet[Reservation] | None) -> list[Reservation]:
    """List leases; `len` counts dead ones too, whose removal an interrupt has swallowed."""
    return list(leases) if leases else []


class State(ABC):
    """The limits of keys, who owns stored resources, and what calls did lately.

    A subclass has the abstract methods. They may raise, and if it is not `is_local` they may block
    for some seconds. `_acquire`, `_settle` and `_get_blocks` are the methods without underscore but
    for `max_concurrency`, which is counted here. `RecordState` has all of them.
    """

    is_local: ClassVar[bool] = True
    """The methods do no I/O, so that tasks may call them directly."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Count nothing yet; *clock* returns epoch seconds."""
        self._clock = clock
        self._in_flight = InFlight()
        self._threads = StateThreads()

    @property
    def degraded(self) -> bool:
        """Return whether the shared state is unreachable, so that in-process limits apply."""
        return False

    # Leases ---------------------------------------------------------------------------------------

    def acquire(
        self, info: CallInfo, candidates: RankedCandidates, *, strategy: Strategy
    ) -> Lease | Unavailable:
        """Acquire a lease for one of *candidates*: reserve in all windows or in none.

        Args:
            info: The call: its model, verb, tokens and requests.
            candidates: `(group, candidate)` in order; lower groups first.
            strategy: `spread`: within a group the least utilized key; else the first available one.
        """
        for _, key in candidates:
            if key.limits.max_concurrency is not None:
                break
        else:
            return self._acquire(info, candidates, strategy=strategy)
        keys = {key.key_id: key for _, key in candidates}
        while True:
            full = self._in_flight.blocks(keys.values(), self._clock(), info.terms)
            offer = tuple(one for one in candidates if one[1].key_id not in full)
            reply = self._acquire(info, offer, strategy=strategy)
            if isinstance(reply, Unavailable):
                others = self._get_blocks(info, [keys[key_id] for key_id in full])
                return reply.beside(full | others)
            if self._in_flight.add(reply, keys[reply.key_id].limits.max_concurrency):
                return reply._replace(refused={**full, **reply.refused}) if full else reply
            give_back = partial(self._settle, reply, Outcome(LeaseOutcome.UNSENT), ())
            try:
                give_back()
            except BusyError:
                self._threads.submit(give_back)
                raise

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Settle *lease* with its outcome, and record it as the owner of *names*.

        `LeaseOutcome.SERVING` only ends the cooldowns whose probe the lease is.

        Returns:
            Until when the scope of the failure is cooling down, epoch seconds; None if it is not.
        """
        if self._in_flight.leases and outcome.kind is not LeaseOutcome.SERVING:
            self._in_flight.remove(lease)
        return self._settle(lease, outcome, tuple(names))

    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each of *candidates* now; nothing is reserved.

        Args:
            info: The call to be sent.
            candidates: Any number of keys; those that `acquire` would lease are not returned.
        """
        keys = list(candidates)
        return self._in_flight.blocks(keys, self._clock(), info.terms) | self._get_blocks(
            info, keys
        )

    @abstractmethod
    def _acquire(
        self, info: CallInfo, candidates: RankedCandidates, *, strategy: Strategy
    ) -> Lease | Unavailable:
        """Acquire a lease, `max_concurrency` aside."""

    @abstractmethod
    def _settle(self, lease: Lease, outcome: Outcome, names: Sequence[str]) -> float | None:
        """Settle a lease, `max_concurrency` aside."""

    @abstractmethod
    def _get_blocks(self, info: CallInfo, keys: Sequence[Candidate]) -> dict[str, Block]:
        """Return why `_acquire` would refuse keys."""

    # Keys -----------------------------------------------------------------------------------------

    @abstractmethod
    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""

    @abstractmethod
    def reset(self, key: Candidate) -> None:
        """Forget every cooldown of *key*, its project and its billing account.

        Other keys of the project or account may be available again too. Learned limits of the
        project are forgotten; counts stay.
        """

    @abstractmethod
    def record_values(self, candidates: Iterable[Candidate]) -> None:
        """Record which values this process has of keys, by their fingerprints."""

    @abstractmethod
    def take_limits(self, project: str, found: Mapping[str, Limits]) -> None:
        """Use limits of a project that were read from its provider, by model bucket.

        They hold for a day. A smaller one that a response has reported holds for its own day.
        """

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return keys whose values the caller does not know with the values in use.

        Only a shared state knows them.
        """
        return list(candidates)

    # Owners ---------------------------------------------------------------------------------------

    @abstractmethod
    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return `(key_id, project)` of the first known one of *names*."""

    def set_owner(self, lease: Lease, names: Iterable[str]) -> None:
        """Record the key of *lease*, which is settled already, as the owner of *names*."""
        self._settle(without_reservation(lease), Outcome(LeaseOutcome.UNSENT), tuple(names))

    # Activity -------------------------------------------------------------------------------------

    @abstractmethod
    def add_activity(self, rows: ActivityRows) -> None:
        """Add to the activity of the pool."""

    @abstractmethod
    def activity(
        self, names: Sequence[str], fields: Sequence[str] | None
    ) -> list[Mapping[str, int]]:
        """Return the counts of the records *names*: of some fields, or of all."""

    @abstractmethod
    def activity_log(self, name: str) -> list[str]:
        """Return the texts of a list of the activity, the latest first."""

    # Tasks ----------------------------------------------------------------------------------------

    async def do(self, method: Callable[_P, _T], *args: _P.args, **more: _P.kwargs) -> _T:
        """Call a method for a task: at once, or in a thread where it has to wait.

        If the task is cancelled, a lease that was acquired for it is given back.
        """
        if self.is_local:
            return method(*args, **more)
        work = partial(method, *args, **more)
        try:
            return self.try_at_once(work)
        except BusyError:
            return await self._threads.run(work, self._give_back)

    def try_at_once(self, work: Callable[[], _T]) -> _T:
        """Do *work*, which calls methods of this state, if it waits for nobody.

        Raises:
            BusyError: It would, or it fails: nothing was done. Here always.
        """
        del work
        raise BusyError("the state is another program")

    def settles_without_io(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> bool:
        """Return whether `settle` does no I/O with these arguments, so that tasks may call it."""
        del lease, outcome, names
        return self.is_local

    def _give_back(self, reply: object) -> None:
        if isinstance(reply, Lease):
            self.settle(reply, Outcome(LeaseOutcome.UNSENT))

    def check(self) -> None:  # noqa: B027 - nothing can fail
        """Check whether the backend works; raise its error if it does not."""

    def close(self) -> None:
        """Close connections and threads; calls in flight can still be settled."""
        self._threads.close()


def can_wait(lease: Lease, outcome: Outcome, names: Sequence[str]) -> bool:
    """Return whether a settle may be written later: no other call depends on a plain success."""
    ended = outcome.kind in (LeaseOutcome.SUCCESS, LeaseOutcome.ABANDONED)
    has_more = names or lease.probe or lease.purses or lease.reservation is None
    return ended and outcome.verdict is None and not has_more


def without_reservation(lease: Lease) -> Lease:
    """Return *lease* as one that was not reserved: settling it changes no counts."""
    return lease._replace(reservation=None, degraded=False, purses=())


class LedgerState(State):
    """A state whose records this process reads and changes."""

    _ledger: Ledger

    @abstractmethod
    def _run(self, decide: Callable[[float], _T], needed: Iterable[tuple[str, str]] = ()) -> _T:
        """Make a decision, which gets the time, as if there were no other.

        Args:
            decide: It may be called several times, until nobody was faster.
            needed: The tables and names of records that it reads, as far as is known.
        """

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""
        keys = list(candidates)
        needed = [("health", key.key_id) for key in keys]
        return self._run(lambda now: self._ledger.snapshot(keys, now), needed)

    def reset(self, key: Candidate) -> None:
        """Forget every cooldown of *key*, its project and account; see `State.reset`."""
        self._run(lambda _: self._ledger.reset(key))

    def record_values(self, candidates: Iterable[Candidate]) -> None:
        """Record the values of keys; see `State.record_values`."""
        keys = list(candidates)
        needed = [("fingerprints", key.key_id) for key in keys]
        self._run(lambda _: self._ledger.record_values(keys), needed)

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return the keys with the values that processes have; see `State.with_values`."""
        keys = list(candidates)
        return self._run(lambda _: self._ledger.with_values(keys))

    def take_limits(self, project: str, found: Mapping[str, Limits]) -> None:
        """Use limits of a project that were read; see `State.take_limits`."""
        needed = [("learned", quota_name(project, bucket)) for bucket in found]
        self._run(lambda now: self._ledger.take_limits(project, found, now), needed)

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`."""
        names = tuple(names)
        return self._run(lambda now: self._ledger.get_owner(names, now)) if names else None


MAX_THREADS = 32
"""A script takes the server about 50 µs, so a few threads keep a near one busy; a distant one takes
its latency for each, so more are started while all are waiting."""


class StateThreads:
    """Threads that start when a task needs one and end with `close()`."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._begin()
        after_fork(self, StateThreads._begin)

    def _begin(self) -> None:
        """Start without threads, also in a forked child, which has none of its parent's."""
        self._executor = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="keyrot-state")

    async def run(self, work: Callable[[], _T], undo: Callable[[_T], object] | None = None) -> _T:
        """Run *work* in a thread, in the context of the calling task.

        Args:
            work: Blocks for a bounded time.
            undo: Called with the result, in the same thread, if the task was cancelled meanwhile.
        """
        future = self.submit(partial(contextvars.copy_context().run, work))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo is not None and not future.cancelled():
                future.add_done_callback(lambda one: self.submit(partial(_undo, undo, one)))
            raise

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Run *work* in a thread; in the calling one only if none can be started."""
        try:
            return self._executor.submit(work)
        except RuntimeError:  # the interpreter ends, or no thread can be started
            future: Future[Any] = Future()
            future.set_running_or_notify_cancel()
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            return future

    def close(self) -> None:
        """End the threads; running work finishes, later work starts new ones."""
        executor = self._executor
        self._begin()
        executor.shutdown(wait=False)


def _undo(undo: Callable[[Any], object], future: Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        undo(future.result())


SETTLES_AT_ONCE = 100
MAX_DEFERRED = 10_000


class Deferred(Generic[_T]):
    """Settles that are written with the next decision of this process."""

    def __init__(self, state: Any) -> None:
        """Start without any; *state* writes them with `flush()`."""
        self._settles: deque[_T] = deque(maxlen=MAX_DEFERRED)
        self._alive = weakref.ref(state)
        self._is_expected = False
        """The end of this process writes them, however it comes about."""
        weakref.finalize(state, self.finish)
        after_fork(self, Deferred._renew)

    def _renew(self) -> None:
        self._settles.clear()  # the parent writes them
        self._is_expected = False

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._settles)

    def add(self, settle: _T) -> None:
        """Keep a settle."""
        if not self._is_expected:
            self._is_expected = True
            # A child of multiprocessing ends without `atexit`.
            if (util := sys.modules.get("multiprocessing.util")) is not None:
                util.Finalize(self._alive(), self.finish, exitpriority=1)
        self._settles.append(settle)

    def take(self, most: int = SETTLES_AT_ONCE) -> list[_T]:
        """Return some of them, which the caller writes."""
        taken: list[_T] = []
        with suppress(IndexError):  # another thread has taken the last one
            while self._settles and len(taken) < most:
                taken.append(self._settles.popleft())
        return taken

    def put_back(self, settles: list[_T]) -> None:
        """Keep what was taken and not written."""
        self._settles.extendleft(reversed(settles))

    def finish(self) -> None:
        """Let the state write them, as it or the process ends; what it cannot write is lost."""
        state = self._alive()
        try:
            if state is not None:
                state.flush()
        except KeyrotError:
            self._settles.clear()


FOREVER = 1e12
"""In place of an infinite time, which JSON does not have."""
UNUSED_S = 32 * DAY_S
"""How long records are kept that have no end: longer than a month, of which some count money."""
HEALTH_S = 400 * DAY_S
"""How long it is known when a key was last used, and how often it has served: to find those that
nobody needs."""


def _numbers(row: list[Any], count: int) -> list[Any]:
    """Return the first fields of a row, which are so many numbers."""
    found = row[:count]
    if len(found) < count or not isfinite(sum(found)):  # it raises for all else but numbers
        raise ValueError(row)
    return found


def _number_or_none(row: list[Any], field: int) -> Any:
    found = row[field] if field < len(row) else None
    return None if found is None else _numbers([found], 1)[0]


def _limits(row: list[Any], field: int) -> Limits:
    return Limits(*(_number_or_none(row, field + n) for n in range(3)))


def _learned(row: list[Any]) -> Learned:
    (until,) = _numbers(row, 1)
    return Learned(until, _limits(row, 1), any(row[4:5]), _limits(row, 5), row[8:])


def _cooldowns(rows: dict[str, list[Any]]) -> Cooldowns:
    found = {}
    for scope, (until, count, failure, waitable, probe_until, *rest) in rows.items():
        _numbers([until, count, probe_until], 3)
        ends = inf if until >= FOREVER else until
        found[scope] = Cooldown(ends, count, str(failure), bool(waitable), probe_until, rest)
    return found


def _health(row: list[Any]) -> Health:
    successes, errors = _numbers(row[1:], 2)
    return Health(_number_or_none(row, 0), successes, errors, row[3], row[4:])


def _owner(row: list[Any]) -> Owner:
    key_id, project, until, *rest = row
    return Owner(key_id, project, _numbers([until], 1)[0], rest)


READERS: dict[str, Callable[[Any], Any]] = {
    "quotas": lambda row: QuotaWindows(*[*_numbers(row, 7), row[7:]]),
    "learned": _learned,
    "cooldowns": _cooldowns,
    "purses": lambda row: Spending(*[*_numbers(row, 9), _numbers(row[9], SLOTS), row[10:]]),
    "health": _health,
    "fingerprints": str,
    "buckets": str,
    "owners": _owner,
}
"""They take the fields that they know. What is behind these stays with the record as its `rest`."""


_parse = lru_cache(1_024)(json.loads)
"""Most records are as they were when they were last read; readers keep nothing of it."""


OF_LIMITS = frozenset({"quotas", "learned", "cooldowns", "purses"})


def load(table: str, name: str, text: str | bytes) -> Any:
    """Parse a record of a table; one that cannot be read is reported once, and is none.

    Raises:
        UnreadableRecordError: It holds a limit, which would be sent a second time.
    """
    try:
        return READERS[table](_parse(text))
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        record = f"{table} of {one_line(name)}"
    if table in OF_LIMITS:
        raise UnreadableRecordError(
            f"its record {record} cannot be read: another version has written it, or it is broken"
        )
    report_unreadable(record)
    return None


@lru_cache(1_024)
def report_unreadable(record: str) -> None:
    """Say once that a record cannot be read."""
    text = f"the state's record {record} cannot be read, and counts as none"
    warn_unless_logged(logging.getLogger("keyrot_middleware"), text)


def dump(record: object) -> str:
    """Return a record as text."""
    match record:
        case QuotaWindows() | Spending() | Cooldown():
            *row, rest = [getattr(record, name) for name in record.__slots__]
            row += rest
        case Learned(until, limits, steady, read, rest):
            more = (*read[:3], *rest) if rest or read != NO_LIMITS else ()
            row = [until, *limits[:3], int(steady), *more]
        case dict():
            rows = (f"{json.dumps(scope)}:{dump(one)}" for scope, one in record.items())
            return f"{{{','.join(rows)}}}"
        case str():
            return json.dumps(record)
        case Health() | Owner():
            *row, rest = record
            row += rest
        case _:
            raise TypeError(type(record))
    return json.dumps([FOREVER if one == inf else one for one in row])


def expires_at(record: object, now: float) -> float:
    """Return from when on a record says no more than none does, epoch seconds."""
    match record:
        case QuotaWindows():
            return record.day_end + 120.0
        case Spending():
            return record.month_end + HOUR_S
        case Learned() | Owner():
            return record.until
        case Health():
            return (record.last_used or now) + HEALTH_S
        case dict():
            is_cut = any(one.failure in ENDED_BY_PERSON for one in record.values())
            last = max((one.until for one in record.values()), default=now)
            return last + (UNUSED_S if is_cut else DAY_S)
        case _:
            return now + UNUSED_S
