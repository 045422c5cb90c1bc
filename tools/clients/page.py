"""What docs/serve.md says in "Programs", so that `make clients` runs what a user reads."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"
ADDRESS = "http://127.0.0.1:8789"
"""Of the door, on the page."""


class Page:
    """The blocks of the section by their title, and the table's rows by what they name."""

    def __init__(self) -> None:
        """Read the page."""
        text = PAGE.read_text("utf-8").partition("\n## Programs\n")[2].partition("\n## ")[0]
        found = re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
        self.blocks = dict(found)
        self.needs = dict(re.findall(r"^\| `(\S+)`.* \| (.+) \|$", text, re.MULTILINE))

    def environment(self, client: str, address: str) -> dict[str, str]:
        """Return the variables that a program needs.

        Args:
            client: The program.
            address: The door's.
        """
        block = self.blocks.get(self.needs.get(client, "").partition(",")[0], "")
        lines = block.replace(ADDRESS, address)
        return dict(re.findall(r"^export (\w+)=(\S+)$", lines, re.MULTILINE))

    def write(self, client: str, address: str, folder: Path) -> None:
        """Write what the page has for a program into its working directory.

        Args:
            client: The program; its code becomes a module of Node, its command a script.
            address: The door's.
            folder: It has no such files yet.
        """
        (folder / "page").mkdir(exist_ok=True)
        code = self.blocks.get(client, "").replace(ADDRESS, address)
        if made := re.search(r"^const (\w+) =", code, re.MULTILINE):
            name = client.replace("/", "+", 1)
            (folder / "page" / f"{name}.mjs").write_text(f"{code}\nexport default {made[1]};\n")
        elif code:
            (folder / "page" / f"{client}.sh").write_text(code)
        settings = self.blocks[".gemini/settings.json"]
        (folder / ".gemini").mkdir(exist_ok=True)
        (folder / ".gemini" / "settings.json").write_text(settings)
