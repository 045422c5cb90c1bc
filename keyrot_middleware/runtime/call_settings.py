"""With what the calls of a pool are made, as each of its processes says of itself.

What workloads may use, the tiers, the chain and the longest wait are known to the processes that
serve calls. Each writes them into the state once a minute, so that others judge as it does, and
what it is called and a digest of its keys, so that others see where processes differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..core.json_rows import NUMBER, known_fields, read_row
from ..core.model import Budget, CallInfo, RetryPolicy, Terms
from ..providers import replaced_by
from ..state.base import State
from .state_lists import rows_of

VERB = "generateContent"
"""The method of the call that "a call sent now" stands for."""
KEPT = 300
"""Settings that the state keeps: one of each process and minute."""
SEEN_S = 180.0
"""A process that has said nothing for so long is gone."""


@dataclass(frozen=True, slots=True)
class CallSettings:
    """With what the calls of a pool are made."""

    terms: Mapping[str | None, Terms] = field(default_factory=dict)
    """What each workload may use; None: all others."""
    tiers: frozenset[str] | None = None
    """The tiers of the keys that may serve them; None: all."""
    next_models: Mapping[str, str] = field(default_factory=dict)
    """The model that a request goes on to when no key can serve its own."""
    wait_s: float = RetryPolicy().max_wait_s
    """How long a call may wait for a key."""

    def info(self, model: str, workload: str | None, platform: str) -> CallInfo:
        """Return the smallest call of a model and a workload."""
        terms = self.terms.get(workload, self.terms.get(None))
        info = CallInfo(model, VERB, tokens=1, workload=workload, platform=platform)
        by = replaced_by(platform, model)
        return info._replace(tiers=self.tiers, terms=terms, replaced_by=by)

    def texts(
        self, now: float, process: str = "", keys: str = "", problem: str = ""
    ) -> dict[str, tuple[list[str], int]]:
        """Return what a process writes into the state; see `ActivityRows` and `Said`."""
        terms = [[name, *one] for name, one in self.terms.items()]
        tiers = None if self.tiers is None else sorted(self.tiers)
        row = now, terms, tiers, dict(self.next_models), self.wait_s, process, keys, problem
        return {"settings": ([json.dumps(row)], KEPT)}


class Said(NamedTuple):
    """What a process has said of itself."""

    at: float
    """When, epoch seconds."""
    settings: CallSettings
    process: str = ""
    """Its name, `host:pid`, and which pool of it; "" for that of an older version."""
    keys: str = ""
    """A digest of its keys; see runtime/processes.py."""
    problem: str = ""
    """Why it does not read its keys.json."""


def read_said(state: State) -> list[Said]:
    """Return what the processes of a pool have lately said of themselves, the latest first."""
    return rows_of(state, "settings", _read_said)


def read_settings(said: Sequence[Said], now: float, own: CallSettings) -> CallSettings:
    """Return what the processes of a pool have *said*; *own* if none runs.

    Of several that differ, all that any of them may use.
    """
    running = [one.settings for one in reversed(said) if one.at > now - SEEN_S]
    if not running:
        return own
    terms = {name: of for one in running for name, of in one.terms.items()}
    tiers = frozenset[str]().union(*(one.tiers for one in running if one.tiers is not None))
    any_tier = any(one.tiers is None for one in running)
    models = {model: to for one in running for model, to in one.next_models.items()}
    return CallSettings(
        terms, None if any_tier else tiers, models, max(one.wait_s for one in running)
    )


_ROW = (NUMBER, list, list | None, dict, NUMBER, str, str, str)
_TERMS = (str | None, str, bool, NUMBER, list, str)
_BUDGET = (NUMBER | None,) * len(Budget._fields)
"""What the fields are, of a row and of the rows in it."""


def _read_said(text: str) -> Said:
    """Read what a process has written, and when; see `CallSettings.texts`."""
    at, rows, tiers, models, wait_s, *who = read_row(text, _ROW)
    terms: dict[str | None, Terms] = {}
    for row in rows:
        name, workload, first, share, usd, behind = known_fields(row, _TERMS)
        terms[name] = Terms(workload, first, share, Budget(*known_fields(usd, _BUDGET)), behind)
    if tiers is not None:
        tiers = frozenset(known_fields(tiers, [str] * len(tiers)))
    known_fields([*models.values()], [str] * len(models))
    return Said(at, CallSettings(terms, tiers, models, wait_s), *who)
