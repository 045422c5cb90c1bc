"""Facts about a pool: what is so for a while, kept as a list in its state for all processes."""

from __future__ import annotations

import json
from typing import NamedTuple

from ..core.activity import ActivityRows
from ..core.json_rows import NUMBER, read_row
from ..errors import EventName
from ..runtime.state_lists import rows_of
from ..state.base import State

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
