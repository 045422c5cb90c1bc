"""The pool's memory in Redis: each decision is one script, so one step for all who share it.

The server's clock is the only one that decides (ADR 0008). Times that come out are told by this
host's clock and times that go in are understood as such, where the two differ by more than the
second that the windows guard against.

Whatever goes wrong is raised as `RedisTrouble`: to go on without the server is another's job.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, ClassVar, TypeVar

from ...core.model import Block, CallInfo, Candidate, Kind, Lease, Outcome, Unavailable
from ...core.policy import RetryPolicy
from ...core.roster import Shortlist
from ...forks import after_fork
from ..base import Holder, KeyHealth, State
from . import codec, configured
from .calls import Call
from .lines import Lines
from .loops import Loops
from .memo import Buckets, Epochs, looking
from .offers import Offers
from .place import read_place
from .renewals import Renewals
from .repair import UNREADABLE, may_be_unreadable, names_of, warn
from .route import Route
from .scripts import script
from .survey import survey, with_values
from .trouble import RedisTrouble
from .unheard import Unheard, words

__all__ = ["RedisState"]

LEASE_S = 15.0
"""How long a lease holds its place in `max_concurrency` when its worker shows no more that it
lives; it does so while the call runs, however long that takes."""


_T = TypeVar("_T")

AT_ONCE = 100
"""Keys in one dry run, a millisecond or two of the server's time."""


class RedisState(State):
    """The pool's memory in a server that all its processes share."""

    instant: ClassVar[bool] = False

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
            url: As place.py describes.
            policy: For the lengths of exponential cooldowns.
            clock: This host's, by which times are told to the caller; it decides nothing.
            pool: Its name, part of each record's.
            lease_s: When the places of a worker that died are free again, seconds.
            test_clock: For tests only: decides instead of the server's clock.

        Raises:
            ConfigError: The URL is wrong.
        """
        self._policy = policy
        self._clock = test_clock or clock
        self._test_clock = test_clock
        self._base = f"keyrot:{{{pool}}}"
        self._lease_s = lease_s
        self._route = Route(read_place(url))
        self._lines = Lines(self._route)
        self._loops = Loops(self._route)
        self._offers, self._midnights = Offers(self._base), codec.Midnights()
        self._buckets, self._epochs, self._unheard = Buckets(), Epochs(), Unheard()
        self._ids = codec.lease_ids()
        self._renewals = Renewals(self._route, self._base, lease_s, test_clock)
        # At the interpreter's exit too.
        weakref.finalize(self, self._lines.close)
        weakref.finalize(self, self._renewals.close)
        after_fork(self, RedisState.renew)

    def acquire(
        self, info: CallInfo, shortlist: Shortlist, *, spread: bool, holder: Holder | None = None
    ) -> Lease | Unavailable:
        """Reserve one key of *shortlist*; see `State.acquire`.

        Raises:
            RedisTrouble: The server did not answer, or refused.
        """
        lease_id = next(self._ids)
        call = self._acquire(info, shortlist, spread, lease_id)
        try:
            reply = self._reading(
                lambda: self._lines.call(call), lambda: self._names_of(info, shortlist)
            )
        except RedisTrouble:
            self._unheard.note(lease_id, shortlist)
            raise
        return self._held(self._acquired(reply, info, shortlist, lease_id), holder)

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Book what became of *lease*; see `State.settle`.

        A plain success is sent, and its answer read later: by the next question of this process,
        or at the end. If it is a failure, that question raises it.

        Raises:
            RedisTrouble: The server did not answer, or refused.
        """
        names = tuple(names)
        call = self._settle(lease, outcome, names)
        if codec.plain(lease, outcome, names):
            self._lines.post(call)
            return None
        reply = self._reading(
            lambda: self._lines.call(call), lambda: self._names_of_settled(lease, outcome)
        )
        return codec.until_of(reply)

    def owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Tell whose key made one of *names*; see `State.owner`.

        Raises:
            RedisTrouble: The server did not answer.
        """
        question = self._owner(names)
        if not question:
            return None
        return self._reading(
            lambda: codec.owner_of(self._lines.ask([question])[0]), lambda: question[1:]
        )

    async def aacquire(
        self, info: CallInfo, shortlist: Shortlist, *, spread: bool, holder: Holder | None = None
    ) -> Lease | Unavailable:
        """Do what `acquire` does, without blocking the loop; cancelled, it gives back."""
        lines = self._loops.lines()
        lease_id = next(self._ids)
        call = self._acquire(info, shortlist, spread, lease_id)

        async def orphan(reply: Any) -> None:
            granted = self._acquired(reply, info, shortlist, lease_id)
            if isinstance(granted, Lease):
                await lines.call(self._settle(granted, Outcome(Kind.UNSENT), ()))

        try:
            reply = await self._areading(
                lambda: lines.call(call, orphan), lambda: self._names_of(info, shortlist)
            )
        except RedisTrouble:
            self._unheard.note(lease_id, shortlist)
            raise
        return self._held(self._acquired(reply, info, shortlist, lease_id), holder)

    async def asettle(
        self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()
    ) -> float | None:
        """Do what `settle` does, without blocking the loop."""
        names = tuple(names)
        call = self._settle(lease, outcome, names)
        if codec.plain(lease, outcome, names):
            await self._loops.lines().post(call)
            return None
        reply = await self._areading(
            lambda: self._loops.lines().call(call), lambda: self._names_of_settled(lease, outcome)
        )
        return codec.until_of(reply)

    async def aowner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Do what `owner` does, without blocking the loop."""
        question = self._owner(names)
        if not question:
            return None

        async def ask() -> tuple[str, str] | None:
            return codec.owner_of((await self._loops.lines().ask([question]))[0])

        return await self._areading(ask, lambda: question[1:])

    def reset(self, key: Candidate) -> None:
        """Forget every cooldown that keeps *key* from serving, and what was learned of its limits.

        Raises:
            RedisTrouble: The server did not answer.
        """
        names = (f"c:k:{key.record}", f"c:p:{key.project}", f"c:b:{key.billing_account}")
        call = self._call("reset", (len(names), *names, key.project))
        self._reading(lambda: self._lines.call(call), lambda: self._names_of_all([key]))

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Forget what was learned before configured limits changed; see `State.configure`.

        Raises:
            RedisTrouble: The server did not answer.
        """
        changed, commands = configured.compare(self._lines.ask, self._base, tuple(candidates))
        projects = list(dict.fromkeys(key.project for key in changed))
        for start in range(0, len(projects), AT_ONCE):
            self._lines.call(self._call("reset", (0, *projects[start : start + AT_ONCE])))
        self._lines.ask(commands)  # after: who is interrupted does it again

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Give keys as those of the values they were used with; see `State.with_values`.

        Raises:
            RedisTrouble: The server did not answer.
        """
        keys = tuple(candidates)
        return self._reading(
            lambda: with_values(self._lines.ask, self._base, keys),
            lambda: names_of(self._base, keys),
        )

    @property
    def losses(self) -> int:
        """Tell how often the server was found to have lost the pool's records."""
        return self._epochs.losses

    def check(self) -> None:
        """Find out whether the server can be written to, and whether it remembers.

        Raises:
            RedisTrouble: It cannot be, or does not answer.
        """
        self._epochs.note(self._lines.ask(self._note())[-1])
        if asked := self._unheard.all():
            self._lines.call(self._call("release", words(self._base, asked)))
            self._unheard.told(asked)

    async def acheck(self) -> None:
        """Do what `check` does, without blocking the loop."""
        lines = self._loops.lines()
        self._epochs.note((await lines.ask(self._note()))[-1])
        if asked := self._unheard.all():
            await lines.call(self._call("release", words(self._base, asked)))
            self._unheard.told(asked)

    def book(self, key: Candidate, bucket: str, **counts: int) -> None:
        """Count what was sent without asking; see `State.book`.

        Raises:
            RedisTrouble: The server did not answer, or refused.
        """
        call = self._book(key, bucket, **counts)
        self._reading(lambda: self._lines.call(call), lambda: names_of(self._base, [key], bucket))

    async def abook(self, key: Candidate, bucket: str, **counts: int) -> None:
        """Do what `book` does, without blocking the loop."""
        call = self._book(key, bucket, **counts)
        await self._areading(
            lambda: self._loops.lines().call(call), lambda: names_of(self._base, [key], bucket)
        )

    def blocked(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; a round trip for each hundred keys.

        Raises:
            RedisTrouble: The server did not answer.
        """
        keys = list(candidates)
        found: dict[str, Block] = {}
        for start in range(0, len(keys), AT_ONCE):
            shortlist = tuple((0, key) for key in keys[start : start + AT_ONCE])
            call = self._acquire(info, shortlist, False, codec.DRY_RUN)
            reply = self._reading(
                partial(self._lines.call, call), partial(self._names_of, info, shortlist)
            )
            behind = codec.behind_by(float(reply[2]), self._clock())
            found |= codec.refused(reply, shortlist, behind).blocks
        return found

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Tell what is known of each key, by its id; a few round trips for each thousand keys.

        Raises:
            RedisTrouble: The server did not answer.
        """
        self._lines.collect()
        now = self._test_clock() if self._test_clock else None
        keys = tuple(candidates)
        known, server_now = self._reading(
            lambda: survey(self._lines.ask, self._base, keys, now),
            lambda: self._names_of_all(keys),
        )
        behind = codec.behind_by(server_now, self._clock())
        for health in known.values() if behind else ():
            codec.tell(health, behind)
        return known

    def close(self) -> None:
        """Close the lines of threads now, and those of tasks as soon as their loops run."""
        self._renewals.close()
        self._lines.close()
        self._loops.close_soon()

    async def aclose(self) -> None:
        """Close the lines of threads and of the running loop, and wait for it."""
        self._renewals.close()
        self._lines.close()
        await self._loops.close()

    def _reading(self, ask: Callable[[], _T], names: Callable[[], list[str]]) -> _T:
        """Ask; where a record of *names* cannot be read, drop it, and ask once more."""
        try:
            return ask()
        except UNREADABLE as error:
            if not may_be_unreadable(error):
                raise
            if not warn(self._lines.call(self._call("repair", names()))):
                raise
        return ask()

    async def _areading(
        self, ask: Callable[[], Awaitable[_T]], names: Callable[[], list[str]]
    ) -> _T:
        """Do what `_reading` does, without blocking the loop."""
        try:
            return await ask()
        except UNREADABLE as error:
            if not may_be_unreadable(error):
                raise
            if not warn(await self._loops.lines().call(self._call("repair", names()))):
                raise
        return await ask()

    def _names_of(self, info: CallInfo, shortlist: Shortlist) -> list[str]:
        model = codec.text(info.counted).decode()
        buckets = dict.fromkeys((model, self._buckets[info.counted].decode()))
        return names_of(self._base, (key for _, key in shortlist), *buckets)

    def _names_of_settled(self, lease: Lease, outcome: Outcome) -> list[str]:
        told = outcome.verdict.bucket if outcome.verdict is not None else None
        buckets = dict.fromkeys(codec.text(name).decode() for name in (lease.bucket, told or ""))
        key = Candidate(lease.key_id, lease.project, lease.billing_account, record=lease.record)
        return names_of(self._base, [key], *buckets)

    def _names_of_all(self, keys: Iterable[Candidate]) -> list[str]:
        """Name all records of *keys*; without quotas where the list of buckets is unreadable."""
        try:
            buckets = self._lines.ask([("ZRANGE", f"{self._base}:buckets", 0, -1)])[0]
        except RedisTrouble:
            buckets = ()
        return names_of(self._base, keys, *(bucket.decode() for bucket in buckets))

    def _call(self, name: str, words: Iterable[Any], more: tuple[int, bytes] = (0, b"")) -> Call:
        given = repr(self._test_clock()) if self._test_clock else ""
        return Call(script(name), self._base, (given, *words), more)

    def _acquire(self, info: CallInfo, shortlist: Shortlist, spread: bool, lease_id: str) -> Call:
        model, bucket = codec.text(info.counted), self._buckets[info.counted]
        words = (
            self._midnights(self._test_clock() if self._test_clock else time.time()),
            model,
            codec.text(info.verb),
            info.requests,
            info.tokens,
            int(spread),
            lease_id,
            self._lease_s,
            bucket,
            len(shortlist),
        )
        return self._call("acquire", words, self._offers(shortlist, model, bucket))

    def _acquired(
        self, reply: Any, info: CallInfo, shortlist: Shortlist, lease_id: str
    ) -> Lease | Unavailable:
        self._epochs.note(reply[1])
        behind = codec.behind_by(float(reply[4 if reply[0] else 2]), self._clock())
        if not reply[0]:
            return codec.refused(reply, shortlist, behind)
        lease = codec.granted(reply, info, shortlist, lease_id, behind)
        self._buckets.note(info.counted, lease.bucket)
        return lease

    def _held(self, reply: Lease | Unavailable, holder: Holder | None) -> Lease | Unavailable:
        if isinstance(reply, Lease):
            self._renewals.hold(reply, holder)
        return reply

    def _settle(self, lease: Lease, outcome: Outcome, names: tuple[str, ...]) -> Call:
        stored = (word for name in names for word in codec.stored_name(name))
        verdict = codec.verdict_words(outcome.verdict, self._policy)
        words = codec.lease_words(lease, outcome)
        if outcome.kind is not Kind.SERVING:
            self._renewals.drop(lease)
        told = (repr(self._clock()), *words, verdict, *stored)
        return self._call("settle", told, self._offers.names(lease))

    def _book(
        self, key: Candidate, bucket: str, *, requests: int, tokens: int, day_requests: int
    ) -> Call:
        midnights = self._midnights(self._test_clock() if self._test_clock else time.time())
        words = (midnights, key.project, bucket, requests, tokens, day_requests)
        return self._call("book", words)

    def _note(self) -> list[list[Any]]:
        note = ["SET", f"{self._base}:check", "1", "PX", "1000"]
        return [note, *looking(self._base, next(self._ids))]

    def _owner(self, names: Iterable[str]) -> list[str]:
        keys = [f"{self._base}:o:{codec.stored_name(name)[0]}" for name in names]
        return ["MGET", *keys] if keys else []

    def renew(self) -> None:
        """Give other ids in a forked child: these are its parent's."""
        self._ids = codec.lease_ids()
        self._unheard.forget()
