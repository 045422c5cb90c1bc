"""A page of results: what was run, on which machine, and a table."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

__all__ = ["Row", "page", "table"]

Row = tuple[str, ...]


def page(title: str, command: str, how: str, head: Sequence[str], rows: Sequence[Row]) -> str:
    """Write Markdown: the machine and the command, then the table."""
    lines = [
        f"# {title}",
        "",
        f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: "
        f"{platform.machine()}, {os.cpu_count()} shared cores, load {os.getloadavg()[0]:.1f}, "
        f"CPython {platform.python_version()}, google-genai {version('google-genai')}. {how}",
        "",
        table(head, rows),
    ]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Row]) -> str:
    """Write a table."""
    first, *others = (f"| {' | '.join(line)} |\n" for line in (head, *rows))
    return f"{first}|{'---|' * len(head)}\n{''.join(others)}"
