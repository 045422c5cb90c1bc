"""The pool's state in Redis: each decision is one Lua script, so it is atomic for all processes.

Only the server's clock decides (ADR 0008). Times that are returned are by this host's clock, and
times that are passed in are read as such, if the two clocks differ by more than `GUARD_S`.

Everything that fails is raised as `RedisStateError`; state/fallback.py then falls back to
in-process limits.

A record that cannot be read (another tool's, a broken restore, another version) counts as missing.
The script that reads it drops it, and a warning is logged.
"""

from __future__ import annotations

import json
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, product
from typing import Any, ClassVar, TypeVar

from ...core.activity import ActivityBatch, ActivityView, CallRecord, History, ShareKind, Span
from ...core.affinity import owner_lifetime
from ...core.ledger import snapshot
from ...core.model import (
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
    Unavailable,
)
from ...core.selection import RankedCandidates
from ...core.spending import Spending
from ...core.windows import Cooldown
from ...errors import warn_unless_logged
from ...forks import after_fork
from ..base import (
    NO_SPENDING,
    Counted,
    DataLoss,
    DataLostError,
    Holder,
    KeyHealth,
    SharedState,
    UnleasedUsage,
)
from ..renewals import LeaseRenewals
from . import activity, codec
from .connections import Connections, RedisStateError, Settles
from .epoch import DataEpoch
from .scripts import RECORD_TTL_S, ScriptCall, script
from .url import parse_url

__all__ = ["RedisState"]

_log = logging.getLogger("keyrot_middleware")
_T = TypeVar("_T")
_K = TypeVar("_K")
_R = TypeVar("_R")

LEASE_S = 15.0
"""How long a lease counts in `max_concurrency` without being renewed by its process."""
MAX_MODELS = 1_000
KEYS_PER_SCRIPT = 100
"""Keys in one dry run: one or two milliseconds of the server's time."""
RECORDS_PER_COMMAND = 500
"""Records in one MGET or HMGET: well under a millisecond of the server's time."""
_NO_LIMITS = json.dumps([None, None, None])


class RedisState(SharedState):
    """The pool's state in a server that all its processes share."""

    is_local: ClassVar[bool] = False

    def __init__(
        self,
        url: str,
        policy: RetryPolicy,
        clock: Callable[[], float] = time.time,
        *,
        pool: str = "default",
        lease_s: float = LEASE_S,
        test_clock: Callable[[], float] | None = None,
    ) -> None:
        """Parse the URL; the first call connects.

        Args:
            url: See url.py.
            policy: For the lengths of exponential cooldowns.
            clock: This host's clock, by which times are returned; it decides nothing.
            pool: Its name, part of the name of each record.
            lease_s: After which time the leases of a dead process no longer count, seconds.
            test_clock: For tests only: decides instead of the server's clock.

        Raises:
            ConfigError: The URL is wrong.
        """
        self._policy = policy
        self._clock = test_clock or clock
        self._test_clock = test_clock
        self._base = f"keyrot:v1:{{{pool}}}"
        self._lease_s = lease_s
        server = Connections(parse_url(url), self._base, partial(_settle_deferred, test_clock))
        self._server = server
        self._encoder, self._midnights = (
            codec.AcquireEncoder(lease_s),
            codec.PacificMidnights(),
        )
        self._buckets: dict[str, str] = {}
        """The last known bucket of each model, so that acquire reads all records at once."""
        self._epoch = DataEpoch()
        self._reported_at = 0
        """The change of the epoch in which the latest report was counted."""
        self._ids = codec.lease_ids()
        self._is_policy_known = False
        """Whether the server was asked what it does when its memory is full."""

        def renew(leases: Sequence[str]) -> None:
            server.run(_script_call(test_clock, "renew", lease_s, *leases))

        self._renewals = LeaseRenewals(renew, lease_s)
        # At the interpreter's exit too.
        weakref.finalize(self, _close, server, weakref.ref(self))
        weakref.finalize(self, self._renewals.close)
        after_fork(self, RedisState._after_fork)

    def acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        *,
        spread: bool,
        holder: Holder | None = None,
    ) -> Lease | Unavailable:
        """Acquire a lease for one of *candidates*; see `State.acquire`.

        Raises:
            DataLostError: The server has lost data that is not reported yet.
            RedisStateError: The server did not respond, or refused.
        """
        lease_id = next(self._ids)
        try:
            reply = self._run_acquire(info, candidates, lease_id, spread=spread)
        except RedisStateError as error:
            error.undo = partial(self._give_back, lease_id, info, candidates)
            raise
        granted, *rest = reply
        if granted < 0:
            self._epoch.find_loss(*_epoch_of(rest))
            raise DataLostError
        if not granted:
            self._epoch.read(rest[0].decode(), rest[1])
            skew = codec.clock_skew(float(rest[2]), self._clock())
            return codec.parse_refusal(rest, candidates, skew)
        lease, epoch, changes = codec.parse_lease(
            rest[0], info, candidates, lease_id, self._clock()
        )
        counted = Counted(lease.at, lease.project, lease.bucket, lease.requests, lease.tokens)
        self._epoch.read(epoch, changes, counted)
        if lease.bucket != self._buckets.get(info.quota_model, info.quota_model):
            if len(self._buckets) >= MAX_MODELS:
                self._buckets.clear()
            self._buckets[info.quota_model] = lease.bucket
        self._renewals.add(lease, holder)
        return lease

    def _give_back(self, lease_id: str, info: CallInfo, candidates: RankedCandidates) -> None:
        """End a lease that the server may have granted: its reply was lost."""
        if reply := self._run("give_back", lease_id):
            lease, _, _ = codec.parse_lease(reply[0], info, candidates, lease_id, self._clock())
            self.settle(lease, Outcome(LeaseOutcome.UNSENT))

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Settle *lease* with its outcome; see `State.settle`.

        A plain success is deferred: no call waits for it, and its failure is not raised.

        Raises:
            RedisStateError: The server did not respond, or refused.
        """
        names = tuple(names)
        if codec.can_defer_reply(lease, outcome, names):
            self._server.defer(self._encoder.settle(lease, outcome))
            return None
        if outcome.kind is not LeaseOutcome.SERVING:
            self._renewals.remove(lease)
        cost = codec.encode_cost(lease, outcome)
        if isinstance(lease.reservation, codec.RedisReservation):
            lease_id = lease.reservation.lease_id
        else:
            lease_id = next(self._ids)
        (reply,) = self._run(
            "settle",
            repr(self._clock()),
            *codec.encode_lease(lease, outcome),
            codec.encode_verdict(outcome.verdict, self._policy),
            cost,
            self._midnights(self._now()) if lease.has_budget else "",
            codec.encode_price_suffix(lease, outcome),
            lease_id,
            *(word for name in names for word in codec.resource_digest(name)),
        )
        until, epoch, changes = reply.split()
        if isinstance(cost, int) and cost:
            spent = Counted(lease.at, lease.project, spent=cost)
            self._epoch.record(epoch.decode(), int(changes), [spent])
        return None if until == b"-" else float(until)

    def settles_without_io(self, lease: Lease, outcome: Outcome, names: tuple[str, ...]) -> bool:
        """Return whether `settle` only defers; see `State.settles_without_io`."""
        return self._server.is_open and codec.can_defer_reply(lease, outcome, names)

    def release(self, lease: Lease) -> None:
        """Stop renewing *lease*; it no longer counts after `LEASE_S`."""
        self._renewals.remove(lease)

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return the owner of the first known one of *names*; see `State.get_owner`.

        Raises:
            RedisStateError: The server did not respond.
        """
        records: list[str] = []
        renewals: list[list[str]] = []
        for name in names:
            digest, seconds = codec.resource_digest(name)
            records.append(f"{self._base}:owner:{digest}")
            if owner_lifetime(name).renewed:
                renewals.append(["EXPIRE", records[-1], str(seconds)])
        if not records:
            return None
        commands = [["MGET", *records], *renewals]
        return codec.parse_owner(self._server.commands(commands)[0])

    def reset(self, key: Candidate) -> None:
        """Forget every cooldown that blocks *key*, and its project's learned limits.

        Raises:
            RedisStateError: The server did not respond.
        """
        names = (
            f"cooldown:key:{key.record}",
            f"cooldown:project:{key.project}",
            f"cooldown:billing:{key.billing_account}",
        )
        self._run("reset", len(names), *names, key.project)

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Record configured limits and which keys have a value; see `State.configure`.

        Raises:
            RedisStateError: The server did not respond.
        """
        keys = tuple(candidates)
        self._record_values(keys)
        name = f"{self._base}:configured"
        changed = self._of_its_type(name, lambda: self._changed_limits(name, keys))
        projects = list(dict.fromkeys(key.project for key, _ in changed))
        for start in range(0, len(projects), KEYS_PER_SCRIPT):
            names = projects[start : start + KEYS_PER_SCRIPT]
            self._run("reset", 0, *names)
        # After the reset: if it is interrupted, the next configure() does it again.
        self._server.commands(
            [
                *(
                    ["HDEL", name, key.key_id]
                    if limits == _NO_LIMITS
                    else ["HSET", name, key.key_id, limits]
                    for key, limits in changed
                ),
                ["EXPIRE", name, str(RECORD_TTL_S)],
            ]
        )

    def _record_values(self, keys: Sequence[Candidate]) -> None:
        """Record the fingerprint of the value that this process has of each key."""
        name = f"{self._base}:values"
        pairs = [(key.key_id, key.fingerprint) for key in keys if key.fingerprint]
        if pairs:
            self._server.commands(
                [
                    *(
                        ["HSET", name, *chain.from_iterable(pairs[i : i + RECORDS_PER_COMMAND])]
                        for i in range(0, len(pairs), RECORDS_PER_COMMAND)
                    ),
                    ["EXPIRE", name, str(RECORD_TTL_S)],
                ]
            )

    def _changed_limits(self, name: str, keys: Sequence[Candidate]) -> list[tuple[Candidate, str]]:
        """Return the keys whose limits are not the recorded ones, with their new limits as JSON.

        The hash `configured` has the limits of each key; keys without limits are not in it.
        """
        recorded = self._read_many(["HMGET", name], [key.key_id for key in keys])
        current = [json.dumps(key.limits[:3]) for key in keys]
        return [
            (key, limits)
            for key, limits, text in zip(keys, current, recorded, strict=True)
            if limits != (text.decode(errors="replace") if text else _NO_LIMITS)
        ]

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return the keys with the values that processes have; see `State.with_values`.

        Raises:
            RedisStateError: The server did not respond.
        """
        keys = tuple(candidates)
        known = self._read_many(["HMGET", f"{self._base}:values"], [key.key_id for key in keys])
        used = [record[3] for record in self._read_health(keys)]
        values = [one or last for one, last in zip(known, used, strict=True)]
        return [
            key if value is None else key.with_value(value.decode(errors="replace"))
            for key, value in zip(keys, values, strict=True)
        ]

    def take_loss(self) -> DataLoss | None:
        """Return the data loss that was found since the last call; see `SharedState.take_loss`."""
        return self._epoch.take_loss()

    def accept_loss(self, loss: DataLoss) -> None:
        """Lease keys again: what was missing is reported."""
        self._epoch.accept(loss, max(loss.changes, self._reported_at))

    def check(self) -> None:
        """Check whether the server can be written to, and whether it has lost data.

        Raises:
            RedisStateError: It cannot be written to, or does not respond.
        """
        found = _epoch_of(self._run("check", *self._epoch.known, next(self._ids)))
        if self._epoch.known.epoch:
            self._epoch.find_loss(*found)
        else:
            self._epoch.read(*found[:2])
        if not self._is_policy_known:
            self._is_policy_known = True
            self._warn_of_eviction()

    def _warn_of_eviction(self) -> None:
        """Warn of a server that drops records when its memory is full."""
        try:
            (memory,) = self._server.commands([["INFO", "memory"]])
        except RedisStateError:  # this user may not ask
            return
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            warn_unless_logged(
                _log,
                f"{self._server}: maxmemory-policy is {policy}: the server drops records when its "
                "memory is full, and calls then exceed limits; set it to noeviction",
            )

    def record_usage(
        self,
        usages: Sequence[UnleasedUsage],
        spending: Mapping[str, int] = NO_SPENDING,
        report: str = "",
        *,
        again: bool = False,
    ) -> None:
        """Count what was sent without a lease; see `SharedState.record_usage`.

        Raises:
            RedisStateError: The server did not respond, or refused.
        """
        epoch, changes = self._run(
            "record_usage",
            self._midnights(self._now()),
            report or next(self._ids),
            len(usages),
            *(word for usage in usages for word in usage),
            *(word for pair in spending.items() for word in pair),
        )
        self._reported_at = changes
        if not again:
            at = self._clock()
            counted = [Counted(at, u.project, u.bucket, u.day_requests, u.tokens) for u in usages]
            counted += [Counted(at, project, spent=amount) for project, amount in spending.items()]
            self._epoch.record(epoch.decode(), changes, counted)

    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; one round trip per hundred keys.

        Raises:
            RedisStateError: The server did not respond.
        """
        keys = list(candidates)
        found: dict[str, Block] = {}
        for start in range(0, len(keys), KEYS_PER_SCRIPT):
            batch = tuple((0, key) for key in keys[start : start + KEYS_PER_SCRIPT])
            reply = self._run_acquire(info, batch, codec.DRY_RUN, spread=False)
            skew = codec.clock_skew(float(reply[3]), self._clock())
            found |= codec.parse_refusal(reply[1:], batch, skew).blocks
        return found

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id; a few round trips per thousand keys.

        Raises:
            RedisStateError: The server did not respond.
        """
        self._server.flush()
        keys = tuple(candidates)
        known, server_now = self._of_its_type(
            f"{self._base}:buckets", lambda: self._read_snapshot(keys)
        )
        skew = codec.clock_skew(server_now, self._clock())
        for health in known.values() if skew else ():
            codec.shift_times(health, skew)
        return known

    def _read_snapshot(self, keys: Sequence[Candidate]) -> tuple[dict[str, KeyHealth], float]:
        """Return the health of each key by its id, and the server's time."""
        moment, buckets = self._server.commands(
            [("TIME",), ("ZRANGE", f"{self._base}:buckets", 0, -1)]
        )
        now = self._test_clock() if self._test_clock else int(moment[0]) + int(moment[1]) / 1e6
        projects = dict.fromkeys(key.project for key in keys)
        pairs = list(product(projects, [bucket.decode() for bucket in buckets]))
        quotas = self._read([codec.quota_name(self._base, *pair) for pair in pairs])
        known = snapshot(
            keys,
            _readable_of(
                codec.parse_health,
                [key.key_id for key in keys],
                self._read_health(keys),
            ),
            _readable_of(codec.parse_quota, pairs, quotas),
            self._read_cooldowns(keys),
            spending=self._read_spending(keys),
            now=now,
        )
        return known, now

    def _read_cooldowns(self, keys: Sequence[Candidate]) -> dict[tuple[str, ...], Cooldown]:
        owners = [("key", key.record) for key in keys]
        owners += dict.fromkeys(("project", key.project) for key in keys)
        owners += dict.fromkeys(("billing", key.billing_account) for key in keys)
        records = self._read([f"{self._base}:cooldown:{kind}:{owner}" for kind, owner in owners])
        found: dict[tuple[str, ...], Cooldown] = {}
        for (_, owner), record in zip(owners, records, strict=True):
            found |= codec.readable(partial(codec.parse_cooldowns, owner=owner), record) or {}
        return found

    def _read_spending(self, keys: Sequence[Candidate]) -> dict[str, Spending]:
        projects = list(dict.fromkeys(k.project for k in keys if k.usd_per_day is not None))
        records = self._read([f"{self._base}:spending:{project}" for project in projects])
        return _readable_of(codec.parse_spending, projects, records)

    def _read_health(self, keys: Sequence[Candidate]) -> list[Sequence[bytes | None]]:
        records: list[Sequence[bytes | None]] = []
        for start in range(0, len(keys), RECORDS_PER_COMMAND):
            some = keys[start : start + RECORDS_PER_COMMAND]
            (found,) = self._run("read_health", *(key.key_id for key in some))
            records += found
        return records

    def _read(self, names: Sequence[str]) -> list[bytes | None]:
        return self._read_many(["MGET"], names)

    def _read_many(self, command: Sequence[str], names: Sequence[str]) -> list[bytes | None]:
        starts = range(0, len(names), RECORDS_PER_COMMAND)
        commands = [(*command, *names[i : i + RECORDS_PER_COMMAND]) for i in starts]
        return [
            record
            for reply in (self._server.commands(commands) if commands else ())
            for record in reply
        ]

    def record_activity(self, batch: ActivityBatch) -> None:
        """Add to the activity of the pool; see `State.record_activity`.

        Raises:
            RedisStateError: The server did not respond, or refused.
        """
        commands = json.dumps(activity.commands_of(batch, self._base))
        self._run("record_activity", next(self._ids), commands)

    def activity(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Return the activity of the pool; see `State.activity`.

        Raises:
            RedisStateError: The server did not respond.
        """
        return activity.read(self._server.commands, self._base, key_ids, now)

    def activity_history(self, entry: str, span: Span, now: float) -> History:
        """Return the counts of an entry over a span; see `State.activity_history`.

        Raises:
            RedisStateError: The server did not respond.
        """
        return activity.read_history(self._server.commands, self._base, entry, span, now)

    def activity_shares(self, kind: ShareKind, span: Span, now: float) -> dict[str, list[int]]:
        """Return the counts of each model or workload; see `State.activity_shares`.

        Raises:
            RedisStateError: The server did not respond.
        """
        return activity.read_shares(self._server.commands, self._base, kind, span, now)

    def failures_of(self, key_id: str) -> list[CallRecord]:
        """Return the last calls in which a key failed; see `State.failures_of`.

        Raises:
            RedisStateError: The server did not respond.
        """
        return activity.read_failures(self._server.commands, self._base, key_id)

    def claim(self, name: str, seconds: float) -> float:
        """Take *name* for all processes; see `State.claim`.

        Raises:
            RedisStateError: The server did not respond, or refused.
        """
        record, ms = f"{self._base}:claim:{name}", int(seconds * 1000)
        mine = next(self._ids)
        _, taken_by, left_ms = self._server.commands(
            [("SET", record, mine, "NX", "PX", ms), ("GET", record), ("PTTL", record)]
        )
        return 0.0 if taken_by == mine.encode() else max(left_ms, 1) / 1000

    def close(self) -> None:
        """Send deferred scripts and close the connections."""
        super().close()
        self._renewals.close()
        self._server.close()

    def _of_its_type(self, name: str, read: Callable[[], _T]) -> _T:
        """Call *read*; if the record *name* is of another type, drop it and call once more."""
        try:
            return read()
        except RedisStateError as error:
            if not error.is_wrong_type:
                raise
        self._warn_of_dropped(sum(self._server.commands([("DEL", name)])))
        return read()

    def _warn_of_dropped(self, count: int) -> None:
        if count:
            _log.warning(
                "%s: records of the shared state could not be read and were dropped: %d",
                self._server,
                count,
            )

    def _run(self, name: str, *args: Any) -> list[Any]:
        """Run a script; return its reply without the number of dropped records."""
        reply: list[Any] = self._server.run(_script_call(self._test_clock, name, *args))
        self._warn_of_dropped(reply.pop(0))
        return reply

    def _run_acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        lease_id: str,
        *,
        spread: bool,
    ) -> list[Any]:
        bucket = self._buckets.get(info.quota_model, info.quota_model)
        args = (
            lease_id,
            self._encoder.candidates(candidates),
            self._encoder.call(info, bucket, self._midnights(self._now()), spread=spread),
            *self._epoch.known,
        )
        acquire = partial(_acquire_call, self._test_clock, args)
        reply: list[Any] = self._server.run_with_settles(acquire)
        self._warn_of_dropped(reply.pop(0))
        return reply

    def _now(self) -> float:
        return self._test_clock() if self._test_clock else time.time()

    def _after_fork(self) -> None:
        self._ids = codec.lease_ids()  # these are the parent's


def _close(server: Connections, alive: weakref.ref[RedisState]) -> None:
    """Close the connections of a state that was collected, or lives at the interpreter's exit."""
    if alive() is None:
        server.close()
    else:
        server.close_at_exit()


def _script_call(test_clock: Callable[[], float] | None, name: str, *args: Any) -> ScriptCall:
    now = repr(test_clock()) if test_clock else ""
    return ScriptCall(script(name), (now, *args))


def _acquire_call(
    test_clock: Callable[[], float] | None, args: tuple[Any, ...], settles: Settles
) -> ScriptCall:
    """Return the run of acquire.lua that settles first."""
    return _script_call(test_clock, "acquire", settles.id, settles.packed, *args)


def _settle_deferred(test_clock: Callable[[], float] | None, settles: Settles) -> ScriptCall:
    """Return the run of acquire.lua that settles, and acquires nothing."""
    return _acquire_call(test_clock, ("",) * 6, settles)


def _epoch_of(reply: Sequence[Any]) -> tuple[str, int, str, int]:
    """Parse an epoch: its id and changes, and those of the data that was kept."""
    epoch, changes, kept_epoch, kept_changes = reply
    return epoch.decode(), changes, kept_epoch.decode(), kept_changes


def _readable_of(
    parse: Callable[[_R], _T | None], names: Sequence[_K], records: Sequence[_R | None]
) -> dict[_K, _T]:
    """Return the records that can be read, by name."""
    found = ((name, codec.readable(parse, r)) for name, r in zip(names, records, strict=True))
    return {name: value for name, value in found if value is not None}
