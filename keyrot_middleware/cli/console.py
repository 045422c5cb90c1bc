"""Where tables go: the terminal, or 100 columns where there is none."""

from __future__ import annotations

from typing import Any

from rich import markup
from rich.console import Console
from rich.table import Table

from ..core.text import one_line

__all__ = ["console", "escape", "table"]

WIDTH = 100


def console() -> Console:
    """Write to stdout; without a terminal (a pipe, CI) as wide as the tables want to be."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDTH)


def escape(text: str) -> str:
    """Show *text* as it is: it may come from a program's users or from a server."""
    return markup.escape(one_line(text))


def table(title: str, *columns: str) -> Table:
    """Begin a table in the one style of this command."""
    look: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0)}
    made = Table(title=title or None, title_justify="left", title_style="bold", **look)
    for name in columns:
        made.add_column(name, header_style="dim", overflow="fold")
    return made
