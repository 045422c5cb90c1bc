"""README and docs/ are true: snippets run, tables agree with the code, links exist."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from datetime import datetime
from pathlib import Path

import pytest
from support.docs_blocks import PAGES, ROOT, Block, blocks
from support.forks import run_fork

from keyrot_middleware import providers
from keyrot_middleware.keys_file import read_keys
from keyrot_middleware.settings import ENV_NAMES
from keyrot_middleware.testing import FakeGemini

README = ROOT / "README.md"
RUN = (
    "python",
    "opentelemetry-instrument",
    "docker",
    "prometheus",
    "celery",
    "dramatiq",
    "streamlit",
)
LIMIT_S = 300
"""Of one page; a page takes a second or two."""


def _with(language: str) -> list[Path]:
    return [page for page in PAGES if any(b.language == language for b in blocks(page))]


def _all(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _environ(home: Path, variables: dict[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "SYSTEMROOT", "LANG")}
    return {**kept, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", **variables}


def _run(where: Path, *args: str, **variables: str) -> str:
    """Run Python in a directory and an environment of its own; return its output."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=where,
        env=_environ(where, variables),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


RUN_PAGE = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
runpy.run_module("support.docs_page", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("page", _with("python"), ids=_name)
def test_snippets_run(page, tmp_path) -> None:
    """The Python of a page runs from top to bottom, against a fake API and a pool of three keys."""
    path = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    with FakeGemini() as gemini:
        keys = [gemini.add_key(f"key_{number}", tier="paid").value for number in (1, 2, 3)]
        variables = {
            "PYTHONPATH": path,
            "GEMINI_API_KEYS": ",".join(keys),
            "GOOGLE_GEMINI_BASE_URL": gemini.url,
            "KEYROT_ALLOWED_HOSTS": gemini.host,
        }
        run_fork(RUN_PAGE, str(page), environ=_environ(tmp_path, variables))
    if list(tmp_path.glob("test_*.py")):
        quiet = ("-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:keyrot")
        plugin = "keyrot_middleware.testing.pytest_plugin"  # installed or not, this one
        _run(tmp_path, "-m", "pytest", *quiet, "-p", plugin, PYTHONPATH=str(ROOT))


@pytest.mark.parametrize("page", _with("json"), ids=_name)
def test_keys_files_are_right(page, tmp_path) -> None:
    """A keys.json that a page shows is one that install() takes."""
    for block in blocks(page):
        if block.language == "json":
            path = tmp_path / "keys.json"
            path.write_text(block.code, "utf-8")
            assert read_keys(path)[1] == []


def _commands() -> list[list[str]]:
    lines = [line for block in _all("sh") for line in block.code.splitlines()]
    args = [shlex.split(line, comments=True) for line in lines]
    return [line for line in args if line]


def _is_known(variable: str) -> bool:
    own = {*ENV_NAMES.values(), "GOOGLE_GEMINI_BASE_URL"}
    of_providers = {one for p in providers.platforms() for one in providers.of(p).variables}
    known = own | of_providers | {f"{name}S" for name in of_providers}
    return variable in known or variable.startswith(("GEMINI_KEY_", "KEYROT_KEY_", "OTEL_"))


def test_shell_lines_name_existing_things() -> None:
    """Commands, make targets, extras and variables in shell blocks exist."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for line in _commands():
        command, *rest = [word for word in line if word != "export"]
        while (match := re.match(r"(\w+)=", command)) is not None:
            assert _is_known(match[1]), line
            command, *rest = rest or ["true"]
        if command == "make":
            assert set(rest) <= set(targets), line
        elif command == "pip":
            extras = re.findall(r"\[([\w,]+)\]", " ".join(rest))
            assert set(",".join(extras).split(",")) <= {"", *project["optional-dependencies"]}
        elif command == "git":
            assert rest == ["clone", project["urls"]["Repository"]]
        else:
            assert command in ("keyrot", "true", *RUN, "cp", "cd", "."), line


@pytest.mark.parametrize("command", ["run", "check", "demo"])
def test_flags_of_keyrot_exist(command, tmp_path) -> None:
    """Every flag of `keyrot` that a page shows is one that the command knows."""
    used = [line for line in _commands() if line[:2] == ["keyrot", command]]
    own = [line[2:] if command != "run" else _before_program(line[2:]) for line in used]
    flags = {word for line in own for word in line if word.startswith("-")}
    documented = _run(
        tmp_path, "-m", "keyrot_middleware", command, "--help", COLUMNS="200", NO_COLOR="1"
    )
    assert used
    assert all(flag in documented for flag in flags), flags


def _before_program(args: list[str]) -> list[str]:
    """Remove the arguments of the program that is run."""
    end = next((i for i, word in enumerate(args) if not word.startswith("-")), len(args))
    return args[:end]


def test_variables_of_ours_exist() -> None:
    """No page names a KEYROT_ variable that is neither a setting nor read by a store."""
    documented = {
        name for page in PAGES for name in re.findall(r"KEYROT_\w+", page.read_text("utf-8"))
    }
    stores = "".join(
        path.read_text("utf-8") for path in (ROOT / "keyrot_middleware" / "secrets").glob("*.py")
    )
    read = set(re.findall(r'"(KEYROT_\w+)"', stores))
    documented = {name for name in documented if not name.startswith("KEYROT_KEY_")}
    assert {"KEYROT_VAULT_PLACE", "KEYROT_AWS_SECRET", "KEYROT_GCP_SECRET"} <= read
    assert {name.rstrip("_") for name in documented} <= {*ENV_NAMES.values()} | read


def _measured(name: str) -> tuple[str, dict[str, list[str]]]:
    """Return a page of benchmarks/, and the cells of each row of its table by the row's name."""
    text = (ROOT / "benchmarks" / name).read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return text, {name: cells for name, *cells in rows}


def _readme_row(name: str) -> list[str]:
    (row,) = re.findall(rf"^\| {name}\b.*$", README.read_text("utf-8"), re.MULTILINE)
    return [cell.strip() for cell in row.strip("| ").split(" | ")][1:]


def _added(*cells: str) -> str:
    """Return the shares of a plain call that are added, and the times, sync and async."""
    found = [re.match(r"(\d+) µs \((\d\.\d+) . plain", cell) for cell in cells]
    shares = " / ".join(f"{100 * (float(one[2]) - 1):.0f}" for one in found if one)
    return f"{shares} % ({' / '.join(one[1] for one in found if one)} µs)"


def test_readme_has_the_measured_numbers() -> None:
    """Ours are of benchmarks/RESULTS.md; those of LiteLLM, its version and date of PEERS.md."""
    (page, peers), (_, ours) = _measured("PEERS.md"), _measured("RESULTS.md")
    row = "added per call, memory state, no tracing, {}, p50"
    expected = [
        _added(ours[row.format("sync")][1], ours[row.format("async")][1]),
        _added(*peers["LiteLLM's Router"]),
    ]
    cells = [
        re.sub(r"\[(.*?)\]\(.*?\)|of a plain call |, busier machine(?=\))", r"\1", cell)
        for cell in _readme_row("Added per call")
    ]
    assert cells[:2] == expected
    times = re.compile(r"\d[\d.,]* ?(?:µs|ms)\b")
    text = README.read_text("utf-8")
    assert times.findall(text) == times.findall(" ".join(expected))
    version, date = re.search(r"LiteLLM (?:\d+\.)+\d+", page), re.search(r"on (\d{4}-\d\d)", page)
    assert version is not None
    assert date is not None
    month = datetime.strptime(date[1], "%Y-%m").strftime("%B %Y")
    assert f"{version[0]}, measured in {month}." in text


def test_each_promise_of_security_has_tests() -> None:
    """`pytest -m "promise(number=2)"` runs those of the second one; none is without."""
    promised = (ROOT / "SECURITY.md").read_text("utf-8").partition("## What is promised")[2]
    count = promised.partition("\n## ")[0].count("\n- **")
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    marked = set(re.findall(r"mark\.promise\(number=(\d+)\)", tests))
    assert marked == {str(number) for number in range(1, count + 1)}
