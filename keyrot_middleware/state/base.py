"""The interface of a state backend: it counts usage and decides on leases atomically."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import ClassVar, NamedTuple, Protocol
from weakref import ReferenceType

from ..core.activity import (
    ActivityBatch,
    ActivityView,
    CallRecord,
    History,
    ShareKind,
    Span,
    make_history,
)
from ..core.ledger import NO_SPENDING, KeyHealth, UnleasedUsage, Used
from ..core.model import (
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    Unavailable,
)
from ..core.selection import RankedCandidates
from .threads import StateThreads

__all__ = [
    "NO_SPENDING",
    "Claims",
    "Counted",
    "DataLoss",
    "DataLostError",
    "Holder",
    "HolderRef",
    "KeyHealth",
    "Owners",
    "Quota",
    "SharedActivity",
    "SharedState",
    "State",
    "UnleasedUsage",
    "Used",
    "is_abandoned",
    "without_reservation",
]


class Counted(NamedTuple):
    """A request, or a cost, that a shared state has counted."""

    at: float
    """Epoch seconds."""
    project: str
    bucket: str = ""
    requests: int = 0
    tokens: int = 0
    spent: int = 0
    """Billionths of a dollar."""


class DataLoss(NamedTuple):
    """A shared state has lost data: the records of another *epoch* are in use."""

    epoch: str
    changes: int
    """The number of changes in the new epoch."""
    missing: Sequence[Counted] | None
    """What was counted for this process and is missing; None if everything is."""


class DataLostError(Exception):
    """Raised by `acquire` of a shared state that has lost data; nothing is leased.

    Report what is missing, `accept_loss`, and call again.
    """


class Holder(Protocol):
    """The call that holds a lease."""

    def is_alive(self) -> bool:
        """Return whether the call is in flight."""


HolderRef = ReferenceType[Holder] | None
"""A weak reference to a holder; None if the caller passed none: then it counts as alive."""


def is_abandoned(held: HolderRef) -> bool:
    """Return whether the holder of a lease is gone, so that it will never settle it."""
    if held is None:
        return False
    holder = held()
    return holder is None or not holder.is_alive()


class Quota(ABC):
    """The limits of keys: leases, their outcomes, and what is known of each key."""

    @abstractmethod
    def acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        *,
        spread: bool,
        holder: Holder | None = None,
    ) -> Lease | Unavailable:
        """Acquire a lease for one of *candidates*: reserve in all windows or in none.

        Args:
            info: The call: its model, verb, tokens and requests.
            candidates: `(group, candidate)` in order; lower groups first.
            spread: Within a group choose the least utilized key, else the first available one.
            holder: The lease counts in `max_concurrency` while the holder is alive and the lease
                is not settled; without a holder until it is settled.
        """

    @abstractmethod
    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Settle *lease* with its outcome, and record it as the owner of *names*.

        `LeaseOutcome.SERVING` only ends the cooldowns whose probe the lease is.

        Returns:
            Until when the scope of the failure is cooling down, epoch seconds; None if it is not.
        """

    @abstractmethod
    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each of *candidates* now; nothing is reserved.

        Args:
            info: The call to be sent.
            candidates: Any number of keys; those that `acquire` would lease are not returned.
        """

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
    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Record the configured limits of keys.

        If those of a key have changed, the learned limits of its project are forgotten.
        """

    @abstractmethod
    def record_spending(self, project: str, amount: int) -> None:
        """Count what requests of a project that has a budget have cost.

        Args:
            project: Of their keys.
            amount: In billionths of a dollar.
        """


class Owners(ABC):
    """Which key owns a stored resource."""

    @abstractmethod
    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Return `(key_id, project)` of the first known one of *names*."""

    @abstractmethod
    def set_owner(self, lease: Lease, names: Iterable[str]) -> None:
        """Record the key of *lease*, which is settled already, as the owner of *names*."""


class SharedActivity:
    """What the calls of all processes did lately; without any where nothing is shared."""

    def record_activity(self, batch: ActivityBatch) -> None:
        """Add to the activity that all processes of a shared pool have in common."""

    def activity(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Return the activity of all processes of a shared pool.

        Args:
            key_ids: The keys whose history and usage are wanted; the sums are always there.
            now: The time, epoch seconds.
        """
        del key_ids, now
        return ActivityView({}, {}, [])

    def activity_history(self, entry: str, span: Span, now: float) -> History:
        """Return the counts of a key, a project, a model, a workload or the pool over a span.

        Args:
            entry: A key id, or as `project_entry`, `share_entry` and `POOL` in core/activity.py.
            span: How far back, and how finely.
            now: The time, epoch seconds.
        """
        del entry, now
        return make_history([()] * span.slots)

    def activity_shares(self, kind: ShareKind, span: Span, now: float) -> dict[str, list[int]]:
        """Return the counts of each model, or of each workload, over a span."""
        del kind, span, now
        return {}

    def failures_of(self, key_id: str) -> list[CallRecord]:
        """Return the last calls in which a key failed, the latest first."""
        del key_id
        return []


class Claims(ABC):
    """Who does what only one process may do."""

    @abstractmethod
    def claim(self, name: str, seconds: float) -> float:
        """Take *name* for so many *seconds*, so that of all processes one does what it stands for.

        Returns:
            0: it is the caller's now. Else how many seconds an earlier claim still lasts.
        """


class State(Quota, Owners, SharedActivity, Claims):
    """The state of a pool. The async methods of a state that does I/O use threads."""

    is_local: ClassVar[bool] = True
    """The blocking methods do no I/O, so that tasks may call them directly."""

    @property
    def degraded(self) -> bool:
        """Return whether the shared state is unreachable, so that in-process limits apply."""
        return False

    def settles_without_io(self, lease: Lease, outcome: Outcome, names: tuple[str, ...]) -> bool:
        """Return whether `settle` does no I/O with these arguments, so that tasks may call it."""
        del lease, outcome, names
        return self.is_local

    def set_owner(self, lease: Lease, names: Iterable[str]) -> None:
        """Record the key of *lease*, which is settled already, as the owner of *names*."""
        self.settle(without_reservation(lease), Outcome(LeaseOutcome.ABANDONED), names)

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return keys whose values the caller does not know with the values in use.

        Only a shared state knows them.
        """
        return list(candidates)

    def close(self) -> None:
        """Close connections and threads; calls in flight can still be settled."""
        if not self.is_local:
            self._threads.close()

    async def aacquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        *,
        spread: bool,
        holder: Holder | None = None,
    ) -> Lease | Unavailable:
        """Async version of `acquire`; if the task is cancelled, the lease is released."""
        work = partial(self.acquire, info, candidates, spread=spread, holder=holder)
        return work() if self.is_local else await self._threads.run(work, self._give_back_unsent)

    async def asettle(
        self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()
    ) -> float | None:
        """Async version of `settle`."""
        names = tuple(names)
        work = partial(self.settle, lease, outcome, names)
        at_once = self.settles_without_io(lease, outcome, names)
        return work() if at_once else await self._threads.run(work)

    async def aget_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Async version of `get_owner`."""
        work = partial(self.get_owner, names)
        return work() if self.is_local else await self._threads.run(work)

    async def aset_owner(self, lease: Lease, names: Iterable[str]) -> None:
        """Async version of `set_owner`."""
        await self.asettle(without_reservation(lease), Outcome(LeaseOutcome.ABANDONED), names)

    @cached_property
    def _threads(self) -> StateThreads:
        return StateThreads()

    def _give_back_unsent(self, reply: Lease | Unavailable) -> None:
        if isinstance(reply, Lease):
            self.settle(reply, Outcome(LeaseOutcome.UNSENT))


class SharedState(State):
    """What a state has in addition that others fall back from: see fallback.py."""

    def release(self, lease: Lease) -> None:
        """Stop renewing *lease*, which is settled elsewhere; it expires by itself."""

    @abstractmethod
    def record_usage(
        self,
        usages: Sequence[UnleasedUsage],
        spending: Mapping[str, int] = NO_SPENDING,
        report: str = "",
        *,
        again: bool = False,
    ) -> None:
        """Count requests that were sent without a lease, and costs; limits are not checked.

        Args:
            usages: The requests.
            spending: Billionths of a dollar by project, only of those that have a budget.
            report: Identifies the report: a shared state that has counted it counts it no more.
            again: All of it was counted before the data loss that `take_loss` has returned.
        """

    def record_spending(self, project: str, amount: int) -> None:
        """Count what requests of a project have cost; see `Quota.record_spending`."""
        self.record_usage((), {project: amount})

    def check(self) -> None:
        """Check whether the backend works; raise its error if it does not."""

    @contextmanager
    def inline(self) -> Iterator[bool]:
        """Let a task make its next call of this state in its own thread, if that takes no time.

        Yields:
            Whether it may: the call waits for nothing and nobody.
        """
        yield False

    def take_loss(self) -> DataLoss | None:
        """Return the data loss that was found since the last call; None if there is none."""
        return None

    def accept_loss(self, loss: DataLoss) -> None:
        """Lease keys again: what was missing is reported; see DataLostError."""


def without_reservation(lease: Lease) -> Lease:
    """Return *lease* as one that was not reserved: settling it changes no counts."""
    return lease._replace(reservation=None, degraded=False)
