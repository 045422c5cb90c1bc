"""The pages of the documentation, and the fenced blocks on them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks"]

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "prometheus" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "stores").glob("*.md")),
    *sorted((ROOT / "docs" / "adr").glob("*.md")),
    ROOT / "examples" / "jaeger" / "README.md",
)

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    language: str
    code: str
    line: int
    """Of the page, where the code begins."""
    said: str | None = None
    """The block `output` right below it: what the code prints; `…` stands for anything."""

    @property
    def file(self) -> str | None:
        """The name that the first line gives, as in `# conftest.py`: the reader makes a file."""
        match = _FILE.match(self.code)
        return match[1] if match else None


def blocks(page: Path) -> list[Block]:
    """List the blocks of a page from top to bottom."""
    text = page.read_text("utf-8")
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        after = re.compile(r"\n+```output\n(.*?)^```$", re.MULTILINE | re.DOTALL)
        output = after.match(text, match.end())
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(match[1], match[2], line, output[1] if output else None))
    return found
