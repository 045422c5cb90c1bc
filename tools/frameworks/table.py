"""The table of docs/frameworks.md: what a run of `run.py` that passes has shown.

python table.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cases import FRAMEWORKS, WAYS, Framework

__all__ = ["table"]

HEAD = (
    "Framework",
    "Version",
    "Sends by",
    "You set",
    "Ways",
    "All keys exhausted for the day",
    "All keys rejected",
)
SHOWN = {
    "sync": "sync",
    "stream": "stream",
    "tool": "tool",
    "async_": "async",
    "async_stream": "async stream",
    "async_tool": "async tool",
}


def version(framework: Framework) -> str:
    """Return the version that is pinned for a framework."""
    pins = Path(__file__).with_name(f"requirements-{framework.requirements}.txt").read_text("utf-8")
    found = re.search(rf"^{framework.distribution}(?:\[.+\])?==(\S+)$", pins, re.MULTILINE)
    assert found is not None, f"{framework.distribution} is not pinned"  # noqa: S101
    return found[1]


def row(framework: Framework) -> str:
    """Return the row of a framework."""
    spent = f"`{framework.spent}`"
    if framework.spent_in_stream:
        spent += f", in streams `{framework.spent_in_stream}`"
    cells = (
        framework.title,
        f"{framework.distribution} {version(framework)}",
        framework.sends_by,
        ", ".join(f"`{name}`" for name in framework.key_variables) or "-",
        "all six" if framework.ways == WAYS else ", ".join(SHOWN[way] for way in framework.ways),
        spent,
        f"`{framework.revoked}`",
    )
    return f"| {' | '.join(cells)} |"


def table(frameworks: Iterable[Framework]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| {' | '.join(HEAD)} |"
    yield f"|{'---|' * len(HEAD)}"
    yield from map(row, frameworks)


if __name__ == "__main__":
    print(*table(FRAMEWORKS.values()), sep="\n")
