"""Console and tables of the command."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich import markup
from rich.console import Console
from rich.table import Table

from ..core.failures import KEY_REJECTIONS
from ..core.text import one_line, remaining, short_time

__all__ = ["STATE_STYLES", "available_at", "console", "escape", "table"]

WIDTH = 100

STATE_STYLES = {
    "available": "green",
    "limited": "yellow",
    "cooling_down": "yellow",
    "rejected": "red",
    "unresolved": "red",
    "disabled": "dim",
}
"""The color of each state of a key."""


def console() -> Console:
    """Return a console on stdout; without a terminal (a pipe, CI) 100 columns wide."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=WIDTH)


def escape(text: str) -> str:
    """Escape markup in *text*, which may come from users or a server."""
    return markup.escape(one_line(text))


def table(title: str, *columns: str) -> Table:
    """Return an empty table in the style of this command."""
    look: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0)}
    made = Table(title=title or None, title_justify="left", title_style="bold", **look)
    for name in columns:
        made.add_column(name, header_style="dim", overflow="fold")
    return made


def available_at(key: Mapping[str, Any], now: datetime) -> str:
    """Say when a key is available, and how long that is from *now*; not of a rejected one."""
    if key["available"]:
        return "now"
    at = key["available_at"]
    if at is None or key["reason"] in KEY_REJECTIONS:
        return "-"
    left = (datetime.fromisoformat(at) - now).total_seconds()
    return f"{short_time(at)}, {remaining(left)}"
