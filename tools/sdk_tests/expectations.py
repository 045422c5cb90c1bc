"""The list of tests that may differ, and the verdict on two runs."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from venvs import HERE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runs import Run

AT_MOST = 16
LIST = HERE / "expected_differences.toml"


@dataclass(frozen=True, slots=True)
class Entry:
    """A test that may differ.

    Attributes:
        test: Node id below ``google/genai/tests/``.
        versions: SDK versions in which it does.
        reason: Why the difference is right.
    """

    test: str
    versions: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Expectations:
    """The content of the file.

    Attributes:
        differences: Tests of behavior that a pool changes.
        flaky: Tests with two outcomes even without a pool; they are run, not compared.
    """

    differences: tuple[Entry, ...]
    flaky: tuple[Entry, ...]


def read_expectations() -> Expectations:
    """Read the list.

    Raises:
        ValueError: it has more than AT_MOST differences, or an entry without a reason or version.
    """
    tables = tomllib.loads(LIST.read_text(encoding="utf-8"))
    differences, flaky = (
        tuple(_entry(row) for row in tables.get(name, ())) for name in ("difference", "flaky")
    )
    if len(differences) > AT_MOST:
        raise ValueError(f"{LIST.name}: {len(differences)} differences, {AT_MOST} are allowed")
    return Expectations(differences, flaky)


def _entry(row: dict[str, object]) -> Entry:
    """Check one row of the list."""
    versions = row.get("versions")
    if not (row.get("test") and row.get("reason") and isinstance(versions, list) and versions):
        raise ValueError(f"{LIST.name}: an entry needs test, versions and reason, found {row}")
    return Entry(str(row["test"]), tuple(map(str, versions)), str(row["reason"]))


def complaints(version: str, plain: Run, pooled: Run, expected: Expectations) -> Iterator[str]:
    """Yield one sentence for each unexpected test; none means equal."""
    allowed = {entry.test for entry in expected.differences if version in entry.versions}
    flaky = {entry.test for entry in expected.flaky if version in entry.versions}
    differing = differences(plain, pooled)
    for test in sorted(differing - allowed - flaky):
        yield _describe(test, plain, pooled)
    for test in sorted(allowed - differing):
        yield f"{test}\n    is in {LIST.name}, yet has the same outcome in both runs"
    for test in sorted((allowed | flaky) - plain.outcomes.keys()):
        yield f"{test}\n    is in {LIST.name}, yet there is no such test in {version}"


def differences(plain: Run, pooled: Run) -> set[str]:
    """Return the tests with two outcomes, or with one because the other run does not have them."""
    tests = plain.outcomes.keys() | pooled.outcomes.keys()
    return {test for test in tests if plain.outcomes.get(test) != pooled.outcomes.get(test)}


def _describe(test: str, plain: Run, pooled: Run) -> str:
    """Describe both outcomes of a test and the first lines of its error."""
    lines = [test]
    for name, run in (("without", plain), ("with", pooled)):
        lines.append(f"    {name:8}{run.outcomes.get(test, 'not run')}")
        lines += [f"        {line}" for line in run.details.get(test, "").splitlines()[:4]]
    return "\n".join(lines)
