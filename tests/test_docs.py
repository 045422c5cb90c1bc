"""README and docs/ are true: snippets run, tables agree with the code, links exist."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from datetime import datetime
from pathlib import Path
from pkgutil import resolve_name

import pytest
from support.docs_blocks import PAGES, ROOT, Block, blocks
from support.forks import run_fork

import keyrot_middleware
from keyrot_middleware import providers, secrets, state, testing
from keyrot_middleware.keys_file import read_keys
from keyrot_middleware.settings import ENV_NAMES, STATES_GROUP
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
    *("curl", "gemini", "claude", "llm", "aider"),
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
    own |= {providers.of(p).base_url_variable for p in providers.platforms()}
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


def test_the_package_is_installed_from_a_clone() -> None:
    """No page and no message installs it from an index, where it is not; a Dockerfile copies it."""
    package = ROOT / "keyrot_middleware"
    for path in (*PAGES, *package.rglob("*.py"), *package.rglob("*.js")):
        assert not re.findall(r"install [^`#\n]*[ '\"]keyrot-middleware\b", path.read_text("utf-8"))
    copied = re.findall(
        r"^COPY (.+) \S+$", "".join(b.code for b in _all("dockerfile")), re.MULTILINE
    )
    assert copied
    assert all((ROOT / name).exists() for names in copied for name in names.split())


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


def test_the_reference_has_every_public_name() -> None:
    """What a page imports or names, and what `__all__` lists, is on a page of docs/reference."""
    pages = [page for page in PAGES if page.parent.name != "adr"]
    named: set[str] = set()
    reference: set[str] = set()
    for page in pages:
        text = page.read_text("utf-8")
        named |= set(re.findall(r"(?<![/\w])keyrot_middleware(?:\.[a-zA-Z]\w*)+", text))
        imports = r"^ *from (keyrot_middleware\S*) import (.+)$"
        for module, names in re.findall(imports, text, re.MULTILINE):
            named |= {f"{module}.{name}" for name in re.findall(r"\w+", names)}
        if page.parent.name == "reference":
            reference |= set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    for module in (keyrot_middleware, providers, secrets, state, testing):
        named |= {f"{module.__name__}.{name}" for name in module.__all__}
    named -= {"keyrot_middleware.secret_stores", STATES_GROUP}  # entry points, and no modules
    for name in reference:
        assert resolve_name(name) is not None
    missing = {
        name
        for name in named
        if not any(
            f"{one}.".startswith(f"{name}.") or name.startswith(f"{one}.") for one in reference
        )
    }
    assert not missing


def test_what_the_reference_shows_is_in_the_public_modules() -> None:
    """CONTRIBUTING.md lists the modules, and `__all__` of each package its names."""
    shown: dict[str, set[str]] = {}
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for path in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE):
            module, _, name = path.rpartition(".")
            shown.setdefault(module, set()).add(name)
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (listed,) = re.findall(
        r"^Public are .* `keyrot_middleware` itself and its (.*?);", text, re.M | re.S
    )
    modules = {f"keyrot_middleware.{name}" for name in re.findall(r"`(.+?)`", listed)}
    assert set(shown) == {"keyrot_middleware", *modules}
    packages = {name: resolve_name(name) for name in shown}
    listed_by_package = {
        name: set(package.__all__)
        for name, package in packages.items()
        if hasattr(package, "__path__")
    }
    assert listed_by_package == {name: shown[name] for name in listed_by_package}


def _measured(name: str) -> tuple[str, dict[str, list[str]]]:
    """Return a page of benchmarks/, and the cells of each row of its table by the row's name."""
    text = (ROOT / "benchmarks" / name).read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return text, {name: cells for name, *cells in rows}


def _row(page: Path, name: str) -> list[str]:
    """Return the next two cells of a row, without their links."""
    (row,) = re.findall(rf"^\| {name}\b.*$", page.read_text("utf-8"), re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("| ").split(" | ")][1:3]
    return [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", cell) for cell in cells]


def _added(*cells: str) -> str:
    """Return the shares of a plain call that are added, and the times, sync and async."""
    found = [re.match(r"(\d+) µs \((\d\.\d+) . plain", cell) for cell in cells]
    shares = " / ".join(f"{100 * (float(one[2]) - 1):.0f}" for one in found if one)
    return f"{shares} % of a plain call ({' / '.join(one[1] for one in found if one)} µs)"


def test_pages_have_the_measured_numbers() -> None:
    """README and docs/compare.md show ours and LiteLLM's of one run, that of PEERS.md."""
    (page, rows), compare = _measured("PEERS.md"), ROOT / "docs" / "compare.md"
    router = rows["ours, state in memory"], rows["LiteLLM's Router"]
    added = [_added(*one[:2]) for one in router]
    times = [" / ".join(re.findall(r"\((\S+) . plain", " ".join(one[2:4]))) for one in router]
    proxies = [rows["`keyrot serve`"][0], rows["LiteLLM's proxy"][0]]
    assert _row(README, "Added per call") == _row(compare, "Added per call") == added
    assert _row(README, "CPU of a call through a proxy") == proxies
    assert [" ".join(cell.split()[:3]) for cell in _row(compare, "CPU of a call")] == times
    table = page.partition("## Proxies")[2].splitlines()
    text = compare.read_text("utf-8")
    assert all(line in text for line in table if line.startswith("| "))
    micros = re.compile(r"\d[\d.,]* ?(?:µs|ms)\b")
    assert micros.findall(README.read_text("utf-8")) == micros.findall(" ".join(added + proxies))
    versions = re.findall(r"LiteLLM ((?:\d+\.)+\d+)", page)
    date = re.search(r"on (\d{4}-\d\d)", page)
    assert date is not None
    month = datetime.strptime(date[1], "%Y-%m").strftime("%B %Y")
    measured = f"LiteLLM {versions[0]}, its proxy {versions[1]}, measured in {month}."
    assert measured in text
    assert measured in README.read_text("utf-8")


def test_each_promise_of_security_has_tests() -> None:
    """`pytest -m "promise(number=2)"` runs those of the second one; none is without."""
    promised = (ROOT / "SECURITY.md").read_text("utf-8").partition("## What is promised")[2]
    count = promised.partition("\n## ")[0].count("\n- **")
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    marked = set(re.findall(r"mark\.promise\(number=(\d+)\)", tests))
    assert marked == {str(number) for number in range(1, count + 1)}
