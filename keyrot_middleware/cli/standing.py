"""How the keys of a pool stand in its shared state; no drawing here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..config import Config
from ..core.availability import Availability
from ..core.model import Candidate, Limits, project_label
from ..core.windows import Quota
from ..drive.health import KeyView, iso, views, without_value
from ..secrets import open_ring
from ..state.base import KeyHealth, State, Used

__all__ = ["Standing", "Window", "pool_of", "standings", "unresolved_of"]


class Window(NamedTuple):
    """What is used of one limit; None where nobody knows the limit."""

    used: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """One key, as all processes of the pool see it."""

    key: Candidate
    known: KeyHealth
    overall: Availability
    models: Mapping[str, Availability]
    """Whether it is available, by model."""
    used: Mapping[str, dict[str, Window]]
    """By model: `rpm`, `tpm`, `rpd`."""

    @property
    def recorded(self) -> bool:
        """Whether the state holds any record of it."""
        known = self.known
        return any((known.last_used, known.error_count, known.cooldown_until, known.used))

    def plain(self) -> dict[str, Any]:
        """Give it as values of JSON; times are ISO 8601 in UTC."""
        known, overall = self.known, self.overall
        return {
            "model": self.key.model,
            "project": project_label(self.key.project),
            "state": overall.state,
            "available": overall.state == "available",
            "available_at": iso(overall.at),
            "used": {
                model: {name: window._asdict() for name, window in windows.items()}
                | self._plain_availability(model)
                for model, windows in self.used.items()
            },
            "cooldown_until": iso(known.cooldown_until),
            "cooldown_reason": known.cooldown_reason,
            "cooldown_scope": known.cooldown_scope,
            "last_error": known.last_error,
            "last_used": iso(known.last_used),
            "success_count": known.success_count,
            "error_count": known.error_count,
        }

    def _plain_availability(self, model: str) -> dict[str, Any]:
        here = self.models.get(model, self.overall)
        return {"available": here.state == "available", "available_at": iso(here.at)}


def pool_of(config: Config) -> dict[str, Candidate]:
    """List the keys of the pool by id."""
    return {key.key_id: key.candidate for key in config.keys}


def unresolved_of(config: Config, state: State, keys: Iterable[Candidate]) -> frozenset[str]:
    """Look up the values of the keys that no process has used yet, and list those without one.

    What was used has a value somewhere, even if the store is not open to whoever asks here.

    Raises:
        KeyrotError: The state cannot be read.
    """
    known = state.snapshot(keys)
    fresh = [key for key in config.keys if key.active and known[key.key_id].last_used is None]
    if not fresh:
        return frozenset()
    ring = open_ring(replace(config, keys=tuple(fresh)))
    try:
        return frozenset(ring.unresolved)
    finally:
        ring.close()


def standings(
    state: State, keys: Iterable[Candidate], unresolved: frozenset[str]
) -> list[Standing]:
    """Find out how *keys* stand in *state*.

    Raises:
        KeyrotError: The state cannot be read.
    """
    keys = list(keys)
    found = views(state, keys)
    for key_id in unresolved & found.keys():
        if found[key_id].known.last_used is None:
            found[key_id] = without_value(found[key_id])
    return [_standing(key, found[key.key_id]) for key in keys]


def _standing(key: Candidate, seen: KeyView) -> Standing:
    used = {used.bucket: _windows(key, used) for used in seen.known.used if _counts(used)}
    blocked = {model: _NOTHING for model, here in seen.models.items() if here.state != "available"}
    return Standing(key, seen.known, seen.overall, seen.models, blocked | used)


_NOTHING: dict[str, Window] = {}


def _counts(used: Used) -> bool:
    return bool(used.requests_minute or used.tokens_minute or used.requests_day)


def _windows(key: Candidate, used: Used) -> dict[str, Window]:
    limits = _in_force(key.limits, used.limits)
    return {
        "rpm": Window(used.requests_minute, limits.rpm),
        "tpm": Window(used.tokens_minute, limits.tpm),
        "rpd": Window(used.requests_day, limits.rpd),
    }


def _in_force(configured: Limits, learned: Limits) -> Limits:
    quota = Quota()
    quota.learned = learned
    return quota.limits(configured)
