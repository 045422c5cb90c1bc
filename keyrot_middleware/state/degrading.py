"""Redis is not the outage: a shared state, and this process's own windows where that fails.

Every decision of this file is in the methods that ask nobody; of those that do, each has a twin
for tasks, and the two differ in `await` alone. A lease is settled with the state that granted it:
`books.granted` is the shared state's, a lease without it was lent here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

from ..core.model import (
    Block,
    CallInfo,
    Candidate,
    Kind,
    Lease,
    Outcome,
    Unavailable,
)
from ..core.roster import Shortlist
from ..errors import KeyrotError
from .base import Holder, KeyHealth, State
from .breaker import Breaker
from .debts import Debts, apay, matters, pay
from .memory import Booking
from .mirror import Mirror

__all__ = ["DegradingState"]

_log = logging.getLogger("keyrot_middleware")


class _Known(NamedTuple):
    """How things stood before the shared state was asked."""

    struck: int
    """Of the mirror."""
    mark: int | None
    """Of the debts."""


class DegradingState(State):
    """Ask *primary* while it serves; go on alone while it does not. Raises nothing of its own."""

    instant: ClassVar[bool] = False

    def __init__(self, primary: State, local: Mirror, breaker: Breaker, pool: str) -> None:
        """Ask nobody yet.

        Args:
            primary: The shared state; may raise anything, and be as slow as its own time limit.
            local: This process's own; nobody else uses it.
            breaker: Decides when *primary* is asked.
            pool: For messages.
        """
        self._primary = primary
        self._local = local
        self._breaker = breaker
        self._pool = pool
        self._debts = Debts(local, primary)

    @property
    def degraded(self) -> bool:
        """Tell whether this process counts alone."""
        return self._breaker.open

    # What a call asks, and its twin for tasks ----------------------------------------------------

    def acquire(
        self, info: CallInfo, shortlist: Shortlist, *, spread: bool, holder: Holder | None = None
    ) -> Lease | Unavailable:
        """Reserve one key of *shortlist*; see `State.acquire`."""
        turn = self._breaker.enter()
        if turn is not None:
            try:
                if self._debts:
                    pay(self._debts.steps(look=self._breaker.open), self._primary)
                known = _Known(self._local.struck, self._debts.mark)
                reply = self._primary.acquire(info, shortlist, spread=spread, holder=holder)
            except BaseException as error:
                self._lost(turn, error)
            else:
                return self._told(turn, reply, info, shortlist, known, spread=spread, holder=holder)
        return self._lend(info, shortlist, spread, holder)

    async def aacquire(
        self, info: CallInfo, shortlist: Shortlist, *, spread: bool, holder: Holder | None = None
    ) -> Lease | Unavailable:
        """Do what `acquire` does, without blocking the loop."""
        turn = self._breaker.enter()
        if turn is not None:
            try:
                if self._debts:
                    await apay(self._debts.steps(look=self._breaker.open), self._primary)
                known = _Known(self._local.struck, self._debts.mark)
                reply = await self._primary.aacquire(info, shortlist, spread=spread, holder=holder)
            except BaseException as error:
                self._lost(turn, error)
            else:
                return self._told(turn, reply, info, shortlist, known, spread=spread, holder=holder)
        return self._lend(info, shortlist, spread, holder)

    def settle(self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()) -> float | None:
        """Book what became of *lease* with the state that granted it; see `State.settle`."""
        names = tuple(names)
        granted = _granted(lease)
        turn = self._breaker.turn() if granted is not None else None
        if granted is not None and turn is not None:
            try:
                until = self._primary.settle(granted, outcome, names)
            except BaseException as error:
                self._lost(turn, error)
            else:
                return self._settled(turn, lease, outcome, names, until)
        return self._settle_here(lease, outcome, names)

    async def asettle(
        self, lease: Lease, outcome: Outcome, names: Iterable[str] = ()
    ) -> float | None:
        """Do what `settle` does, without blocking the loop."""
        names = tuple(names)
        granted = _granted(lease)
        turn = self._breaker.turn() if granted is not None else None
        if granted is not None and turn is not None:
            try:
                until = await self._primary.asettle(granted, outcome, names)
            except BaseException as error:
                self._lost(turn, error)
            else:
                return self._settled(turn, lease, outcome, names, until)
        return self._settle_here(lease, outcome, names)

    def owner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Tell whose key made one of *names*; see `State.owner`."""
        names = tuple(names)
        return self._ask("owner", names) or self._local.owner(names)

    async def aowner(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Do what `owner` does, without blocking the loop."""
        names = tuple(names)
        turn, found = self._breaker.enter(), None
        if turn is not None:
            try:
                if self._breaker.open:
                    await self._primary.acheck()
                found = await self._primary.aowner(names)
            except BaseException as error:
                self._lost(turn, error)
            else:
                self._well(turn)
        return found or self._local.owner(names)

    # What is asked now and then ------------------------------------------------------------------

    def reset(self, key: Candidate) -> None:
        """Forget everything that rests this key; the shared state learns it later."""
        self._local.reset(key)
        self._ask_or_owe("reset", key)

    def configure(self, candidates: Iterable[Candidate]) -> None:
        """Forget what was learned before configured limits changed, there too, maybe later."""
        keys = list(candidates)
        self._local.configure(keys)
        self._ask_or_owe("configure", keys)

    def blocked(self, info: CallInfo, candidates: Iterable[Candidate]) -> dict[str, Block]:
        """Return why `acquire` would refuse each key; while degraded, as this process decides."""
        keys = list(candidates)
        found = self._ask("blocked", info, keys)
        return self._local.blocked(info, keys) if found is None else found

    def snapshot(self, candidates: Iterable[Candidate]) -> dict[str, KeyHealth]:
        """Tell what is known of each key; while degraded, what this process alone knows."""
        keys = list(candidates)
        found = self._ask("snapshot", keys)
        return self._local.snapshot(keys) if found is None else found

    def check(self) -> None:
        """Find out whether the shared state can serve; it is announced where it cannot."""
        self._ask("check")

    def close(self) -> None:
        """Let go of connections."""
        self._primary.close()

    def _ask(self, method: str, *args: Any) -> Any:
        """Call a method of the shared state; None where it cannot be asked."""
        return self._try(method, args)[1]

    def _ask_or_owe(self, method: str, *args: Any) -> None:
        if not self._try(method, args)[0]:
            self._debts.add(method, *args)

    def _try(self, method: str, args: tuple[Any, ...]) -> tuple[bool, Any]:
        turn = self._breaker.enter()
        if turn is None:
            return False, None
        try:
            if self._breaker.open:  # it is a look, and to read alone proves nothing
                self._primary.check()
            reply = getattr(self._primary, method)(*args)
        except BaseException as error:
            self._lost(turn, error)
            return False, None
        self._well(turn)
        return True, reply

    # What comes of it: here is every decision ----------------------------------------------------

    def _told(
        self,
        turn: int,
        reply: Lease | Unavailable,
        info: CallInfo,
        shortlist: Shortlist,
        known: _Known,
        *,
        spread: bool,
        holder: Holder | None,
    ) -> Lease | Unavailable:
        """Book here what the shared state has decided."""
        self._well(turn)
        self._debts.recall()
        if not isinstance(reply, Lease):
            self._local.refused(info, shortlist, reply.blocks)
            return reply
        if known.mark is not None and known.mark == self._debts.mark:
            lease = self._local.lent(reply, info.counted, known.struck, None, holder)
            return lease or reply
        # It does not know all yet that was lent here meanwhile, and may have lent too much.
        doubted = next(key for _, key in shortlist if key.key_id == reply.key_id)
        lease = self._local.lent(reply, info.counted, known.struck, doubted, holder)
        if lease is None:
            self._debts.add("settle", reply, Outcome(Kind.UNSENT), ())
            return self._lend(info, shortlist, spread, holder)
        return lease

    def _settled(
        self,
        turn: int,
        lease: Lease,
        outcome: Outcome,
        names: tuple[str, ...],
        until: float | None,
    ) -> float | None:
        """Book here too how a lease ended; the shared state's own cooldown is the one kept."""
        self._well(turn)
        self._local.settle(lease, _until(outcome, until), names)
        return until

    def _lend(
        self, info: CallInfo, shortlist: Shortlist, spread: bool, holder: Holder | None
    ) -> Lease | Unavailable:
        self._debts.fall_behind()  # before: a grant that comes meanwhile is doubted
        return self._local.acquire(info, shortlist, spread=spread, holder=holder)

    def _settle_here(self, lease: Lease, outcome: Outcome, names: tuple[str, ...]) -> float | None:
        """Keep here what became of it, and what matters to others for when the other is back."""
        until = self._local.settle(lease, outcome, names)
        granted = _granted(lease)
        if granted is not None and (granted.probe or getattr(granted.books, "held", True)):
            self._debts.add_settle(granted, _until(outcome, until), names)
        elif names or matters(outcome.verdict):
            by_hand = lease._replace(books=None, degraded=False)
            self._debts.add_settle(by_hand, _until(outcome, until), names)
        return until

    def _lost(self, turn: int, error: BaseException) -> None:
        """Take note of a failure of the shared state, and go on; other exceptions go on out."""
        if not isinstance(error, Exception):
            raise error
        if self._breaker.failed(turn):
            why = str(error) if isinstance(error, KeyrotError) else type(error).__name__
            _log.warning(
                "pool %s: the shared state cannot be used (%s); this process counts for itself "
                "until it can",
                self._pool,
                why,
            )

    def _well(self, turn: int) -> None:
        seconds = self._breaker.succeeded(turn)
        if seconds is not None:
            text = "pool %s: the shared state is back after %.1f s; limits are shared again"
            _log.warning(text, self._pool, seconds)


def _granted(lease: Lease) -> Lease | None:
    """Give the shared state's lease; a failure reported by hand is its own; None: lent here."""
    books = lease.books
    return books.granted if isinstance(books, Booking) else lease


def _until(outcome: Outcome, until: float | None) -> Outcome:
    """Say in the outcome for how long the scope rests, where only the state could tell."""
    verdict = outcome.verdict
    if verdict is None or until is None:
        return outcome
    return outcome._replace(verdict=replace(verdict, until=until))
