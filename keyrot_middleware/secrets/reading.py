"""Read many secrets in little time: one read first, the rest side by side, a second try.

The first read goes alone, so that sixteen threads do not log in sixteen times, and a store that
is down is found out once. A store that nobody reaches is not asked for the rest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from .fault import Answer, Fault, Reach
from .hush import hushed

__all__ = ["AT_ONCE", "Ask", "Batch", "read_all"]

AT_ONCE = 10
"""Requests under way; as many as an HTTP connection pool of requests or urllib3 keeps open."""
PAUSE_S = 0.5
"""Before a second try where the store was busy."""
LONGEST_S = 20.0
"""No request is begun later than that; a refresh comes again."""

Batch = tuple[str, ...]
"""Names of secrets that are read in one request."""
Ask = Callable[[Batch], Mapping[str, Answer]]
"""Reads a batch."""


def read_all(
    batches: Sequence[Batch], ask: Ask, log_in_again: Callable[[], None]
) -> dict[str, Answer]:
    """Read all batches; a batch whose login has run out, or that met a busy store, twice.

    Args:
        batches: What to read.
        ask: Called from several threads. What it raises is told by its type only.
        log_in_again: Forgets the login: before the second try, and where that is refused too,
            so that the next look-up begins with whatever login there is then.

    Returns:
        An answer for each name; where two tries failed, the second failure.
    """
    reading = _Reading(ask, time.monotonic() + LONGEST_S)
    reading.round(batches)
    again = [batch for batch in batches if reading.reaches(batch) & {Reach.BUSY, Reach.LOGIN}]
    if not again:
        return reading.answers
    if any(Reach.LOGIN in reading.reaches(batch) for batch in again):
        log_in_again()
    else:
        time.sleep(PAUSE_S)
    reading.round(again)
    if any(Reach.LOGIN in reading.reaches(batch) for batch in again):
        log_in_again()
    return reading.answers


class _Reading:
    """One call of `read_all`."""

    def __init__(self, ask: Ask, deadline: float) -> None:
        self.answers: dict[str, Answer] = {}
        self._ask = ask
        self._deadline = deadline
        self._stop: Fault | None = None
        self._lock = threading.Lock()

    def round(self, batches: Sequence[Batch]) -> None:
        """Read each batch once, unless the store as a whole does not answer."""
        self._stop = None
        self._read(batches[:1])
        self._side_by_side(batches[1:])

    def reaches(self, batch: Batch) -> set[Reach]:
        """Tell what went wrong in a batch."""
        answers = (self.answers[name] for name in batch)
        return {answer.reach for answer in answers if isinstance(answer, Fault)}

    def _side_by_side(self, batches: Sequence[Batch]) -> None:
        """Read in threads of our own: a program that ends waits for those of an executor."""
        shares = [batches[n::AT_ONCE] for n in range(min(AT_ONCE, len(batches)))]
        threads = [
            threading.Thread(target=self._read, args=(share,), name="keyrot-secrets", daemon=True)
            for share in shares
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _read(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            stop = self._stop or self._too_late()
            answers = dict.fromkeys(batch, stop) if stop else _asked(self._ask, batch)
            with self._lock:
                for name in batch:
                    self._note(name, answers.get(name, _NOTHING))

    def _note(self, name: str, answer: Answer) -> None:
        if not isinstance(answer, Fault):
            self.answers[name] = answer
            return
        if answer.reach in (Reach.LOGIN, Reach.STORE):
            self._stop = answer
        if isinstance(self.answers.get(name), Fault | None):
            self.answers[name] = answer

    def _too_late(self) -> Fault | None:
        return _TOO_LATE if time.monotonic() > self._deadline else None


_NOTHING = Fault(Reach.HERE, "the store's answer does not mention it")
_TOO_LATE = Fault(Reach.STORE, f"the store is too slow: not all was read in {LONGEST_S:.0f} s")


def _asked(ask: Ask, batch: Batch) -> Mapping[str, Answer]:
    name = "?"
    with hushed():
        try:
            return ask(batch)
        except Exception as error:
            # Only the type: the text of a store's library may hold a token or a value.
            name = type(error).__name__
    return dict.fromkeys(batch, Fault(Reach.HERE, f"reading it failed with {name}"))
