"""`keyrot status`: how each key stands in the shared state, while services run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape

from ..errors import KeyrotError
from ..telemetry.wording import at_time
from .console import console, table
from .shared import NOT_SHARED, SharedPool, shared_pool
from .standing import Standing, Window, standings

__all__ = ["status"]

EVERY_S = 2.0
"""Between two looks of `--watch`."""

_STYLES = {"idle": "dim", "used": "green", "cooldown": "yellow", "disabled": "red"}


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
            show = _show_json if as_json else _show_table
            return show(pool, watch)
    except KeyrotError as error:
        _complain(str(error), as_json=as_json)
        return 1


def _complain(text: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": text}, indent=2))
    else:
        print(f"keyrot: {text}", file=sys.stderr)


def _show_json(pool: SharedPool, watch: bool) -> int:
    if not watch:
        print(json.dumps(_plain(pool), indent=2))
        return 0

    def look() -> None:
        print(json.dumps(_or_error(lambda: _plain(pool))), flush=True)

    return _again_and_again(look)


def _or_error(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return look()
    except KeyrotError as error:
        return {"error": str(error)}


def _plain(pool: SharedPool) -> dict[str, Any]:
    found = standings(pool.state, pool.keys.values(), time.time())
    return {
        "shared": True,
        "pool": pool.name,
        "state": pool.place,
        "keys": {one.key_id: one.plain() for one in found},
    }


def _show_table(pool: SharedPool, watch: bool) -> int:
    out = console()
    if not watch:
        out.print(_drawn(pool))
        return 0
    if not out.is_terminal:
        return _again_and_again(lambda: out.print(_drawn_or_error(pool)))
    with Live(console=out, auto_refresh=False) as live:
        return _again_and_again(lambda: live.update(_drawn_or_error(pool), refresh=True))


def _again_and_again(look: Callable[[], None]) -> int:
    try:
        while True:
            look()
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return 0


def _drawn_or_error(pool: SharedPool) -> RenderableType:
    try:
        return _drawn(pool)
    except KeyrotError as error:
        return f"[red]{escape(str(error))}[/]"


def _drawn(pool: SharedPool) -> RenderableType:
    now = time.time()
    found = standings(pool.state, pool.keys.values(), now)
    columns = ("key", "state", "used of limit", "rests until", "last error")
    drawn = table(f"Pool {pool.name} in {escape(pool.place)}", *columns)
    for one in found:
        drawn.add_row(
            escape(one.key_id),
            f"[{_STYLES[one.state]}]{one.state}[/]",
            "\n".join(map(_used, one.used.items())) or f"[dim]{escape(one.model or '-')}[/]",
            _rests(one),
            escape(one.last_error or "-"),
        )
    serving = sum(one.state in ("idle", "used") for one in found)
    at = datetime.fromtimestamp(now, UTC)
    return Group(drawn, "", f"{serving} of {len(found)} keys can serve, {at:%H:%M:%S} UTC")


def _used(of_model: tuple[str, dict[str, Window]]) -> str:
    bucket, windows = of_model
    return f"[dim]{escape(bucket)}[/]\n" + ", ".join(
        f"{window.used:,}{f'/{window.limit:,}' if window.limit is not None else ''} {name}"
        for name, window in windows.items()
    )


def _rests(one: Standing) -> str:
    if one.state == "disabled" and one.cooldown_until is None:
        return "active=false"
    if one.cooldown_until is None:
        return "-"
    until = at_time(one.cooldown_until) if isfinite(one.cooldown_until) else "replaced or reset"
    return escape(f"{until}\n{one.cooldown_reason} ({one.cooldown_scope})")
