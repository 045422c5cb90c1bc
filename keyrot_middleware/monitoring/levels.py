"""What the gauges of one pool report at each collection of metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..core.judgement import KEY_STATES
from ..core.windows import DAY_S
from ..runtime.pool import Pool
from ..telemetry.semconv import GEN_AI_REQUEST_MODEL, KEY_ID
from . import view
from .alerts import find_facts
from .facts import Fact, read_facts
from .report import source_of

Level = tuple[float, dict[str, str]]
"""A value and its attributes."""


class Levels:
    """The values of the gauges of one pool; with a shared state each collection does I/O."""

    def __init__(self, pool: Pool) -> None:
        """Report this process's *pool*."""
        self._pool, self._report = pool, source_of(pool)
        self._problems: dict[str, Fact] = {}
        """What was the matter at the last collection."""

    def read(self, metric: str) -> Iterator[Level]:
        """Yield the values of a metric and their attributes."""
        pool = self._pool
        if metric == "keyrot.key.pending_requests":
            yield len(pool.waiting_lines.tickets), {}
        elif metric == "keyrot.state.degraded":
            yield int(pool.state.degraded), {}
        elif metric == "keyrot.pool.problems":
            yield from self._read_problems()
        else:
            yield from self._read_look(metric)

    def _read_look(self, metric: str) -> Iterator[Level]:
        seen = self._report.look()
        if metric == "keyrot.call.answers":
            for one in seen.calls:
                labels = {GEN_AI_REQUEST_MODEL: one.model, "keyrot.call.answer": one.answer}
                yield 1, labels | ({"keyrot.workload": one.workload} if one.workload else {})
        elif metric == "keyrot.key.count":
            counts = Counter(row.overall.state for row in seen.rows)
            for state in KEY_STATES:
                yield counts[state], {"keyrot.key.state": state}
        else:
            for row in seen.rows:
                yield from _OF_KEYS[metric](row, seen.at)

    def _read_problems(self) -> Iterator[Level]:
        """Yield what alerts report, if there are any or not: what has begun and has not ended."""
        kept = self._problems
        if not self._pool.state.degraded:  # what another process has found before this one ran
            kept = {name: one for name, one in read_facts(self._pool.state).items() if one.is_on}
            kept |= self._problems
        found = find_facts(self._pool, self._report, kept)
        self._problems = {n: one for n, one in found.items() if one.text or n in kept}
        yield from ((1, dict(labels)) for labels in {*map(_labels, self._problems.values())})


def _used_ratio(row: view.Row, _now: float) -> Iterator[Level]:
    for model, quota, ratio in view.utilization(row):
        yield ratio, _of_quota(row, model, quota)


def _peak_ratio(row: view.Row, _now: float) -> Iterator[Level]:
    """Yield the used share of a limit in the fullest minute of today, by model."""
    for model in (used.bucket for used in row.known.used):
        fullest = view.fullest_minute(row.key, view.used_of(row.key, row.known, model))
        if fullest and fullest["of"]:
            labels = _of_quota(row, model, fullest["limit"])
            yield fullest["used"] / fullest["of"], labels


def _expires_in(row: view.Row, now: float) -> Iterator[Level]:
    if row.key.expires is not None:
        yield (row.key.expires - now) / DAY_S, {KEY_ID: row.key.key_id}


def _of_quota(row: view.Row, model: str, quota: str) -> dict[str, str]:
    labels = {KEY_ID: row.key.key_id, "keyrot.quota": quota}
    return labels | ({GEN_AI_REQUEST_MODEL: model} if model else {})


_OF_KEYS = {
    "keyrot.key.quota.used_ratio": _used_ratio,
    "keyrot.key.quota.peak_ratio": _peak_ratio,
    "keyrot.key.expires_in": _expires_in,
}
"""What is read of each key."""


def _labels(fact: Fact) -> tuple[tuple[str, str], ...]:
    """Return the attributes of what is the matter; those that it does not have are left out."""
    labels = {
        "keyrot.event": fact.event,
        KEY_ID: fact.key_id,
        GEN_AI_REQUEST_MODEL: fact.model,
        "keyrot.workload": fact.workload,
    }
    return tuple((name, value) for name, value in labels.items() if value)
