"""`keyrot status`: how each key is."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..core.model import GEMINI_API
from ..core.text import remaining, short_time
from ..errors import KeyrotError
from ..monitoring.headline import lines_of
from .console import STATE_STYLES, available_at, console, escape, table
from .shared_pool import NOT_SHARED, open_source

__all__ = ["status"]

EVERY_S = 2.0
"""Between two looks of `--watch`."""
PAGE = 500
"""Keys in one answer of a source."""
PIPE_WIDTH = 400
"""Columns without a terminal."""
MAX_WIDTH = 30
"""Columns of a cell that are kept on a narrow terminal."""
LOOK_MAX_S = 60.0
"""How long all answers may take together."""

Look = Callable[[], dict[str, Any]]


def status(*, as_json: bool, watch: bool) -> int:
    """Print how the keys are; return 0, or 1 where there is nothing to read.

    Args:
        as_json: Print JSON; with *watch* a line for each look.
        watch: Look again every two seconds, until Ctrl-C.
    """
    try:
        with _open_look() as look:
            if look is None:
                print(json.dumps({"shared": False}, indent=2) if as_json else NOT_SHARED)
                return 1
            show = _show_json if as_json else _show_table
            return show(look, watch)
    except KeyrotError as error:
        if as_json:
            print(json.dumps({"error": str(error)}, indent=2))
        else:
            print(f"keyrot: {error}", file=sys.stderr)
        return 1


@contextmanager
def _open_look() -> Iterator[Look | None]:
    with open_source() as source:
        if source is None:
            yield None
            return

        def look() -> dict[str, Any]:
            until, found = time.monotonic() + LOOK_MAX_S, source.status(limit=PAGE)
            while len(found["keys"]) < found["total"]:
                more = source.status(offset=len(found["keys"]), limit=PAGE)
                if not more["keys"]:
                    break
                if time.monotonic() > until:
                    raise KeyrotError(f"the keys could not be read within {LOOK_MAX_S:g} s")
                found["keys"] += more["keys"]
                found["summary"]["projects"] |= more["summary"]["projects"]
            return found | {"limit": len(found["keys"])}

        yield look


def _show_json(look: Look, watch: bool) -> int:
    if not watch:
        print(json.dumps(look(), indent=2))
        return 0

    def show() -> None:
        try:
            found = look()
        except KeyrotError as error:
            found = {"error": str(error)}
        print(json.dumps(found), flush=True)

    return _repeat(show)


def _show_table(look: Look, watch: bool) -> int:
    out = console()
    if not out.is_terminal:
        out.width = PIPE_WIDTH  # each key is one line
    if not watch:
        out.print(_draw(look()))
        return 0

    def draw() -> RenderableType:
        try:
            return _draw(look(), out.height if out.is_terminal else None)
        except KeyrotError as error:
            return f"[red]{escape(str(error))}[/]"

    if not out.is_terminal:
        return _repeat(lambda: out.print(draw()))
    with Live(console=out, auto_refresh=False) as live:
        return _repeat(lambda: live.update(draw(), refresh=True))


def _repeat(look: Callable[[], None]) -> int:
    try:
        while True:
            look()
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return 0


def _draw(found: dict[str, Any], height: int | None = None) -> RenderableType:
    """Draw a line for each key, problems first; in *height* lines, keys that serve too."""
    head = list(_verdict(found))
    keys = sorted(found["keys"], key=lambda key: _URGENCY[key["state"]])
    left: list[dict[str, Any]] = []
    if height is not None:
        keys, left = _fit(keys, max(height - len(head) - _FRAME, 2))
    columns = ("key", "state", "reason", "available at", "used of limit")
    now = datetime.fromisoformat(found["at"])
    where = f"Pool {escape(found['pool'])} in {escape(found['state_url'])}"
    drawn = table(f"{where}, {now:%H:%M:%S} UTC", *columns)
    for column in drawn.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    for key in keys:
        drawn.add_row(
            escape(key["key_id"]),
            f"[{STATE_STYLES[key['state']]}]{key['state']}[/]",
            escape((key["reason"] if not key["available"] else key["last_error"]) or "-"),
            available_at(key["available"], key["available_at"], now),
            _used(key) or f"[dim]{escape(key['model'] or '-')}[/]",
        )
    for column in drawn.columns[:-1]:  # a narrow terminal cuts the last column only
        cells = (Text.from_markup(str(cell)) for cell in column.cells)
        column.min_width = min(max((cell.cell_len for cell in cells), default=0), MAX_WIDTH)
    counts = Counter(key["state"] for key in left)
    texts = ", ".join(f"{count} {state}" for state, count in counts.items())
    more = (f"… and {len(left)} more keys: {texts}",) if left else ()
    return Group(*head, "", drawn, *more)


_URGENCY = {
    state: place
    for place, state in enumerate(
        ("rejected", "unresolved", "cooling_down", "limited", "available", "disabled")
    )
}
_FRAME = 5
"""Lines that hold no key: a gap, two titles, the count of the rest, a spare."""


def _fit(keys: list[dict[str, Any]], room: int) -> tuple[list[Any], list[Any]]:
    """Return the keys of *room* lines, and the others; those that serve get half of the lines."""
    if len(keys) <= room:
        return keys, []
    serving = [key for key in keys if key["available"]]
    others = [key for key in keys if not key["available"]]
    most = max(room - len(others), room // 2)
    shown = [*others[: room - min(most, len(serving))], *serving[:most]]
    ids = {key["key_id"] for key in shown}
    return shown, [key for key in keys if key["key_id"] not in ids]


def _verdict(found: dict[str, Any]) -> Iterator[str]:
    """Say first what the page says first; then how many keys each model has, where they differ."""
    summary, now = found["summary"], datetime.fromisoformat(found["at"])

    def when(at: str) -> str:
        return remaining((datetime.fromisoformat(at) - now).total_seconds())

    yield from map(escape, lines_of(summary["headline"], when))
    counts = {
        model: f"{some['available']} of {some['keys']}" for model, some in summary["models"].items()
    }
    if len(set(counts.values())) > 1:
        yield from (f"  {escape(model)}: {count}" for model, count in counts.items())
    yield from _cost(summary)
    if found["degraded"]:
        yield "[yellow]Degraded: the shared state cannot be reached[/]"
    if found["shared"] and not found["has_records"]:
        yield (
            f"There are no records of a pool {found['pool']!r} in this state: no call has been "
            "made through it yet, or KEYROT_POOL names another pool than that of your services."
        )


def _cost(summary: dict[str, Any]) -> Iterator[str]:
    """Say what was spent today: in all, of each budget, and by project if there are several."""
    if summary["today"]["cost_usd"]:
        yield f"Today: {_usd(summary['today']['cost_usd'])}, since midnight Pacific time"
    projects = summary["projects"]
    for name, cost in projects.items():
        if cost["usd_per_day"] is not None:
            of = f" of {_usd(cost['usd_per_day'])} a day"
            yield f"  {escape(name)}: {_usd(cost['usd_today'] or 0.0)}{of}"
        elif cost["usd_today"] and len(projects) > 1:
            yield f"  {escape(name)}: {_usd(cost['usd_today'])}"


def _usd(amount: float) -> str:
    return f"{amount:,.2f} USD" if amount >= 1 else f"{amount:.4f} USD"


def _used(key: dict[str, Any]) -> str:
    """Say in one line what was used of each model, and why one of them is not available."""
    platform = key["platform"]
    parts = [] if platform == GEMINI_API else [f"[dim]{escape(platform)}[/]"]
    if key["usd_today"]:
        parts.append(f"{_usd(key['usd_today'])} today")
    for model, used in key["used"].items():
        windows = {name: used[name] for name in ("rpm", "tpm", "rpd")}
        counts = ", ".join(
            _window(name, window)
            for name, window in windows.items()
            if window["used"] or window["limit"] is not None
        )
        blocked = ""
        if not used["available"] and key["available"]:
            blocked = f" [yellow]{escape(_until(used))}[/]"
        parts.append(f"[dim]{escape(model)}[/]{blocked} {counts}".rstrip())
    return "; ".join(parts)


def _window(name: str, window: dict[str, Any]) -> str:
    limit = f"/{window['limit']:,}" if window["limit"] is not None else ""
    return f"{window['used']:,}{limit} {name}"


def _until(used: dict[str, Any]) -> str:
    at = used["available_at"]
    return f"{used['reason']} until {short_time(at)}" if at is not None else str(used["reason"])
