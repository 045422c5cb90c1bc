"""Two doors to a state: its blocking methods and its awaited ones, used alike by the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from support.faulty_state import degrading
from support.pool import INFO
from support.servers import BINARIES, ENGINES, server

from keyrot_middleware.core.model import (
    NO_USAGE,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
    Scope,
    Unavailable,
    Usage,
    Verdict,
)
from keyrot_middleware.state import State, open_state
from keyrot_middleware.state.redis import RedisState

__all__ = [
    "ABANDONED",
    "OK",
    "PATIENCE_S",
    "UNSENT",
    "URIS",
    "Asked",
    "Awaited",
    "Door",
    "Open",
    "failed",
    "open_at",
    "used",
]

URIS = ("memory://", "mirrored://", "alone://", *ENGINES)
"""Every backend; a new one is one more row here, and for `open_at` to open. `mirrored` follows a
shared state, `alone` stands in for one that is down."""

Open = Callable[..., State]
"""The fixture `open_backend`: opens the backend under test with a policy, or the defaults."""


FOR_EVER_S = 1e9
"""Leases in memory never run out by themselves; here they need not either."""

_pools = count()


def open_at(uri: str, policy: RetryPolicy, clock: Callable[[], float], **more: Any) -> State:
    """Open the backend *uri*, empty, with *clock* to decide; its server is started if need be."""
    name = uri.partition("://")[0]
    if name in ("mirrored", "alone"):
        state, shared = degrading(clock, policy)
        if name == "alone":
            shared.cut()
        return state
    if name not in BINARIES:
        return open_state(uri, policy, clock)
    pool = f"pool-{next(_pools)}"
    more = {"lease_s": FOR_EVER_S, **more}
    return RedisState(server(name).url, policy, pool=pool, test_clock=clock, **more)


PATIENCE_S = 2.0
"""Longer than an answer may take on a busy machine; without time limits it is 3.9 s and more."""

OK = Outcome(LeaseOutcome.SUCCESS)
UNSENT = Outcome(LeaseOutcome.UNSENT)
ABANDONED = Outcome(LeaseOutcome.ABANDONED)


def used(tokens: int) -> Outcome:
    """Give a success that had so many input tokens."""
    return Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=tokens))


def failed(scope: Scope, until: float | None = None, **more: Any) -> Outcome:
    """Give a failure that blames *scope*."""
    return Outcome(LeaseOutcome.FAILURE, Verdict("failure", 429, scope, until, **more), NO_USAGE)


class Door:
    """A state, its methods asked or awaited."""

    def __init__(self, state: State) -> None:
        self.state = state

    async def acquire(
        self, *keys: Candidate | tuple[int, Candidate], info: CallInfo = INFO, spread: bool = False
    ) -> Lease | Unavailable:
        """Ask for one of *keys*; those without a group are of group 0."""
        raise NotImplementedError

    async def settle(
        self, lease: Lease, outcome: Outcome = OK, names: Iterable[str] = ()
    ) -> float | None:
        """Settle."""
        raise NotImplementedError

    async def owner(self, *names: str) -> tuple[str, str] | None:
        """Ask for an owner."""
        raise NotImplementedError

    async def own(self, lease: Lease, *names: str) -> None:
        """Tell of names after the settling."""
        raise NotImplementedError

    async def lend(self, *keys: Candidate, **more: Any) -> Lease:
        """Ask for a lease that there must be."""
        lease = await self.acquire(*keys, **more)
        assert isinstance(lease, Lease), lease
        return lease

    async def refused(self, *keys: Candidate, **more: Any) -> dict[str, str]:
        """Ask for what there must not be; give the reason per key."""
        reply = await self.acquire(*keys, **more)
        assert isinstance(reply, Unavailable), reply
        return {key_id: block.reason for key_id, block in reply.blocks.items()}

    async def fails(self, candidate: Candidate, outcome: Outcome, **more: Any) -> float | None:
        """Let one request with *candidate* fail so."""
        return await self.settle(await self.lend(candidate, **more), outcome)

    async def granted(self, candidate: Candidate, most: int = 1_000, **more: Any) -> int:
        """Count how many leases there are, settling none."""
        for number in range(most):
            if isinstance(await self.acquire(candidate, **more), Unavailable):
                return number
        return most


def _shortlist(keys: tuple[Any, ...]) -> tuple[tuple[int, Candidate], ...]:
    return tuple(one if isinstance(one, tuple) else (0, one) for one in keys)


class Asked(Door):
    """The blocking methods."""

    async def acquire(self, *keys: Any, info: CallInfo = INFO, spread: bool = False) -> Any:
        """Ask."""
        return self.state.acquire(info, _shortlist(keys), spread=spread)

    async def settle(self, lease: Lease, outcome: Outcome = OK, names: Iterable[str] = ()) -> Any:
        """Settle."""
        return self.state.settle(lease, outcome, names)

    async def owner(self, *names: str) -> Any:
        """Ask."""
        return self.state.get_owner(names)

    async def own(self, lease: Lease, *names: str) -> None:
        """Tell."""
        self.state.set_owner(lease, names)


class Awaited(Door):
    """The awaited methods."""

    async def acquire(self, *keys: Any, info: CallInfo = INFO, spread: bool = False) -> Any:
        """Ask."""
        return await self.state.aacquire(info, _shortlist(keys), spread=spread)

    async def settle(self, lease: Lease, outcome: Outcome = OK, names: Iterable[str] = ()) -> Any:
        """Settle."""
        return await self.state.asettle(lease, outcome, names)

    async def owner(self, *names: str) -> Any:
        """Ask."""
        return await self.state.aget_owner(names)

    async def own(self, lease: Lease, *names: str) -> None:
        """Tell."""
        await self.state.aset_owner(lease, names)
