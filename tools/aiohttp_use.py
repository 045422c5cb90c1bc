"""A pytest plugin: run again without aiohttp what the SDK sends with it, and no other test.

Where aiohttp is installed, each test that passes is listed, unless it sent a request by aiohttp or
started a Python program, which may have. Where it is not, the listed tests are left out. So a new
async test is run both times by itself, and so is a test that was skipped, failed or is unknown.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says where the lists are."""
    parser.addoption("--same-without-aiohttp", metavar="FOLDER", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Make the list, or use it."""
    folder: Path = config.getoption("--same-without-aiohttp")
    config.pluginmanager.register(_List(folder) if find_spec("aiohttp") else _Choice(folder))


class _List:
    """Lists the tests that are the same without aiohttp; each process has a file of its own."""

    def __init__(self, folder: Path) -> None:
        import aiohttp  # noqa: PLC0415 - the other run has none

        self._file = folder / f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.txt"
        self._passed = self._differs = False
        original = aiohttp.ClientSession.request

        @functools.wraps(original)
        def request(*args: Any, **kwargs: Any) -> Any:
            self._differs = True
            return original(*args, **kwargs)

        aiohttp.ClientSession.request = request  # type: ignore[method-assign]
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.fork" or (
            event == "subprocess.Popen" and str(arguments[0]).startswith(sys.prefix)
        ):
            self._differs = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Run a test, and list it where it may be left out."""
        self._passed = self._differs = False
        done = yield
        if self._passed and not self._differs:
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(f"{item.nodeid}\n")
        return done

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep whether the test has passed, from its beginning to its end."""
        self._passed = report.passed and (self._passed or report.when == "setup")


class _Choice:
    """Leaves out the listed tests."""

    def __init__(self, folder: Path) -> None:
        texts = (file.read_text("utf-8") for file in folder.glob("*.txt"))
        self._same = {line for text in texts for line in text.splitlines()}

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keep the others, in their order."""
        left_out = [item for item in items if item.nodeid in self._same]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in self._same]
