"""The pages of the documentation, and the fenced blocks on them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "prometheus" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "stores").glob("*.md")),
    *sorted((ROOT / "docs" / "recipes").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
    *sorted((ROOT / "docs" / "adr").glob("*.md")),
    ROOT / "examples" / "jaeger" / "README.md",
)

_FENCE = re.compile(r'^```(\w*)(?: title="([^"\n]+)")?[^\n]*\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    code: str
    line: int
    """The line of the page on which the code begins."""
    expected_output: str | None = None
    """The block `output` right below it: what the code must print; `…` matches anything."""

    title: str | None = None
    """The title beside the language."""

    @property
    def file(self) -> str | None:
        """The file that the reader makes of it: the title, or a first line like `# conftest.py`."""
        match = _FILE.match(self.code)
        return self.title or (match[1] if match else None)


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        after = re.compile(r"\n+```output\n(.*?)^```$", re.MULTILINE | re.DOTALL)
        output = after.match(text, match.end())
        line = text.count("\n", 0, match.start(3)) + 1
        found.append(Block(match[1], match[3], line, output[1] if output else None, match[2]))
    return found
