"""New values on their way into the processes of a pool: which of them sends with which value.

`keyrot rotate` writes into a list of the shared state what it does. While it waits, each process
looks the value up, and says which one it sends with: by fingerprints.
"""

from __future__ import annotations

import json
import logging
from math import inf
from typing import TYPE_CHECKING, Literal, NamedTuple

from .._version import __version__
from ..core.activity import ActivityRows, versions_name
from ..core.json_rows import NUMBER, read_row
from ..core.windows import HOUR_S
from ..state.base import State
from .processes import own_name, texts_of_keys
from .state_lists import rows_of

if TYPE_CHECKING:
    from .pool import Pool

_log = logging.getLogger("keyrot_middleware")

KEPT = 500
BEGUN_S = 900.0
"""How long a rotation may be under way that nobody has ended: it waits for less."""
SEEN_MINUTES = 3
"""A process that has said nothing for so long is gone."""


class Rotation(NamedTuple):
    """One new value of a key."""

    name: str
    key_id: str
    old: str
    """The fingerprint of the value before."""
    new: str
    at: float
    """When it began or went on, epoch seconds."""
    step: Literal["begun", "cut off", "done"]

    def is_under_way(self, now: float) -> bool:
        """Return whether somebody waits for it."""
        return self.step == "begun" and now - self.at < BEGUN_S


def add_rotation(state: State, rotation: Rotation) -> None:
    """Keep a rotation, or its next step."""
    state.add_activity(ActivityRows({}, {"rotations": ([json.dumps(rotation)], KEPT)}))


def rotations(state: State) -> list[Rotation]:
    """Return the last step of each rotation, the latest first."""
    latest: dict[str, Rotation] = {}
    for rotation in rows_of(state, "rotations", _read):
        latest.setdefault(rotation.name, rotation)
    return list(latest.values())


def _read(text: str) -> Rotation:
    return Rotation(*read_row(text, (str, str, str, str, NUMBER, str)))


def report_values(pool: Pool, *, is_new_minute: bool) -> None:
    """Say once a minute that this process runs, and how, and which values its keys have.

    A state that was emptied gets all of it at once. The values of keys that are rotated are
    looked up now.
    """
    now, counts, process = pool.clock.time(), dict[str, dict[str, int]](), own_name(pool)
    texts, is_empty = _find_loss(pool, f"{process} {now}")
    if is_new_minute or is_empty:
        pool.state.record_values(pool.selector.keys.values())
        counts[f"processes:{int(now // 60)}"] = {process: 1}
        counts[versions_name(now)] = {__version__: 1}
        of_keys, digest = texts_of_keys(pool.configured)
        texts |= pool.call_settings.texts(now, process, digest, pool.keys_problem) | of_keys
    for rotation in rotations(pool.state):
        if not rotation.is_under_way(now):
            continue
        key = pool.selector.keys.get(rotation.key_id)
        if key is not None and key.fingerprint != rotation.new:
            pool.secrets.refresh(rotation.key_id, 0.0)
            key = pool.selector.keys.get(rotation.key_id)
        value = rotation.new if key is None else key.fingerprint  # None: nothing is sent with it
        counts[f"values:{rotation.name}"] = {f"{process}\n{value}": 1}
    if counts or texts:
        pool.state.add_activity(ActivityRows(counts, texts))


def _find_loss(pool: Pool, name: str) -> tuple[dict[str, tuple[list[str], int]], bool]:
    """Return what to write into a state that has lost all it had, and whether it is empty."""
    known = pool.state.activity_log("epochs")
    if pool.state.degraded:
        return {}, False
    texts = {} if known else {"epochs": ([name], KEPT)}
    if is_lost := pool.epoch is not None and pool.epoch not in known:
        texts["emptied"] = [name.rpartition(" ")[2]], 1
        if emptied_at(pool.state, pool.clock.time()) is None:
            text = "pool %s: the shared state was emptied: disabled keys serve, budgets begin at 0"
            _log.warning(text, pool.name)
    pool.epoch = known[0] if known else None
    return texts, is_lost or not known


def emptied_at(state: State, now: float) -> float | None:
    """Return when it was found in the last hour that the state had lost all it had; else None."""
    times = rows_of(state, "emptied", float)
    return times[0] if times and now - HOUR_S < times[0] < inf else None


def read_processes(state: State, rotation: Rotation, now: float) -> tuple[set[str], set[str]]:
    """Return the processes of the pool, and those that send with the old value or say nothing."""
    minutes = [f"processes:{int(now // 60) - back}" for back in range(SEEN_MINUTES)]
    *seen, values = state.activity([*minutes, f"values:{rotation.name}"], None)
    processes = set[str]().union(*seen)
    return processes, {one for one in processes if f"{one}\n{rotation.new}" not in values}
