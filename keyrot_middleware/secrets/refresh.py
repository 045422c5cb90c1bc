"""A store as the ring asks it: in threads of its own, and again when it is time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from math import inf

from ..core.text import mask_keys
from ..errors import KeyrotError, SecretError
from .base import Secret, SecretStore

__all__ = [
    "FIRST_S",
    "Answers",
    "LookupFuture",
    "RefreshSchedule",
    "Refs",
    "StoreQueue",
    "StoreWorker",
]

# Questions to one store: asked in a thread of their own, so that nobody waits longer than wanted -
#
# A lane has at most one question under way. Those that come meanwhile are put together and asked
# next, in one batch; a key that is being asked for is not asked for twice. A store that hangs so
# holds one thread of each of its lanes, and nothing else.


Refs = dict[str, str | None]
"""Key ids and their places, as in keys.json."""


class LookupFuture:
    """An answer to come, for all who wait for it.

    Who *takes* it tells the world what has changed; an answer that nobody takes the ring tells.
    """

    def __init__(self, refs: Mapping[str, str | None], *, takers: int = 0) -> None:
        """Ask for *refs*, for *takers* who take the answer."""
        self.refs: Refs = dict(refs)
        self.at = time.monotonic()
        """Since when somebody waits."""
        self.changed: frozenset[str] = frozenset()
        """The ids that have another value now."""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._takers = takers

    def join(self, takers: int) -> bool:
        """Let more take the answer; tell whether that is not too late."""
        with self._lock:
            if self._done.is_set():
                return False
            self._takers += takers
            return True

    def wait(self, until: float, *, takers: int = 0) -> bool:
        """Wait for the answer until *until*, of `time.monotonic()`; tell whether it is here.

        Where it is not, those *takers* take it no more.
        """
        self._done.wait(max(0.0, until - time.monotonic()))
        with self._lock:
            if not self._done.is_set():
                self._takers -= takers
            return self._done.is_set()

    def finish(self, changed: frozenset[str]) -> bool:
        """Give the answer; tell whether it is taken."""
        with self._lock:
            self.changed = changed
            self._done.set()
            return self._takers > 0


class StoreQueue:
    """Ask one question at a time."""

    def __init__(
        self, ask: Callable[[LookupFuture], None], idle: Callable[[], None], name: str
    ) -> None:
        """Ask nothing yet.

        Args:
            ask: Finds the answer to a ticket.
            idle: Called when nothing is under way any more.
            name: Of the thread.
        """
        self._ask = ask
        self._idle = idle
        self._name = name
        self.renew()

    def renew(self) -> None:
        """Begin anew in a forked child: threads, and locks they held, stayed with the parent."""
        self._lock = threading.Lock()
        self._running: LookupFuture | None = None
        self._next: LookupFuture | None = None

    @property
    def busy(self) -> bool:
        """Tell whether a question is under way."""
        return self._running is not None

    def put(self, refs: Mapping[str, str | None], *, takers: int = 0) -> LookupFuture:
        """Ask for keys, for so many *takers*; the answer comes by itself."""
        with self._lock:
            running = self._running
            if running is None:
                return self._start(LookupFuture(refs, takers=takers))
            if refs.items() <= running.refs.items() and running.join(takers):
                return running
            if self._next is None:
                self._next = LookupFuture({})
                self._next.at = running.at  # who queues behind a slow answer has waited as long
            self._next.refs.update(refs)
            self._next.join(takers)
            return self._next

    def _start(self, ticket: LookupFuture) -> LookupFuture:
        """Begin with a ticket; where there can be no thread, nothing is under way."""
        threading.Thread(target=self._work, args=(ticket,), name=self._name, daemon=True).start()
        self._running = ticket
        return ticket

    def _work(self, first: LookupFuture) -> None:
        ticket: LookupFuture | None = first
        try:
            while ticket is not None:
                self._ask(ticket)
                ticket.finish(ticket.changed)
                with self._lock:
                    ticket = self._running = self._next
                    self._next = None
        except BaseException:
            self._let_go()
            raise
        finally:
            self._idle()

    def _let_go(self) -> None:
        """Let nobody wait for what a fault of ours has left unanswered."""
        with self._lock:
            left = [ticket for ticket in (self._running, self._next) if ticket is not None]
            self._running = self._next = None
        for ticket in left:
            ticket.finish(ticket.changed)


# When a store is asked again: arithmetic only, times in seconds of one clock -------------------
#
# All keys once in `ttl_s`, and those without a current value sooner: after `FIRST_S`, then twice as
# long each time, up to `ttl_s`. A part of each pause is drawn, so that processes which were started
# together do not ask together.


FIRST_S = 2.0


class RefreshSchedule:
    """The turns of one store."""

    def __init__(self, ttl_s: float, draw: Callable[[], float], now: float) -> None:
        """Begin.

        Args:
            ttl_s: The longest time without a look-up, more than 0.
            draw: Gives random numbers in [0, 1).
            now: The time.
        """
        self._ttl_s = ttl_s
        self._draw = draw
        self._tries = 0
        # The first turns of processes that start together are spread over half of the time.
        self.whole_at = now + ttl_s * (0.5 + draw() / 2)
        """When all keys are due."""
        self.rest_at = inf
        """When those without a current value are."""

    @property
    def due_at(self) -> float:
        """When anything is due."""
        return min(self.whole_at, self.rest_at)

    def asked(self, now: float) -> bool:
        """Take note that what was due is being asked for; tell whether that is all keys."""
        whole = now >= self.whole_at
        if whole:
            self.whole_at = now + self._ttl_s * (0.9 + self._draw() / 10)
        self.rest_at = inf
        return whole

    def answered(self, now: float, *, failing: bool) -> None:
        """Take note of an answer: whether a key is left without a current value."""
        if not failing:
            self._tries, self.rest_at = 0, inf
        elif self.rest_at == inf:
            pause = min(FIRST_S * 2.0**self._tries, self._ttl_s)
            self._tries = min(self._tries + 1, 30)
            self.rest_at = now + pause * (0.5 + self._draw() / 2)


Answers = dict[str, Secret | SecretError]


class StoreWorker:
    """One store of a ring."""

    def __init__(
        self,
        store: SecretStore,
        enter: Callable[[StoreWorker, LookupFuture, Answers], None],
        idle: Callable[[], None],
        rota: Callable[[], RefreshSchedule],
    ) -> None:
        """Ask nothing yet.

        Args:
            store: Whom to ask.
            enter: Takes each answer, in the thread in which it came.
            idle: Called when it has answered all that was asked.
            rota: Makes a plan of when to ask again.
        """
        self.store = store
        self.failure_logged = False
        """That a key of it has no current value was said, and not yet that all have one again."""
        self._enter = enter
        self._new_rota = rota
        self._instant = bool(getattr(store, "instant", False))
        name = f"keyrot-secrets-{store.scheme}"
        self._lane = StoreQueue(self._answer, idle, name)
        self._urgent = StoreQueue(self._answer, idle, f"{name}-urgent")
        self.rota = rota()

    @property
    def fixed(self) -> bool:
        """Tell whether asking again by the clock is of no use."""
        return bool(getattr(self.store, "fixed", False))

    @property
    def busy(self) -> bool:
        """Tell whether it is being asked, other than urgently."""
        return self._lane.busy

    def ask(
        self, refs: Mapping[str, str | None], *, urgent: bool = False, takers: int = 0
    ) -> LookupFuture:
        """Ask for keys; an instant store has answered when this returns.

        Args:
            refs: Their places, as in keys.json.
            urgent: A call waits: do not queue behind a look-up of all.
            takers: How many take the answer, and say themselves that a key was replaced.
        """
        if not self._instant:
            lane = self._urgent if urgent else self._lane
            return lane.put(refs, takers=takers)
        ticket = LookupFuture(refs, takers=takers)
        try:
            self._answer(ticket)
        finally:
            ticket.finish(ticket.changed)
        return ticket

    def answered(self, *, failing: bool) -> None:
        """Say whether a key of this store has no current value, so that it is asked again."""
        self.rota.answered(time.monotonic(), failing=failing)

    def renew(self) -> None:
        """Begin anew in a forked child."""
        self._lane.renew()
        self._urgent.renew()
        self.rota = self._new_rota()

    def _answer(self, ticket: LookupFuture) -> None:
        self._enter(self, ticket, _ask(self.store, ticket.refs))


def _ask(store: SecretStore, refs: Mapping[str, str | None]) -> Answers:
    """Ask a store for keys; an answer for each, whatever the store does."""
    why = "gave no answer"
    found: Mapping[str, Secret | SecretError] = {}
    try:
        found = dict(store.resolve(refs))
    except KeyrotError as error:
        why = f"cannot be used: {mask_keys(str(error))}"
    except Exception as error:
        # Only its type: the message of a store's library may hold a token or a value.
        why = f"failed with {type(error).__name__}"
    return {
        key_id: answer
        if isinstance(answer := found.get(key_id), Secret | SecretError)
        else SecretError(f"key {key_id}: the secret store {store.scheme} {why}")
        for key_id in refs
    }
