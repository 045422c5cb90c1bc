"""A real pool in memory under a scripted upstream, and a record of the commands of a call."""

from __future__ import annotations

import gc
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from keyrot_middleware import providers
from keyrot_middleware.core.activity import CallRecord
from keyrot_middleware.core.commands import StreamOpened
from keyrot_middleware.core.flow import CallState, Exhausted
from keyrot_middleware.core.model import (
    NO_LIMITS,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
)
from keyrot_middleware.core.selection import Selector
from keyrot_middleware.errors import SecretError, handle_internal_error
from keyrot_middleware.runtime import runner
from keyrot_middleware.runtime.pool import Pool, resolved_candidates
from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets.cache import SecretCache, SecretLocation
from keyrot_middleware.state.memory import MemoryState
from keyrot_middleware.telemetry import CallObserver, observe
from keyrot_middleware.testing import FakeClock
from support.replies import MODEL, OK, Chunks, ChunkStream

INFO = CallInfo(MODEL, "generateContent", tokens=10, estimate=10)
STREAMED = INFO._replace(verb="streamGenerateContent", stream=True)


def key(key_id: str, limits: Limits = NO_LIMITS, **labels: Any) -> Candidate:
    project = labels.pop("project", key_id)
    billing = labels.pop("billing_account", project)
    return Candidate(key_id, project, billing, limits, **labels)


class EditableStore:
    scheme = "store"
    instant = True

    def __init__(self, *key_ids: str) -> None:
        self.values = {key_id: f"FAKE-value-of-{key_id}" for key_id in key_ids}
        self.lookups = 0

    def resolve(self, refs: Mapping[str, str | None]) -> dict[str, Secret | SecretError]:
        self.lookups += 1
        return {key_id: Secret(self.values[key_id]) for key_id in refs}


class LeaseLog:
    """Every lease of a state, and how it was settled."""

    def __init__(self, state: Any, pool: Pool | None = None) -> None:
        self.leases: list[Lease] = []
        self.pool = pool
        self.checked = True
        """False where the test itself makes the records incomplete."""
        self._outcomes: list[tuple[Lease, Outcome]] = []
        self._held: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._acquire, self._settle = state.acquire, state.settle
        state.acquire, state.settle, state.ledger = self.acquire, self.settle, self

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        reply = self._acquire(*args, **kwargs)
        if isinstance(reply, Lease):
            self.leases.append(reply)
            if reply.reservation is not None:
                self._held[reply.reservation] = reply.key_id
        return reply

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Record a settlement; a later report of resource names, without a lease, is none."""
        if lease.reservation is not None and outcome.kind is not LeaseOutcome.SERVING:
            self._outcomes.append((lease, outcome))
            self._held.pop(lease.reservation, None)
        until: float | None = self._settle(lease, outcome, names)
        return until

    @property
    def outcomes(self) -> list[tuple[Lease, Outcome]]:
        """How the leases ended, those of closed and dropped calls too."""
        if self.pool is not None:
            self.pool.settle_abandoned()
        return self._outcomes

    @property
    def kinds(self) -> list[LeaseOutcome]:
        return [outcome.kind for _, outcome in self.outcomes]

    @property
    def keys(self) -> list[str]:
        return [lease.key_id for lease, _ in self.outcomes]

    @property
    def under_way(self) -> dict[str, int]:
        """How many leases of each key are not settled; one that is dropped is not in flight."""
        if self.pool is not None:
            self.pool.settle_abandoned()
        return dict(Counter(self._held.values()))

    def check(self) -> None:
        """Check that every lease was settled, and none twice."""
        if self.under_way:
            gc.collect()  # a stream that was dropped in a cycle
        settled = Counter(id(lease) for lease, _ in self.outcomes)
        assert settled == Counter(id(lease) for lease in self.leases)
        assert self.under_way == {}

    def clear(self) -> None:
        self.leases.clear()
        self._outcomes.clear()


class Rig:
    """A pool, the replies of upstream to each of its keys, and a record of sends and sleeps."""

    def __init__(
        self, *keys: Candidate, pool: Mapping[str, Any] | None = None, **policy: Any
    ) -> None:
        """*pool* has more arguments of `Pool`."""
        self.policy = RetryPolicy(**policy)
        self.clock = FakeClock()
        self.random = 0.0
        self.home_is_own = True
        self.sent: list[str] = []
        self.slept: list[float] = []
        self.script: dict[str, deque[Any]] = defaultdict(deque)
        """Replies per key; a callable is called for one."""
        self.default: Any = OK
        """The reply when none are left."""
        self.state = MemoryState(self.policy, self.clock.time)
        self.store = EditableStore(*(k.key_id for k in keys))
        secrets = SecretCache({k.key_id: SecretLocation(self.store) for k in keys})
        self.pool = Pool(
            "test",
            Selector(resolved_candidates(keys, secrets), self.policy.strategy),
            self.state,
            secrets,
            self.policy,
            clock=self,
            random=lambda: self.random,
            configured=keys,
            **(pool or {}),
        )
        self.ledger = LeaseLog(self.state, self.pool)

    def check(self) -> None:
        """Check that each lease was settled exactly once, and that no probe is left."""
        self.ledger.check()
        cooldowns = [c for found in self.state._records.cooldowns.values() for c in found.values()]
        assert [c for c in cooldowns if c.probe_until] == []

    @property
    def selector(self) -> Selector:
        return self.pool.selector

    def time(self) -> float:
        return self.clock.time()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)

    def will(self, key_id: str, *replies: Any) -> None:
        """Script the replies of upstream to the next sends with that key."""
        self.script[key_id].extend(replies)

    def send(self, lease: Lease) -> Any:
        self.sent.append(lease.key_id)
        replies = self.script[lease.key_id]
        reply = replies.popleft() if replies else self.default
        if callable(reply):
            reply = reply()
        return StreamOpened(ChunkStream(reply)) if isinstance(reply, Chunks) else reply

    async def asend(self, lease: Lease) -> Any:
        return self.send(lease)

    def recorded(self, info: CallInfo = INFO) -> Tape:
        tape = Tape()
        with suppress(Exception):
            self.call(info, observer=tape)
        return tape

    def run(self, call: CallState) -> Any:
        """Run a call that was made before; for a stream return all its chunks."""
        reply = runner.run(self.pool, call, self.asend, _raised)
        return list(reply) if isinstance(reply, ChunkStream) else reply

    def make(self, info: CallInfo = INFO, home: Candidate | None = None) -> CallState:
        pool = self.pool
        shared: dict[str, Any] = {
            "waiting_lines": pool.waiting_lines,
            "evidence": pool.evidence,
            "home_is_own": self.home_is_own,
        }
        classify = providers.of(info.platform).classify
        return CallState(
            info, self.selector, self.policy, pool.token_scale, classify, home, **shared
        )

    def call(
        self, info: CallInfo = INFO, home: Candidate | None = None, observer: Any = None
    ) -> Any:
        """Run a call in this thread; for a stream return all its chunks."""
        reply = self.open(info, home, observer)
        return list(reply) if isinstance(reply, ChunkStream) else reply

    def open(
        self, info: CallInfo = STREAMED, home: Candidate | None = None, observer: Any = None
    ) -> Any:
        """Run a call up to the first chunk of its stream, in this thread."""
        observer = observer or self._observer(info)
        return runner.run(self.pool, self.make(info, home), self.asend, _raised, observer)

    async def acall(
        self, info: CallInfo = INFO, home: Candidate | None = None, observer: Any = None
    ) -> Any:
        """Run a call in this task; for a stream return all its chunks."""
        reply = await self.aopen(info, home, observer)
        return [one async for one in reply] if isinstance(reply, ChunkStream) else reply

    async def aopen(
        self, info: CallInfo = STREAMED, home: Candidate | None = None, observer: Any = None
    ) -> Any:
        """Run a call up to the first chunk of its stream, in this task."""
        observer = observer or self._observer(info)
        return await runner.arun(self.pool, self.make(info, home), self.asend, _raised, observer)

    def _observer(self, info: CallInfo) -> CallObserver | None:
        return observe(self.pool.observers, info, handle_internal_error)

    def failing(self, info: CallInfo = INFO, home: Candidate | None = None) -> Any:
        try:
            self.call(info, home)
        except Exception as error:
            return error
        raise AssertionError("the call was expected to fail")


def three(**policy: Any) -> Rig:
    return Rig(key("a"), key("b"), key("c"), strategy="fill", **policy)


def _raised(exhausted: Exhausted) -> BaseException:
    return exhausted


class Tape:
    def __init__(self) -> None:
        self.log: list[Any] = []

    def before(self, command: Any) -> None:
        self.log.append(("command", command))

    def after(self, command: Any, reply: Any) -> None:
        self.log.append(("thrown" if isinstance(reply, BaseException) else "reply", reply))

    def attach(self) -> None:
        """Do nothing."""

    def detach(self, token: object) -> None:
        """Do nothing."""

    def finish(self, error: BaseException | None, record: CallRecord) -> None:
        """Do nothing."""

    def of(self, kind: type) -> list[Any]:
        return [what for how, what in self.log if how == "command" and type(what) is kind]
