"""`keyrot status`: how each key stands in the shared state, while services run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live

from ..core.availability import Availability, KeyState
from ..errors import KeyrotError
from ..telemetry.wording import at_time
from .console import console, escape, table
from .shared import NOT_SHARED, SharedPool, shared_pool
from .standing import Standing, standings, unresolved_of

__all__ = ["status"]

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

    def standings(self) -> list[Standing]:
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


def _used(one: Standing) -> str:
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
    return f"{here.reason} until {at_time(here.at)}" if here.at is not None else str(here.reason)


def _available_at(overall: Availability) -> str:
    if overall.state == "available":
        return "now"
    at = at_time(overall.at) if overall.at is not None else "-"
    return escape(f"{at}\n{overall.reason}")


def _summary(pool: SharedPool, found: list[Standing]) -> Iterator[str]:
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


def _count(found: list[Standing], model: str | None = None) -> str:
    """Count the available ones; for *model* those that are for it."""
    states = [one.models[model].state if model else one.overall.state for one in found]
    return f"{states.count('available')} of {len(found)}"
