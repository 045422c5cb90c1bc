"""The pool's memory in Redis: each decision is one script, so one step for all who share it.

The server's clock is the only one that decides (ADR 0008). Times that come out are by this
host's clock and times that go in are understood as such, where the two differ by more than the
second that the windows guard against.

Whatever goes wrong is raised as `RedisStateError`: state/fallback.py goes on without the server.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

from ...core.activity import ActivityBatch, ActivityView
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
from ...forks import after_fork
from ..base import Holder, KeyHealth, State
from . import activity, codec, configured
from .codec import Offers
from .connections import Connections, RedisStateError, ScriptCall, script
from .renewals import Renewals
from .repair import UNREADABLE, may_be_unreadable, names_of, warn
from .survey import survey, with_values
from .url import read_place

__all__ = ["RedisState"]

LEASE_S = 15.0
"""How long a lease holds its place in `max_concurrency` when its worker shows no more that it
lives; it does so while the call runs, however long that takes."""


_T = TypeVar("_T")

MODELS_KEPT = 1_000
EPOCH_KEPT_S = 30 * 86_400
"""How long an unused pool is known to have been there; each day of use begins it anew."""
AT_ONCE = 100
"""Keys in one dry run, a millisecond or two of the server's time."""


class RedisState(State):
    """The pool's memory in a server that all its processes share."""

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
        """Read the URL; nothing is connected before the first question.

        Args:
            url: As url.py describes.
            policy: For the lengths of exponential cooldowns.
            clock: This host's, by which times are returned to the caller; it decides nothing.
            pool: Its name, part of each record's.
            lease_s: When the places of a worker that died are free again, seconds.
            test_clock: For tests only: decides instead of the server's clock.

        Raises:
            ConfigError: The URL is wrong.
        """
        self._policy = policy
        self._clock = test_clock or clock
        self._test_clock = test_clock
        self._base = f"keyrot:v1:{{{pool}}}"
        self._lease_s = lease_s
        self._server = server = Connections(read_place(url), self._base)
        self._offers, self._midnights = Offers(self._base), codec.Midnights()
        self._buckets: dict[str, str] = {}
        """In which bucket a model was counted last, so that acquire reads all records at once."""
        self._epochs: set[bytes] = set()
        """Which epochs the records have had: a new one means that the server forgot all before."""
        self._ids = codec.lease_ids()

        def renew(places: Sequence[str]) -> None:
            given = repr(test_clock()) if test_clock else ""
            server.run(ScriptCall(script("renew"), (given, lease_s, *places)))

        self._renewals = Renewals(renew, lease_s)
        # At the interpreter's exit too.
        weakref.finalize(self, server.close)
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
        """Reserve one key of *candidates*; see `State.acquire`.

        Raises:
            RedisStateError: The server did not answer, or refused.
        """
        lease_id = next(self._ids)
        call = self._acquire(info, candidates, spread, lease_id)
        reply = self._reading(
            lambda: self._server.run(call), lambda: self._names_of(info, candidates)
        )
        return self._held(self._acquired(reply, info, candidates, lease_id), holder)

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Book what became of *lease*; see `State.settle`.

        A plain success is deferred: nobody waits for it, and what goes wrong with it is not raised.

        Raises:
            RedisStateError: The server did not answer, or refused.
        """
        names = tuple(names)
        call = self._settle(lease, outcome, names)
        if codec.plain(lease, outcome, names):
            self._server.defer(call)
            return None
        reply = self._reading(
            lambda: self._server.run(call), lambda: self._names_of_settled(lease, outcome)
        )
        return codec.until_of(reply)

    def release(self, lease: Lease) -> None:
        """Stop renewing the place of *lease*; it ends within `LEASE_S`."""
        self._renewals.drop(lease)

    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return whose key made one of *names*; see `State.owner`.

        Raises:
            RedisStateError: The server did not answer.
        """
        digests = [codec.stored_name(name)[0] for name in names]
        records = [f"{self._base}:owner:{digest}" for digest in digests]
        if not records:
            return None
        return self._reading(
            lambda: codec.owner_of(self._server.commands([["MGET", *records]])[0]),
            lambda: records,
        )

    def reset(self, key: Candidate) -> None:
        """Forget every cooldown that keeps *key* from serving, and what was learned of its limits.

        Raises:
            RedisStateError: The server did not answer.
        """
        names = (
            f"cooldown:key:{key.record}",
            f"cooldown:project:{key.project}",
            f"cooldown:billing:{key.billing_account}",
        )
        call = self._call("reset", (len(names), *names, key.project))
        self._reading(lambda: self._server.run(call), lambda: self._names_of_all([key]))

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Forget what was learned before configured limits changed; see `State.configure`.

        Raises:
            RedisStateError: The server did not answer.
        """
        keys = tuple(candidates)
        changed, commands = self._reading(
            lambda: configured.compare(self._server.commands, self._base, keys),
            lambda: [f"{self._base}:configured"],
        )
        projects = list(dict.fromkeys(key.project for key in changed))
        for start in range(0, len(projects), AT_ONCE):
            self._server.run(self._call("reset", (0, *projects[start : start + AT_ONCE])))
        self._server.commands(commands)  # after: who is interrupted does it again

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return keys as those of the values they were used with; see `State.with_values`.

        Raises:
            RedisStateError: The server did not answer.
        """
        keys = tuple(candidates)
        return self._reading(
            lambda: with_values(self._server.commands, self._base, keys),
            lambda: names_of(self._base, keys),
        )

    @property
    def data_losses(self) -> int:
        """Return how often the server was found to have lost the pool's records."""
        return max(len(self._epochs) - 1, 0)

    def check(self) -> None:
        """Check whether the server can be written to, and whether it remembers.

        Raises:
            RedisStateError: It cannot be, or does not answer.
        """
        name = f"{self._base}:epoch"
        written = ["SET", f"{self._base}:check", "1", "PX", "1000"]
        begun = ["SET", name, next(self._ids), "NX", "PX", str(EPOCH_KEPT_S * 1000)]
        commands = [written, begun, ["GET", name]]
        reply = self._reading(lambda: self._server.commands(commands), lambda: [name])
        self._note_epoch(reply[-1])

    def record_usage(self, key: Candidate, bucket: str, **counts: int) -> None:
        """Count what was sent without asking; see `State.record_usage`.

        Raises:
            RedisStateError: The server did not answer, or refused.
        """
        call = self._book(key, bucket, **counts)
        self._reading(lambda: self._server.run(call), lambda: names_of(self._base, [key], bucket))

    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; a round trip for each hundred keys.

        Raises:
            RedisStateError: The server did not answer.
        """
        keys = list(candidates)
        found: dict[str, Block] = {}
        for start in range(0, len(keys), AT_ONCE):
            batch = tuple((0, key) for key in keys[start : start + AT_ONCE])
            call = self._acquire(info, batch, False, codec.DRY_RUN)
            reply = self._reading(
                partial(self._server.run, call), partial(self._names_of, info, batch)
            )
            behind = codec.behind_by(float(reply[2]), self._clock())
            found |= codec.refused(reply, batch, behind).blocks
        return found

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id; a few round trips for each thousand keys.

        Raises:
            RedisStateError: The server did not answer.
        """
        self._server.flush()
        now = self._test_clock() if self._test_clock else None
        keys = tuple(candidates)
        known, server_now = self._reading(
            lambda: survey(self._server.commands, self._base, keys, now),
            lambda: self._names_of_all(keys),
        )
        behind = codec.behind_by(server_now, self._clock())
        for health in known.values() if behind else ():
            codec.tell(health, behind)
        return known

    def record_activity(self, batch: ActivityBatch) -> None:
        """Add to the activity of the pool; see `State.record_activity`.

        Raises:
            RedisStateError: The server did not answer, or refused.
        """
        self._server.commands(activity.commands_of(batch, self._base))

    def activity(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Read the activity of the pool; see `State.activity`.

        Raises:
            RedisStateError: The server did not answer.
        """
        return activity.read(self._server.commands, self._base, key_ids, now)

    def close(self) -> None:
        """Send what is deferred, and close the connections."""
        super().close()
        self._renewals.close()
        self._server.close()

    def _reading(self, ask: Callable[[], _T], names: Callable[[], list[str]]) -> _T:
        """Ask; where a record of *names* cannot be read, drop it, and ask once more."""
        try:
            return ask()
        except UNREADABLE as error:
            if not may_be_unreadable(error):
                raise
            if not warn(self._server.run(self._call("repair", names()))):
                raise
        return ask()

    def _names_of(self, info: CallInfo, candidates: RankedCandidates) -> list[str]:
        model = codec.text(info.quota_model).decode()
        buckets = dict.fromkeys((model, self._buckets.get(info.quota_model, model)))
        return names_of(self._base, (key for _, key in candidates), *buckets)

    def _names_of_settled(self, lease: Lease, outcome: Outcome) -> list[str]:
        named = outcome.verdict.bucket if outcome.verdict is not None else None
        buckets = dict.fromkeys(codec.text(name).decode() for name in (lease.bucket, named or ""))
        key = Candidate(lease.key_id, lease.project, lease.billing_account, record=lease.record)
        return names_of(self._base, [key], *buckets)

    def _names_of_all(self, keys: Iterable[Candidate]) -> list[str]:
        """Name all records of *keys*; without quotas where the list of buckets is unreadable."""
        try:
            buckets = self._server.commands([("ZRANGE", f"{self._base}:buckets", 0, -1)])[0]
        except RedisStateError:
            buckets = ()
        return names_of(self._base, keys, *(bucket.decode() for bucket in buckets))

    def _call(self, name: str, args: Iterable[Any]) -> ScriptCall:
        given = repr(self._test_clock()) if self._test_clock else ""
        return ScriptCall(script(name), (given, *args))

    def _acquire(
        self, info: CallInfo, candidates: RankedCandidates, spread: bool, lease_id: str
    ) -> ScriptCall:
        model = codec.text(info.quota_model)
        bucket = codec.text(self._buckets.get(info.quota_model, info.quota_model))
        args = (
            self._midnights(self._test_clock() if self._test_clock else time.time()),
            model,
            codec.text(info.verb),
            info.requests,
            info.tokens,
            int(spread),
            lease_id,
            self._lease_s,
            bucket,
            len(candidates),
            *self._offers.args(candidates, model, bucket),
        )
        return self._call("acquire", args)

    def _acquired(
        self, reply: Any, info: CallInfo, candidates: RankedCandidates, lease_id: str
    ) -> Lease | Unavailable:
        self._note_epoch(reply[1])
        behind = codec.behind_by(float(reply[4 if reply[0] else 2]), self._clock())
        if not reply[0]:
            return codec.refused(reply, candidates, behind)
        lease = codec.granted(reply, info, candidates, lease_id, behind)
        if lease.bucket != self._buckets.get(info.quota_model, info.quota_model):
            if len(self._buckets) >= MODELS_KEPT:
                self._buckets.clear()
            self._buckets[info.quota_model] = lease.bucket
        return lease

    def _note_epoch(self, epoch: bytes) -> None:
        """Record a reply's epoch; one that was on its way for long is no news."""
        if epoch not in self._epochs:
            self._epochs = {*self._epochs, epoch}

    def _held(self, reply: Lease | Unavailable, holder: Holder | None) -> Lease | Unavailable:
        if isinstance(reply, Lease):
            self._renewals.hold(reply, holder)
        return reply

    def _settle(self, lease: Lease, outcome: Outcome, names: tuple[str, ...]) -> ScriptCall:
        stored = (word for name in names for word in codec.stored_name(name))
        verdict = codec.verdict_words(outcome.verdict, self._policy)
        words = codec.lease_words(lease, outcome)
        if outcome.kind is not LeaseOutcome.SERVING:
            self._renewals.drop(lease)
        args = (repr(self._clock()), *words, verdict, *stored, *self._offers.names(lease))
        return self._call("settle", args)

    def _book(
        self, key: Candidate, bucket: str, *, requests: int, tokens: int, day_requests: int
    ) -> ScriptCall:
        midnights = self._midnights(self._test_clock() if self._test_clock else time.time())
        words = (midnights, key.project, bucket, requests, tokens, day_requests)
        return self._call("record_usage", words)

    def _after_fork(self) -> None:
        self._ids = codec.lease_ids()  # these are the parent's
