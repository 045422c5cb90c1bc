"""A pool over a cassette, without servers, settings or keys of the machine."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.cassette_scenarios import SCENARIOS, Scenario, values_for
from support.cassettes import recorder

import keyrot_middleware
from keyrot_middleware.errors import raise_internal_errors
from keyrot_middleware.settings import ENV_NAMES
from keyrot_middleware.testing import FakeClock

FOLDER = Path(__file__).resolve().parents[2] / "cassettes"

Replay = Callable[[str], AbstractContextManager[tuple[Scenario, Any]]]


@pytest.fixture(autouse=True)
def _nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ENV_NAMES.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with raise_internal_errors():
        yield
    keyrot_middleware.uninstall()


@pytest.fixture
def replay() -> Replay:
    """Return a function that installs a pool over a named cassette and returns its scenario."""

    @contextmanager
    def opened(name: str) -> Iterator[tuple[Scenario, Any]]:
        scenario = SCENARIOS[name]
        keys = values_for(scenario.names)
        tape = recorder(keys, record_mode="none").use_cassette(FOLDER / f"{name}.yaml")
        keyrot_middleware.install(keys=list(keys.values()), strategy="fill", clock=FakeClock())
        with tape as cassette:
            yield scenario, cassette

    return opened
