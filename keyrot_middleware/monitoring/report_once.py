"""Which process reports something of a pool: one reports each beginning and each end.

It is the one that could take a *note*, a key of one request a minute. The note of a beginning stays
taken until the end; so no state has to know of notes.
"""

from __future__ import annotations

from hashlib import blake2b

from ..core.model import CallInfo, Candidate, Lease, LeaseOutcome, Limits, Outcome, Scope, Verdict
from ..core.windows import DAY_S
from ..state.base import State


def may_report(state: State, name: str, now: float, ended: str = "") -> bool:
    """Return whether no other process reports it: take its note, and give back that of *ended*.

    While the shared state is down, each process reports it.
    """
    if state.degraded:
        return True
    lease = state.acquire(CallInfo("facts", "note"), ((0, _note(name)),), strategy="fill")
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
