"""What a state backend does: it alone knows what was used, and decides in one atomic step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Protocol
from weakref import ReferenceType

from ..core.activity import ActivityBatch, ActivityView
from ..core.model import (
    NO_LIMITS,
    Block,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Unavailable,
)
from ..core.selection import RankedCandidates
from .threads import StateThreads

__all__ = ["Holder", "HolderRef", "KeyHealth", "State", "Used", "is_abandoned"]


@dataclass(slots=True)
class Used:
    """What a project has used of one model bucket in the windows of now."""

    bucket: str
    requests_minute: int
    tokens_minute: int
    requests_day: int
    limits: Limits = NO_LIMITS


@dataclass(slots=True)
class KeyHealth:
    """What is known of one key."""

    last_used: float | None = None
    success_count: int = 0
    error_count: int = 0
    cooldown_until: float | None = None
    """Epoch seconds of the latest cooldown that still runs."""
    cooldown_reason: str | None = None
    cooldown_scope: str | None = None
    last_error: str | None = None
    """The class of its latest failure, such as `quota_minute`, whoever was to blame."""
    used: Sequence[Used] = ()


class Holder(Protocol):
    """Who a lease was granted to: what shows that somebody still needs its place."""

    def is_alive(self) -> bool:
        """Return whether the call is under way."""


HolderRef = ReferenceType[Holder] | None
"""A holder as a state knows it; None where whoever asked gave none, and so is taken for alive."""


def is_abandoned(held: HolderRef) -> bool:
    """Return whether whoever held a lease is gone, and will never settle it."""
    if held is None:
        return False
    holder = held()
    return holder is None or not holder.is_alive()


class State(ABC):
    """The pool's memory. For tasks, the methods of one that does I/O run in threads."""

    is_local: ClassVar[bool] = True
    """The blocking methods do no I/O, so that a task may call them as they are."""

    @abstractmethod
    def acquire(
        self,
        info: CallInfo,
        candidates: RankedCandidates,
        *,
        spread: bool,
        holder: Holder | None = None,
    ) -> Lease | Unavailable:
        """Reserve one key of *candidates* for *info*, all windows or none.

        Args:
            info: The call: its model, verb, tokens and requests.
            candidates: `(group, candidate)` in order; a lower group goes first.
            spread: Within a group the least used share first, else the first that has room.
            holder: As long as it is alive and the lease is not settled, the lease keeps its place
                in `max_concurrency`. Without one, until it is settled.
        """

    @abstractmethod
    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Book what became of *lease*, and who owns *names*.

        With `LeaseOutcome.SERVING` only the cooldowns end whose probe the lease is.

        Returns:
            Until when the scope of a failure is cooling down, epoch seconds; None where it is not.
        """

    def release(self, lease: Lease) -> None:  # noqa: B027 - a backend without renewals has none
        """Stop renewing the place of *lease*, which is settled elsewhere; it ends by itself."""

    @abstractmethod
    def get_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Tell `(key_id, project)` of the first of *names* that is known."""

    def set_owner(self, lease: Lease, names: Iterable[str]) -> None:
        """Record that *names* too were made with the key of *lease*, which is settled."""
        self.settle(_settled_by_hand(lease), Outcome(LeaseOutcome.ABANDONED), names)

    @abstractmethod
    def reset(self, key: Candidate) -> None:
        """Forget every cooldown of *key*, its project and its billing account.

        A person asks for it, who knows more than Google has reported: it ends what cools down the
        project or account too, and so may bring other keys back. The limits that were learned
        for its project are forgotten as well; counts stay.
        """

    def record_usage(
        self, key: Candidate, bucket: str, *, requests: int, tokens: int, day_requests: int
    ) -> None:
        """Count what was sent without asking; whatever the limits are, nothing is refused.

        Args:
            key: Whose project is booked.
            bucket: The model bucket.
            requests: Of the minute that runs.
            tokens: Input tokens of the minute that runs.
            day_requests: Of the day that runs, those of the minute included.
        """
        reply = self.acquire(*_as_one(key, bucket, requests, tokens), spread=False)
        if isinstance(reply, Lease):
            self.settle(reply, Outcome(LeaseOutcome.ABANDONED))

    @property
    def degraded(self) -> bool:
        """Return whether a shared backend is out of reach, so that this process counts alone."""
        return False

    @property
    def data_losses(self) -> int:
        """Return how often it was found, since it was opened, to have forgotten all that it knew."""
        return 0

    def check(self) -> None:  # noqa: B027 - a backend without connections can always serve
        """Check whether the backend can serve; raise what stands in the way."""

    @abstractmethod
    def get_blocks(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each of *candidates* now; nothing is reserved.

        Args:
            info: The call that one would send.
            candidates: Keys, in any number. Those that `acquire` would lease are not in the reply.
        """

    def configure(self, candidates: Iterable[Candidate]) -> None:  # noqa: B027 - may know no limits
        """Record the limits that are configured for keys.

        Where a key's have changed since they were noted, the limits that were learned for its
        project before are forgotten: who has changed them knows more.
        """

    def with_values(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return keys, whose values the caller does not know, as those of the values in use.

        Only a shared state knows more than its caller.
        """
        return list(candidates)

    @abstractmethod
    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Return what is known of each key, by its id."""

    def record_activity(self, batch: ActivityBatch) -> None:  # noqa: B027 - see Activity
        """Add to the activity that all processes of a shared pool have in common."""

    def activity(self, key_ids: Iterable[str], now: float) -> ActivityView:
        """Return the activity of all processes of a shared pool.

        Args:
            key_ids: The keys whose history and usage are wanted; the sums are always there.
            now: The time, epoch seconds.
        """
        del key_ids, now
        return ActivityView({}, 0, {}, [])

    def close(self) -> None:
        """Let go of connections and threads; calls under way are settled all the same."""
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
        """Do what `acquire` does, without blocking the loop; a cancelled task gives back."""
        work = partial(self.acquire, info, candidates, spread=spread, holder=holder)
        return work() if self.is_local else await self._threads.run(work, self._give_back_unsent)

    async def asettle(
        self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()
    ) -> float | None:
        """Do what `settle` does, without blocking the loop."""
        work = partial(self.settle, lease, outcome, names)
        return work() if self.is_local else await self._threads.run(work)

    async def aget_owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Do what `owner` does, without blocking the loop."""
        work = partial(self.get_owner, names)
        return work() if self.is_local else await self._threads.run(work)

    async def aset_owner(self, lease: Lease, names: Iterable[str]) -> None:
        """Do what `own` does, without blocking the loop."""
        await self.asettle(_settled_by_hand(lease), Outcome(LeaseOutcome.ABANDONED), names)

    @cached_property
    def _threads(self) -> StateThreads:
        return StateThreads()

    def _give_back_unsent(self, reply: Lease | Unavailable) -> None:
        if isinstance(reply, Lease):
            self.settle(reply, Outcome(LeaseOutcome.UNSENT))


def _settled_by_hand(lease: Lease) -> Lease:
    """Make of a lease one under which nothing is booked."""
    return lease._replace(reservation=None, degraded=False)


def _as_one(
    key: Candidate, bucket: str, requests: int, tokens: int
) -> tuple[CallInfo, RankedCandidates]:
    """Put many requests as one, to a key that has no limits of its own."""
    info = CallInfo(bucket, "", tokens, requests=requests)
    return info, ((0, Candidate(key.key_id, key.project, key.billing_account, record=key.record)),)
