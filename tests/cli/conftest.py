"""The command in a process of its own, and a fake service on the machine's time."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from support.forks import fork_keyrot

from keyrot_middleware.testing import FakeGemini

Ran = subprocess.CompletedProcess[str]
Keyrot = Callable[..., Ran]


def start(command: list[str], env: dict[str, str], stdin: str = "") -> Ran:
    return subprocess.run(
        command,
        input=stdin,
        env={**os.environ, "NO_PROXY": "127.0.0.1", **env},
        text=True,
        capture_output=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def keyrot(clean_environment) -> Keyrot:
    def run(*arguments: str, stdin: str = "", **env: str) -> Ran:
        if "PYTHONPATH" in env:
            return start([sys.executable, "-m", "keyrot_middleware", *arguments], env, stdin)
        environ = {**os.environ, "NO_PROXY": "127.0.0.1", **env}
        return fork_keyrot(*arguments, environ=environ, stdin=stdin)

    return run


@pytest.fixture
def python(clean_environment) -> Keyrot:
    return lambda *arguments, stdin="", **env: start([sys.executable, *arguments], env, stdin)


@pytest.fixture
def started(python) -> Keyrot:
    return partial(python, "-m", "keyrot_middleware")


@pytest.fixture
def service() -> Iterator[FakeGemini]:
    with FakeGemini() as server:
        yield server


@pytest.fixture
def hide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    def without(package: str) -> dict[str, str]:
        folder: Path = tmp_path_factory.mktemp("hidden")
        (folder / "sitecustomize.py").write_text(f"import sys; sys.modules[{package!r}] = None")
        path = filter(None, (str(folder), os.environ.get("PYTHONPATH")))
        return {"PYTHONPATH": os.pathsep.join(path)}

    return without
