"""Facts about a pool: what is so for a while, kept as a list in its state, and who reports it.

One process reports each beginning and each end: who could take a *note*, a key of one request a
minute. The note of a beginning stays taken until the end; so no state has to know of notes.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import NamedTuple

from ..core.activity import ActivityRows
from ..core.model import CallInfo, Candidate, Lease, LeaseOutcome, Limits, Outcome, Scope, Verdict
from ..core.rows import NUMBER, read_row
from ..core.windows import DAY_S
from ..errors import EventName
from ..state.base import State
from .lists import rows_of

KEPT = 500
"""Beginnings and ends that a state keeps."""


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
    reported_at: float = 0.0
    successes: int = 0
    """Of a refusal that is kept: what its keys had had when it began."""

    @property
    def name(self) -> str:
        """Return the name of its note."""
        return f"{self.event} {self.what}"


_TEXT, _TIME = str | None, NUMBER | None
_KINDS = (str, str, str, _TEXT, _TEXT, _TIME, _TEXT, _TEXT, str, NUMBER, bool, NUMBER, int)
"""What the fields of a fact are."""


def read_facts(state: State) -> dict[str, Fact]:
    """Return the last step of each fact, by its name."""
    steps = rows_of(state, "facts", lambda text: Fact(*read_row(text, _KINDS)))
    return {step.name: step for step in reversed(steps)}


def keep_fact(state: State, fact: Fact) -> None:
    """Keep the beginning or the end of a fact."""
    state.add_activity(ActivityRows({}, {"facts": ([json.dumps(fact)], KEPT)}))


def may_report(state: State, name: str, now: float, ended: str = "") -> bool:
    """Return whether no other process reports it: take its note, and give back that of *ended*.

    While the shared state is down, each process reports it.
    """
    if state.degraded:
        return True
    lease = state.acquire(CallInfo("facts", "note"), ((0, _note(name)),), spread=False)
    if not isinstance(lease, Lease):
        return False
    taken = Verdict("reported", None, Scope.KEY, now + 30 * DAY_S, has_known_end=True)
    state.settle(lease, Outcome(LeaseOutcome.ABANDONED, None if ended else taken))
    if ended:
        state.reset(_note(ended))
    return True


def _note(name: str) -> Candidate:
    own = f"note:{blake2b(name.encode(), digest_size=12).hexdigest()}"
    return Candidate(own, own, own, Limits(rpm=1))
