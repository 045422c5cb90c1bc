"""The files around the package: pinned versions, dependency groups, the site, GitHub's files."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from keyrot_middleware.genai import patching

ROOT = Path(__file__).parents[1]
HASHED = ROOT / "requirements" / "dist.txt"
REQUIREMENTS = sorted({*(ROOT / "requirements").iterdir()} - {HASHED})
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
    texts = [path.read_text("utf-8") for path in REQUIREMENTS if path.stem in files]
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


def test_the_release_is_built_by_files_whose_hashes_are_known() -> None:
    """All of them, and no index is named."""
    lines = HASHED.read_text("utf-8").splitlines()
    assert set(HASHED.with_suffix(".in").read_text().splitlines()) <= {x[:-2] for x in lines}
    assert all(re.fullmatch(r"[a-z0-9-]+==.* \\|    --hash=sha256:\w{64}( \\)?", x) for x in lines)


@pytest.mark.parametrize("name", project()["dependency-groups"])
def test_a_dependency_group_is_what_make_installs(name: str) -> None:
    """Contributors who use pip install --group or uv sync get the tools of the make targets."""
    metadata = project()["project"]
    extras = [text for extra in metadata["optional-dependencies"].values() for text in extra]
    installed = pinned(*STAGES.get(name, (name,)))
    declared = names(group(name))
    assert declared <= installed
    assert installed <= declared | names([*metadata["dependencies"], *extras])


def test_the_range_of_the_sdk_is_the_declared_one() -> None:
    """What warnings name and what pip installs are the same versions."""
    first = patching.SUPPORTED.partition(" to ")[0]
    declared = f"google-genai>={first},<{patching.NEXT_MAJOR}"
    metadata = project()["project"]
    assert declared in metadata["dependencies"]
    assert declared in metadata["optional-dependencies"]["instruments"]
    assert f"{first} to {patching.NEXT_MAJOR - 1}.x" == patching.SUPPORTED


def _pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for value in [entry] if isinstance(entry, str) else entry.values():
            if isinstance(value, str):
                yield value
            else:
                yield from _pages(value)


def test_every_page_of_docs_is_in_the_navigation_of_the_site() -> None:
    """Except for the decisions, which their own list links to."""
    site = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    decisions = {page for page in pages if page.startswith("adr/0")}
    assert sorted(_pages(site["nav"])) == sorted(pages - decisions)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_only_the_tests_install_the_tools_of_the_tests(target: str, tmp_path: Path) -> None:
    """On a fresh clone `make demo` installs the small stage of .venv, and `make test` both."""
    for name in ("Makefile", "pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    planned = subprocess.run(
        ["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "-r requirements/demo.txt" in planned
    assert "--editable ." in planned
    assert ("requirements/dev.txt" in planned) == (target == "test")


def test_a_shim_without_a_python_is_not_the_newest(tmp_path: Path) -> None:
    """A program of pyenv is on PATH for each version; without the version it only fails."""
    shim = tmp_path / "python3.14"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "newest.py")],
        env={"PATH": str(tmp_path), "PYENV_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("== skipped: this machine has no newer Python than 3.")


GITHUB = ROOT / ".github"


def workflow(name: str) -> dict[Any, Any]:
    """Read a workflow. YAML reads the word `on` as true."""
    found: dict[Any, Any] = yaml.safe_load((GITHUB / "workflows" / name).read_text("utf-8"))
    return found


def steps(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of a job."""
    found: list[dict[str, Any]] = job["steps"]
    return found


def make_targets() -> set[str]:
    """Return the targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))


@pytest.mark.parametrize("name", ["tests.yml", "publish.yml"])
def test_the_workflows_call_targets_and_scripts_that_exist(name: str) -> None:
    """A renamed target must not first fail on a release."""
    commands = [
        step["run"]
        for job in workflow(name)["jobs"].values()
        for step in steps(job)
        if "run" in step
    ]
    used = {word for text in commands for word in re.findall(r"\bmake ([a-z-]+)", text)}
    assert used
    assert used <= make_targets()
    scripts = {word for text in commands for word in re.findall(r"tools/\S+", text)}
    assert all((ROOT / script).is_file() for script in scripts)


def test_ci_calls_targets_that_exist() -> None:
    """So do the project's own CI and the contributors' page."""
    texts = [(ROOT / name).read_text("utf-8") for name in (".ci/run", "CONTRIBUTING.md")]
    used = {
        word
        for text in texts
        for line in re.findall(r"(?:^|`)make ([a-z -]+)", text, re.MULTILINE)
        for word in line.split()
    }
    assert {"demo", "test", "dist", "docs"} <= used <= make_targets()


def test_the_tests_run_on_every_python_that_the_metadata_names() -> None:
    """The matrix is the list of classifiers."""
    classifiers = project()["project"]["classifiers"]
    named = [text.rpartition(" ")[2] for text in classifiers if re.search(r":: 3\.\d+$", text)]
    job = workflow("tests.yml")["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == named
    runs = {step.get("run") for step in steps(job)}
    assert {"make demo PYTHON=python", "make tests PYTHON=python"} <= runs


@pytest.mark.parametrize("name", ["tests.yml", "publish.yml"])
def test_actions_are_pinned_by_commit(name: str) -> None:
    """A tag can be moved to other code; a comment names the version."""
    lines = (GITHUB / "workflows" / name).read_text("utf-8").splitlines()
    used = [line.partition("uses:")[2] for line in lines if "uses:" in line]
    assert used
    pinned_action = re.compile(r" [\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+")
    assert [one for one in used if not pinned_action.fullmatch(one)] == []
    commits = [re.findall(r"([\w/-]+)@(\S+)", one)[0] for one in used]
    assert len(set(commits)) == len({action for action, _ in commits})
