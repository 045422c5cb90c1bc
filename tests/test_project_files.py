"""The files around the package: pinned versions and dependency groups."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
STAGES = {"dev": ("demo", "dev"), "bench": ("demo", "dev", "bench")}
"""The files of requirements/ that install a dependency group."""


def project() -> dict[str, Any]:
    """Read pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def names(requirements: Iterable[str]) -> set[str]:
    """Return the distributions that *requirements* name, without extras and versions."""
    found = (re.match(r"[A-Za-z0-9._-]+", text) for text in requirements)
    return {match[0].lower() for match in found if match}


def pinned(*files: str) -> set[str]:
    """Return the distributions that files of requirements/ pin."""
    texts = [(ROOT / "requirements" / f"{name}.txt").read_text("utf-8") for name in files]
    return names(line for text in texts for line in text.splitlines())


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group, with those of the groups in it."""
    found: list[str] = []
    for entry in project()["dependency-groups"][name]:
        found += [entry] if isinstance(entry, str) else group(entry["include-group"])
    return found


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_every_requirement_is_pinned_once(path: Path) -> None:
    """A line is name==version, and the lines are sorted: no address, no option."""
    lines = path.read_text("utf-8").splitlines()
    pin = re.compile(r"[a-z0-9-]+(\[[a-z0-9,]+\])?==[0-9][0-9a-z.]*")
    assert [line for line in lines if not pin.fullmatch(line)] == []
    assert lines == sorted(set(lines))


@pytest.mark.parametrize("name", project()["dependency-groups"])
def test_a_dependency_group_is_what_make_installs(name: str) -> None:
    """Contributors who use pip install --group or uv sync get the tools of the make targets."""
    metadata = project()["project"]
    extras = [text for extra in metadata["optional-dependencies"].values() for text in extra]
    installed = pinned(*STAGES.get(name, (name,)))
    declared = names(group(name))
    assert declared <= installed
    assert installed <= declared | names([*metadata["dependencies"], *extras])


def _pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for value in [entry] if isinstance(entry, str) else entry.values():
            if isinstance(value, str):
                yield value
            else:
                yield from _pages(value)


def test_every_page_of_docs_is_in_the_navigation_of_the_site() -> None:
    """But for the decisions, which their own list links to."""
    site = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    decisions = {page for page in pages if page.startswith("adr/0")}
    assert sorted(_pages(site["nav"])) == sorted(pages - decisions)


def test_the_demo_needs_only_dependencies_and_the_extra_cli() -> None:
    """Beside what builds the editable install and what records spans, nothing is added."""
    metadata = project()["project"]
    needed = names([*metadata["dependencies"], *metadata["optional-dependencies"]["cli"]])
    assert needed <= pinned("demo")
    assert pinned("demo") - needed == {"editables", "hatchling", "opentelemetry-sdk"}
