"""Facts about a pool: what is so for a while, kept as a list in its state, and who tells it.

One process tells each beginning and each end: who could take a *note*, a key of one request a
minute. The note of a beginning stays taken until the end; so no state has to know of notes.
"""

from __future__ import annotations

import json
import logging
from hashlib import blake2b
from typing import NamedTuple

from ..core.activity import ENDS_KEPT, ActivityRows, CallRecord
from ..core.failures import SERVICE_FAILURES
from ..core.model import CallInfo, Candidate, Lease, LeaseOutcome, Limits, Outcome, Scope, Verdict
from ..core.windows import DAY_S
from ..errors import EventName
from ..state.base import State

_log = logging.getLogger("keyrot_middleware")

KEPT = 500
"""Beginnings and ends that a state keeps."""
_MODELS = 1_000


class Fact(NamedTuple):
    """What is so for a while."""

    event: EventName
    """That of its beginning."""
    what: str
    """About what, for people; with the event its name."""
    text: str = ""
    """A sentence without its end."""
    key_id: str | None = None
    reason: str | None = None
    until: float | None = None
    """When a key is expected back, epoch seconds."""
    model: str | None = None
    workload: str | None = None
    command: str = ""
    """What to type."""
    since: float = 0.0
    """Of one that is kept: when it began, epoch seconds."""
    is_on: bool = True
    told_at: float = 0.0

    @property
    def name(self) -> str:
        """Return the name of its note."""
        return f"{self.event} {self.what}"


def read_facts(state: State) -> dict[str, Fact]:
    """Return the last step of each fact, by its name."""
    steps = [Fact(*json.loads(text)) for text in reversed(state.activity_log("facts"))]
    return {step.name: step for step in steps}


def keep_fact(state: State, fact: Fact) -> None:
    """Keep the beginning or the end of a fact."""
    state.add_activity(ActivityRows({}, {"facts": ([json.dumps(fact)], KEPT)}))


def may_tell(state: State, name: str, now: float, ended: str = "") -> bool:
    """Return whether no other process tells it: take its note, and give back that of *ended*.

    While the shared state is down, each process tells it.
    """
    if state.degraded:
        return True
    lease = state.acquire(CallInfo("facts", "note"), ((0, _note(name)),), spread=False)
    if not isinstance(lease, Lease):
        return False
    taken = Verdict("told", None, Scope.KEY, now + 30 * DAY_S, has_known_end=True)
    state.settle(lease, Outcome(LeaseOutcome.ABANDONED, None if ended else taken))
    if ended:
        state.reset(_note(ended))
    return True


def _note(name: str) -> Candidate:
    own = f"note:{blake2b(name.encode(), digest_size=12).hexdigest()}"
    return Candidate(own, own, own, Limits(rpm=1))


class FailingModels:
    """Logs a model whose calls fail in this process, whatever the key, and its first success."""

    def __init__(self, pool: str) -> None:
        """Know none yet; *pool* is the name in the lines."""
        self._pool = pool
        self._failed: dict[tuple[str, str], int] = {}
        """Calls in a row."""

    def add(self, record: CallRecord) -> None:
        """Count a call that ended."""
        name, attempts = (record.platform, record.model), record.attempts
        if record.outcome == "ok":
            if self._failed.pop(name, 0) >= ENDS_KEPT:
                _log.warning("pool %s, %s: calls succeed again", self._pool, record.model)
        elif record.outcome == "failed" and attempts and attempts[-1].failure in SERVICE_FAILURES:
            self._failed[name] = count = self._failed.get(name, 0) + 1
            if count == ENDS_KEPT and len(self._failed) < _MODELS:
                why = attempts[-1].code or attempts[-1].failure
                text = "pool %s, %s: the last %d calls failed (%s), whatever the key"
                _log.warning(text, self._pool, record.model or "calls", count, why)
