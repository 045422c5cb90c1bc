"""Write site/llms.txt: a line for each page, so that an assistant finds the one that answers."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def pages(nav: Any) -> Iterator[str]:
    """Yield the pages of the navigation in order."""
    for entry in nav:
        for found in entry.values():
            yield from [found] if isinstance(found, str) else pages(found)


def line(page: str) -> str:
    """Return the title of a page, its address, and its first sentence."""
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / page).read_text("utf-8"), flags=re.DOTALL)
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    prose = re.search(r"^(?![#|!>:\-<\s]).+(?:\n(?!\n).+)*", text, re.MULTILINE)
    words = " ".join(prose[0].split()) if prose else ""
    first = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", words).partition(". ")[0].rstrip(".:")
    return f"- [{title[1] if title else page}]({page}): {first}"


if __name__ == "__main__":
    site = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    head = f"# {site['site_name']}\n\n> {site['site_description']}\n\n"
    lines = "\n".join(map(line, pages(site["nav"])))
    (ROOT / "site" / "llms.txt").write_text(f"{head}{lines}\n", "utf-8")
