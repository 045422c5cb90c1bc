"""The clouds' stores over recorded dialogues: no server, at the addresses of the real services."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from support.cloud_cassettes import FOLDER, SCENARIOS, one_by_one, recorder, store_of
from support.fake_secret_manager import READER, credentials_file
from support.stores import resolve_all

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a credentials file of Google's real token endpoint."""
    directory = tmp_path_factory.mktemp("google")
    return credentials_file(directory, READER, "https://oauth2.googleapis.com/token")


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a cassette is all there is")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_recorded_dialogue_gives_the_same_results(
    name: str, account: Path, tmp_path: Path
) -> None:
    """Values and errors are those of the scenario, and every answer of the cassette is used."""
    scenario = SCENARIOS[name]
    with one_by_one(), recorder().use_cassette(FOLDER / f"{name}.yaml") as cassette:
        store = store_of(name.partition("/")[0], tmp_path, account)
        found = resolve_all(store, **scenario.refs)
        assert cassette.all_played
    for key_id, part in scenario.expected.items():
        assert found[key_id] == part if part.startswith("FAKE-") else part in found[key_id]


def test_every_scenario_has_its_cassette() -> None:
    """And there is no other file."""
    recorded = {
        f"{path.parent.name}/{path.stem}"
        for scheme in ("aws", "azure", "gcp")
        for path in (FOLDER / scheme).glob("*.yaml")
    }
    assert recorded == set(SCENARIOS)


def test_the_cassettes_can_be_recorded_again(tmp_path: Path) -> None:
    """Recording from the emulators gives the files in the folder."""
    import record_cloud_cassettes as tool

    for record in (tool.record_aws, tool.record_azure, tool.record_gcp):
        assert record(tmp_path) == []
    for name in SCENARIOS:
        new, old = (folder / f"{name}.yaml" for folder in (tmp_path, FOLDER))
        assert _shape(new) == _shape(old)


def _shape(path: Path) -> list[str]:
    """Return methods, addresses and statuses; ids and dates of moto differ each time."""
    kinds = ("    method:", "    uri:", "      code:")
    return [line for line in path.read_text("utf-8").splitlines() if line.startswith(kinds)]
