"""The wheel and the sdist: what is in them, and that an installed wheel works."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from support.docs_blocks import ROOT, blocks

from keyrot_middleware.testing import FakeGemini

PACKAGE = ROOT / "keyrot_middleware"
BUILD_S = 300
"""A build takes some seconds; test machines are busy."""


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Build the wheel and the sdist into a directory, with the installed build backend."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", str(folder), where=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Install the wheel into an empty environment, and return its Python.

    It finds the libraries of the tests' environment by a .pth file. The package of that
    environment is an editable install, which is a .pth file there and so is not read.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), where=folder)
    base = {"base": str(folder), "platbase": str(folder)}
    python = Path(sysconfig.get_path("scripts", "venv", base)) / Path(sys.executable).name
    pip = (sys.executable, "-m", "pip", "--python", str(python))
    run(*pip, "install", "-q", "--no-index", "--no-deps", str(wheel), where=folder)
    libraries = [path for path in sys.path if Path(path).name == "site-packages"]
    site = Path(sysconfig.get_path("purelib", "venv", base))
    (site / "libraries.pth").write_text("\n".join(libraries), "utf-8")
    return python


def run(*command: str, where: Path, **variables: str) -> str:
    """Run a command without the variables of the tests' environment; return what it prints."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LANG") if name in os.environ}
    ran = subprocess.run(
        command,
        cwd=where,
        env={**kept, "HOME": str(where), "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables},
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    assert ran.returncode == 0, f"exit code {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def test_the_wheel_is_the_package_and_nothing_else(wheel) -> None:
    """Every file of the package is in it: py.typed, Lua scripts, cli/autostart; no test is."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    tracked = run("git", "ls-files", "keyrot_middleware", where=ROOT).splitlines()
    assert names >= set(tracked)
    assert {name.partition("/")[0] for name in names} == {"keyrot_middleware"}
    assert "keyrot_middleware/cli/autostart/sitecustomize.py" in names


def test_the_sdist_has_what_a_build_needs(dist) -> None:
    """No test, recording, benchmark, tool or environment is in it."""
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()}
    package = {name for name in names if name.parts[0] == "keyrot_middleware"}
    beside = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "PKG-INFO"}
    assert {str(name) for name in names - package} - {".gitignore"} == beside
    assert path.stat().st_size < 1_000_000


def test_the_example_of_the_readme_runs_with_the_wheel(installed, tmp_path) -> None:
    """The quick start of README prints the answer of the API, from the installed package."""
    example = next(block for block in blocks(ROOT / "README.md") if "genai.Client()" in block.code)
    (tmp_path / "app.py").write_text(
        f"{example.code}\nprint(keyrot_middleware.__file__)\n", "utf-8"
    )
    with FakeGemini() as gemini:
        key = gemini.add_key("key_1", tier="paid").value
        printed = run(
            str(installed),
            "app.py",
            where=tmp_path,
            GEMINI_API_KEYS=key,
            GOOGLE_GEMINI_BASE_URL=gemini.url,
            KEYROT_ALLOWED_HOSTS=gemini.host,
        )
        assert gemini.count() == 1
    answer, file = printed.strip().rsplit("\n", 1)
    assert answer
    assert Path(file).is_relative_to(installed.parents[1])
    assert not Path(file).is_relative_to(PACKAGE)


def test_the_command_is_installed(installed, tmp_path) -> None:
    printed = run(str(installed.with_name("keyrot")), "--help", where=tmp_path, NO_COLOR="1")
    assert "demo" in printed
