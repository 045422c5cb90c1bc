"""A state through its blocking methods or its async ones, with one interface for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
from keyrot_middleware.state.sqlite import SqliteState
from support.pool import INFO
from support.servers import BINARIES, server

__all__ = [
    "ABANDONED",
    "OK",
    "UNSENT",
    "URIS",
    "AsyncClient",
    "OpenBackend",
    "StateClient",
    "SyncClient",
    "failed",
    "open_at",
    "used",
]

SHARED = ("sqlite://", "valkey://")
"""The backends that processes can share."""
URIS = ("memory://", *SHARED)
"""Every backend; a new one is one more row here and in `open_at`."""

OpenBackend = Callable[..., State]
"""The fixture `open_backend`: opens the backend under test with a policy, or the defaults."""


_pools = count()
_folder = TemporaryDirectory(prefix="keyrot-", ignore_cleanup_errors=True)


def open_at(uri: str, policy: RetryPolicy, clock: Callable[[], float], **more: Any) -> State:
    """Open the backend *uri*, empty, with *clock* to decide; its server is started if need be."""
    name, pool = uri.partition("://")[0], f"pool-{next(_pools)}"
    if name == "sqlite":
        return SqliteState(Path(_folder.name) / f"{pool}.sqlite3", policy, clock, **more)
    if name not in BINARIES:
        return open_state(uri, policy, clock)
    return RedisState(server(name).url, policy, pool=pool, test_clock=clock, **more)


OK = Outcome(LeaseOutcome.SUCCESS)
UNSENT = Outcome(LeaseOutcome.UNSENT)
ABANDONED = Outcome(LeaseOutcome.ABANDONED)


def used(tokens: int) -> Outcome:
    """Return a success that used *tokens* input tokens."""
    return Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=tokens))


def failed(scope: Scope, until: float | None = None, **more: Any) -> Outcome:
    """Return a failure of *scope*."""
    return Outcome(LeaseOutcome.FAILURE, Verdict("failure", 429, scope, until, **more), NO_USAGE)


class StateClient:
    """A state whose methods are called or awaited."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.held: list[Lease] = []
        """Leases that `granted` has acquired: one that is dropped is no longer in flight."""

    async def acquire(
        self, *keys: Candidate | tuple[int, Candidate], info: CallInfo = INFO, spread: bool = False
    ) -> Lease | Unavailable:
        """Acquire one of *keys*; keys without a group have group 0."""
        raise NotImplementedError

    async def settle(
        self, lease: Lease, outcome: Outcome = OK, names: Iterable[str] = ()
    ) -> float | None:
        """Settle."""
        raise NotImplementedError

    async def get_owner(self, *names: str) -> tuple[str, str] | None:
        """Return the owner of one of *names*."""
        raise NotImplementedError

    async def set_owner(self, lease: Lease, *names: str) -> None:
        """Record names after the lease was settled."""
        raise NotImplementedError

    async def acquire_lease(self, *keys: Candidate, **more: Any) -> Lease:
        """Acquire a lease; fail where there is none."""
        lease = await self.acquire(*keys, **more)
        assert isinstance(lease, Lease), lease
        return lease

    async def refused(self, *keys: Candidate, **more: Any) -> dict[str, str]:
        """Expect a refusal; return the reason of each key."""
        reply = await self.acquire(*keys, **more)
        assert isinstance(reply, Unavailable), reply
        return {key_id: block.reason for key_id, block in reply.blocks.items()}

    async def fails(self, candidate: Candidate, outcome: Outcome, **more: Any) -> float | None:
        """Settle one request with *candidate* as *outcome*."""
        return await self.settle(await self.acquire_lease(candidate, **more), outcome)

    async def granted(self, candidate: Candidate, most: int = 1_000, **more: Any) -> int:
        """Return how many leases can be acquired without settling one."""
        for number in range(most):
            reply = await self.acquire(candidate, **more)
            if isinstance(reply, Unavailable):
                return number
            self.held.append(reply)
        return most


def _ranked(keys: tuple[Any, ...]) -> tuple[tuple[int, Candidate], ...]:
    return tuple(one if isinstance(one, tuple) else (0, one) for one in keys)


class SyncClient(StateClient):
    """Calls the blocking methods."""

    async def acquire(self, *keys: Any, info: CallInfo = INFO, spread: bool = False) -> Any:
        """Call the state."""
        return self.state.acquire(info, _ranked(keys), spread=spread)

    async def settle(self, lease: Lease, outcome: Outcome = OK, names: Iterable[str] = ()) -> Any:
        """Settle."""
        return self.state.settle(lease, outcome, names)

    async def get_owner(self, *names: str) -> Any:
        """Call the state."""
        return self.state.get_owner(names)

    async def set_owner(self, lease: Lease, *names: str) -> None:
        """Call the state."""
        self.state.set_owner(lease, names)


class AsyncClient(StateClient):
    """Awaits the async methods."""

    async def acquire(self, *keys: Any, info: CallInfo = INFO, spread: bool = False) -> Any:
        """Call the state."""
        return await self.state.do("acquire", info, _ranked(keys), spread=spread)

    async def settle(self, lease: Lease, outcome: Outcome = OK, names: Iterable[str] = ()) -> Any:
        """Settle."""
        return await self.state.do("settle", lease, outcome, names)

    async def get_owner(self, *names: str) -> Any:
        """Call the state."""
        return await self.state.do("get_owner", names)

    async def set_owner(self, lease: Lease, *names: str) -> None:
        """Call the state."""
        await self.state.do("set_owner", lease, names)
