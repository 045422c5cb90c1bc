"""`keyrot status`: how each key stands in the shared state, while services run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live

from ..config import Config, load
from ..core.availability import Availability, KeyState
from ..core.model import Candidate, Limits, project_label
from ..core.text import mask_url
from ..core.windows import QuotaWindows
from ..errors import KeyrotError
from ..runtime.health import KeyView, iso, views, without_value
from ..secrets import open_secret_cache
from ..state import open_shared
from ..state.base import KeyHealth, State, Used
from ..telemetry.log_text import format_time
from .console import console, escape, table

__all__ = [
    "NOT_SHARED",
    "KeyStatus",
    "SharedPool",
    "Window",
    "open_configured",
    "pool_of",
    "shared_pool",
    "standings",
    "status",
    "unresolved_of",
]

# The shared state of a pool from outside: with the settings of its services, without install() ---


NOT_SHARED = """\
With KEYROT_STATE_URL=memory:// the state of a pool lives inside each process that uses it, so there
is nothing to be seen or changed from outside. In the program itself:

    keyrot_middleware.status()                                 all of it, as a dict
    keyrot_middleware.get_key_manager().get_health_status()    how each key is
    keyrot_middleware.reset("key_1")                           make a key available again

`keyrot run -v` says on stderr when a key is cooling down or rejected; a restart forgets it. With a
Redis or Valkey in KEYROT_STATE_URL all processes share one state, to be seen."""


@dataclass(frozen=True, slots=True)
class SharedPool:
    """A pool and where it is shared."""

    name: str
    keys: dict[str, Candidate]
    state: State
    place: str
    """The URL, without user and password."""
    config: Config = field(repr=False)


@contextmanager
def shared_pool() -> Iterator[SharedPool | None]:
    """Open the state that the settings name; None where it is not shared.

    Raises:
        ConfigError: A setting or keys.json is wrong, or rotation is switched off, or has no key.
        MissingExtraError: The library of the state is not installed.
    """
    config = load()
    problem = _nothing_to_show(config)
    if problem:
        raise KeyrotError(problem)
    name, state = config.settings.pool, open_configured(config)
    if state is None:
        yield None
        return
    try:
        keys = {key.key_id: key for key in state.with_values(pool_of(config).values())}
        yield SharedPool(name, keys, state, mask_url(config.state_url), config)
    finally:
        state.close()


def open_configured(config: Config) -> State | None:
    """Open the shared state that the settings name; None where it is not shared.

    Raises:
        ConfigError: It cannot be opened.
        MissingExtraError: Its library is not installed.
    """
    name, variable = config.settings.pool, config.state_variable
    return open_shared(config.state_url, config.policy, time.time, pool=name, variable=variable)


def _nothing_to_show(config: Config) -> str | None:
    if not config.settings.enabled:
        return "rotation is switched off by ENABLE_KEY_ROTATION: there is no pool"
    if not config.keys:
        return "no key: set GEMINI_API_KEYS, or GEMINI_API_KEY, or write keys.json"
    return None


# How the keys of a pool stand in its shared state; no drawing here -----------------------------


class Window(NamedTuple):
    """What is used of one limit; None where nobody knows the limit."""

    used: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class KeyStatus:
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
    ring = open_secret_cache(replace(config, keys=tuple(fresh)))
    try:
        return frozenset(ring.unresolved)
    finally:
        ring.close()


def standings(
    state: State, keys: Iterable[Candidate], unresolved: frozenset[str]
) -> list[KeyStatus]:
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


def _standing(key: Candidate, seen: KeyView) -> KeyStatus:
    used = {used.bucket: _windows(key, used) for used in seen.known.used if _counts(used)}
    blocked = {model: _NOTHING for model, here in seen.models.items() if here.state != "available"}
    return KeyStatus(key, seen.known, seen.overall, seen.models, blocked | used)


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
    quota = QuotaWindows()
    quota.learned = learned
    return quota.limits(configured)


EVERY_S = 2.0
"""Between two looks of `--watch`."""

_STYLES: dict[KeyState, str] = {
    "available": "green",
    "limited": "yellow",
    "cooling_down": "yellow",
    "rejected": "red",
    "unresolved": "red",
    "disabled": "dim",
}


def status(*, as_json: bool, watch: bool) -> int:
    """Print how the keys stand; 0, or 1 where that cannot be found out.

    Args:
        as_json: Print JSON; with *watch* a line for each look.
        watch: Look again every two seconds, until Ctrl-C.
    """
    try:
        with shared_pool() as pool:
            if pool is None:
                print(json.dumps({"shared": False}, indent=2) if as_json else NOT_SHARED)
                return 0
            look = _Look(pool, unresolved_of(pool.config, pool.state, pool.keys.values()))
            show = _show_json if as_json else _show_table
            return show(look, watch)
    except KeyrotError as error:
        _complain(str(error), as_json=as_json)
        return 1


def _complain(text: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": text}, indent=2))
    else:
        print(f"keyrot: {text}", file=sys.stderr)


class _Look(NamedTuple):
    """What to look at, again and again."""

    pool: SharedPool
    unresolved: frozenset[str]
    """Keys that nobody had used when the command began, and that have no value here."""

    def standings(self) -> list[KeyStatus]:
        """Find out how the keys stand now."""
        return standings(self.pool.state, self.pool.keys.values(), self.unresolved)


def _show_json(look: _Look, watch: bool) -> int:
    if not watch:
        print(json.dumps(_plain(look), indent=2))
        return 0

    def show() -> None:
        print(json.dumps(_or_error(lambda: _plain(look))), flush=True)

    return _again_and_again(show)


def _or_error(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return look()
    except KeyrotError as error:
        return {"error": str(error)}


def _plain(look: _Look) -> dict[str, Any]:
    pool, found = look.pool, look.standings()
    return {
        "shared": True,
        "pool": pool.name,
        "state": pool.place,
        "has_records": any(one.recorded for one in found),
        "keys": {one.key.key_id: one.plain() for one in found},
    }


def _show_table(look: _Look, watch: bool) -> int:
    out = console()
    if not watch:
        out.print(_drawn(look))
        return 0
    if not out.is_terminal:
        return _again_and_again(lambda: out.print(_drawn_or_error(look)))
    with Live(console=out, auto_refresh=False) as live:
        return _again_and_again(lambda: live.update(_drawn_or_error(look), refresh=True))


def _again_and_again(look: Callable[[], None]) -> int:
    try:
        while True:
            look()
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return 0


def _drawn_or_error(look: _Look) -> RenderableType:
    try:
        return _drawn(look)
    except KeyrotError as error:
        return f"[red]{escape(str(error))}[/]"


def _drawn(look: _Look) -> RenderableType:
    pool, found = look.pool, look.standings()
    columns = ("key", "state", "used of limit", "available at", "last error")
    drawn = table(f"Pool {pool.name} in {escape(pool.place)}", *columns)
    for one in found:
        drawn.add_row(
            escape(one.key.key_id),
            f"[{_STYLES[one.overall.state]}]{one.overall.state}[/]",
            _used(one) or f"[dim]{escape(one.key.model or '-')}[/]",
            _available_at(one.overall),
            escape(one.known.last_error or "-"),
        )
    return Group(drawn, "", *_summary(pool, found))


def _used(one: KeyStatus) -> str:
    lines = []
    for model, windows in one.used.items():
        here = one.models.get(model, one.overall)
        blocked = "" if here == one.overall else f", [yellow]{_blocked(here)}[/]"
        lines.append(f"[dim]{escape(model)}[/]{blocked}")
        if windows:
            counts = (
                f"{window.used:,}{f'/{window.limit:,}' if window.limit is not None else ''} {name}"
                for name, window in windows.items()
            )
            lines.append(", ".join(counts))
    return "\n".join(lines)


def _blocked(here: Availability) -> str:
    if here.state == "available":
        return here.state
    return (
        f"{here.reason} until {format_time(here.at)}" if here.at is not None else str(here.reason)
    )


def _available_at(overall: Availability) -> str:
    if overall.state == "available":
        return "now"
    at = format_time(overall.at) if overall.at is not None else "-"
    return escape(f"{at}\n{overall.reason}")


def _summary(pool: SharedPool, found: list[KeyStatus]) -> Iterator[str]:
    """Say how many keys a call sent now could get; by model too, where they differ."""
    now = datetime.now(UTC)
    yield f"{_count(found)} keys are available, {now:%H:%M:%S} UTC"
    models = dict.fromkeys(model for one in found for model in one.models)
    counts = {
        model: _count([one for one in found if model in one.models], model) for model in models
    }
    if len(set(counts.values())) > 1:
        yield from (f"  {escape(model)}: {count}" for model, count in counts.items())
    if not any(one.recorded for one in found):
        yield (
            f"There are no records of a pool {pool.name!r} in this state: no call has been made "
            "through it yet, or KEYROT_POOL names another pool than that of your services."
        )


def _count(found: list[KeyStatus], model: str | None = None) -> str:
    """Count the available ones; for *model* those that are for it."""
    states = [one.models[model].state if model else one.overall.state for one in found]
    return f"{states.count('available')} of {len(found)}"
