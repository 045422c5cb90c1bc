"""How the keys of a pool stand in its shared state; no drawing here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, NamedTuple

from ..config import Config
from ..core.model import Candidate, Limits
from ..core.windows import Quota
from ..drive.health import iso
from ..state.base import KeyHealth, State, Used

__all__ = ["Standing", "Window", "pool_of", "standings"]

_WHOLE = ("key", "project", "billing")
"""Scopes in which nothing of a key is left to serve."""


class Window(NamedTuple):
    """What is used of one limit; None where nobody knows the limit."""

    used: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """One key, as all processes of the pool see it."""

    key_id: str
    model: str | None
    project: str
    state: str
    """`idle`, `used` (today), `cooldown` or `disabled` (until somebody does something)."""
    used: dict[str, dict[str, Window]]
    """By model bucket: `rpm`, `tpm`, `rpd`."""
    cooldown_until: float | None
    """Epoch seconds; `inf`: until its value is replaced, or it is reset."""
    cooldown_reason: str | None
    cooldown_scope: str | None
    last_error: str | None
    last_used: float | None
    success_count: int
    error_count: int

    def plain(self) -> dict[str, Any]:
        """Give it as values of JSON; times are ISO 8601 in UTC."""
        values = asdict(self)
        del values["key_id"]
        values["used"] = {
            bucket: {name: window._asdict() for name, window in windows.items()}
            for bucket, windows in self.used.items()
        }
        return values | {
            "cooldown_until": iso(self.cooldown_until),
            "last_used": iso(self.last_used),
        }


def pool_of(config: Config) -> dict[str, Candidate]:
    """List the keys of the pool by id. Their values are not looked up: the state knows none."""
    return {key.key_id: key.candidate for key in config.keys}


def standings(state: State, keys: Iterable[Candidate], now: float) -> list[Standing]:
    """Ask *state* how *keys* stand as of *now*, epoch seconds.

    Raises:
        KeyrotError: The state cannot be read.
    """
    keys = list(keys)
    known = state.snapshot(keys)
    return [_standing(key, known[key.key_id], now) for key in keys]


def _standing(key: Candidate, health: KeyHealth, now: float) -> Standing:
    return Standing(
        key_id=key.key_id,
        model=key.model,
        project=key.project,
        state=_state(key, health, now),
        used={used.bucket: _windows(key, used) for used in health.used if _counts(used)},
        cooldown_until=health.cooldown_until,
        cooldown_reason=health.cooldown_reason,
        cooldown_scope=health.cooldown_scope,
        last_error=health.last_error,
        last_used=health.last_used,
        success_count=health.success_count,
        error_count=health.error_count,
    )


def _state(key: Candidate, health: KeyHealth, now: float) -> str:
    until = health.cooldown_until
    if not key.active:
        return "disabled"
    if until is not None and until > now:
        return "disabled" if not isfinite(until) and health.cooldown_scope in _WHOLE else "cooldown"
    return "used" if any(_counts(used) for used in health.used) else "idle"


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
