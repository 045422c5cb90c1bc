"""What a shared state has to be told once it is back, in the order in which it is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

from ..core.model import NO_LIMITS, NO_USAGE, Kind, Lease, Outcome, Scope, Verdict
from ..forks import after_fork
from .base import State
from .mirror import Mirror, Unreported

__all__ = ["Debts", "apay", "matters", "pay"]

BUDGET_S = 0.1
"""One call tells no longer than this; the next goes on from there."""
KEPT = 1_000
TRIES = 3
"""What cannot be told so often is let go, so that it does not keep the state away for ever."""

_Debt = tuple[int, str, tuple[Any, ...], dict[str, Any]]
"""How often it was tried, and a method of the shared state with its arguments."""
Steps = Generator[tuple[str, tuple[Any, ...], dict[str, Any]], Any, None]
"""Methods of the shared state to call, and what they are called with; each reply is sent in."""


class Debts:
    """What happened while the shared state was away: verdicts, owners, resets, what was sent."""

    def __init__(
        self, local: Mirror, primary: State, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.behind = False
        """Something was lent that the shared state has not booked."""
        self._falls = 0
        """How often something was."""
        self._local = local
        self._primary = primary
        self._clock = clock
        self._losses = 0
        self._recalling = threading.Lock()
        self._queue: deque[_Debt] = deque(maxlen=KEPT)
        """What happened, in order; of very much the oldest is let go."""
        self._whole: deque[_Debt] = deque()
        """What was used, and what rests: as much as this process knows, so never too much."""
        self._turn = threading.Lock()
        after_fork(self, Debts._forgive)

    def __bool__(self) -> bool:
        # While somebody tells it, it may not know yet what is in the queue no more.
        return self.behind or bool(self._queue or self._whole) or self._turn.locked()

    @property
    def mark(self) -> int | None:
        """Compare before and after a grant: the same, and the shared state knew of all; or None."""
        return None if self else self._falls

    def fall_behind(self) -> None:
        """Something is about to be lent that the shared state will not have booked."""
        self._falls += 1
        self.behind = True

    def add(self, method: str, *args: Any, **more: Any) -> None:
        """Remember to call this."""
        self._queue.append((0, method, args, more))

    def add_settle(self, lease: Lease, outcome: Outcome, names: tuple[str, ...]) -> None:
        """Remember how a lease ended, and who owns what: it may be told twice.

        So nothing that was booked is corrected by it, which would count twice as well.
        """
        kind = Kind.ABANDONED if outcome.kind is Kind.UNSENT else outcome.kind
        self.add("settle", lease, outcome._replace(kind=kind, usage=NO_USAGE), names)

    def recall(self) -> None:
        """Where the shared state has forgotten all, tell it once what this process knows of it."""
        if self._primary.losses == self._losses:
            return
        with self._recalling:
            losses = self._primary.losses
            if losses == self._losses:
                return
            self._whole.clear()  # a part of what comes now
            self.behind = False
            self._book(self._local.whole_share())
            for lease, outcome in self._local.rests():
                self._whole.append((0, "settle", (lease, outcome, ()), {}))
            self._losses = losses

    def steps(self, *, look: bool) -> Steps:
        """Tell what can be told now; at once done while somebody else does.

        Args:
            look: Find out first whether the other can serve at all, so that what is to be told is
                not blamed for it.

        Raises:
            Exception: The one that is thrown in; what was being told is kept.
        """
        if not self._turn.acquire(blocking=False):
            return
        try:
            began = self._clock()
            if look or self.behind:  # whoever is behind has to know first what the other remembers
                yield "check", (), {}
                self.recall()
            yield from self._some(began)
            # What is still to be booked would be found missing, and be booked twice.
            if self.behind and not self._whole:
                yield from self._windows()
                yield from self._some(began)
        finally:
            self._turn.release()

    def _some(self, began: float) -> Steps:
        while (debts := self._queue or self._whole) and self._clock() - began < BUDGET_S:
            yield from self._one(debts)

    def _windows(self) -> Steps:
        """Find out what it knows of the windows that run, and what it has to book."""
        self.behind = False
        try:
            used = self._local.used()
            keys = list({debt.key.project: debt.key for debt in used}.values())
            seen = (yield "snapshot", (keys,), {}) if keys else {}
        except BaseException:
            self.behind = True
            raise
        self._book(self._local.unreported(used, seen))

    def _book(self, debts: Iterable[Unreported]) -> None:
        for debt in debts:
            counts = dict(zip(debt._fields[2:], debt[2:], strict=True))
            self._whole.append((0, "book", debt[:2], counts))

    def _one(self, debts: deque[_Debt]) -> Steps:
        tries, method, args, more = debts.popleft()
        if method == "settle" and _is_over(args[0], args[1], args[2], self._local.time()):
            return
        try:
            yield method, args, more
        except BaseException:
            if tries + 1 < TRIES:
                debts.appendleft((tries + 1, method, args, more))
            raise

    def _forgive(self) -> None:
        """Leave it all to the parent, in a forked child: it would be told twice."""
        self._turn, self._recalling = threading.Lock(), threading.Lock()
        self._queue.clear()
        self._whole.clear()
        self._local.forget_meanwhile()
        self.behind = False


def matters(verdict: Verdict | None) -> bool:
    """Tell whether other processes have something to learn from a failure."""
    if verdict is None:
        return False
    return verdict.scope is not Scope.NONE or verdict.learned != NO_LIMITS


def _is_over(lease: Lease, outcome: Outcome, names: tuple[str, ...], now: float) -> bool:
    """Tell whether a failure has nothing to say any more, and its lease holds nothing."""
    until = outcome.verdict.until if outcome.verdict is not None else None
    return lease.books is None and not names and until is not None and until <= now


def pay(steps: Steps, state: State) -> None:
    """Tell *state* what *steps* say, blocking the thread.

    Raises:
        Exception: Of the state.
    """
    try:
        method, args, more = next(steps)
        while True:
            try:
                reply = getattr(state, method)(*args, **more)
            except BaseException as error:
                method, args, more = steps.throw(error)
            else:
                method, args, more = steps.send(reply)
    except StopIteration:
        pass


async def apay(steps: Steps, state: State) -> None:
    """Tell *state* what *steps* say, blocking the task only.

    Raises:
        Exception: Of the state.
    """
    try:
        method, args, more = next(steps)
        while True:
            try:
                reply = await _acall(state, method, args, more)
            except BaseException as error:
                method, args, more = steps.throw(error)
            else:
                method, args, more = steps.send(reply)
    except StopIteration:
        pass


async def _acall(state: State, method: str, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
    twin = getattr(state, f"a{method}", None)
    if twin is not None:
        return await twin(*args, **more)
    return await asyncio.to_thread(getattr(state, method), *args, **more)
