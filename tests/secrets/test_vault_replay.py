"""Recorded dialogues with OpenBao replay without a server, and recorded again are the same."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import NoReturn

import pytest
from support import vault_cassettes
from support.vault_cassettes import SCENARIOS, record, replay

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cassettes" / "secrets" / "vault"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_recorded_dialogue_replays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request is one of the recording, all of them are sent, and no connection is made."""

    def refuse(*args: object, **options: object) -> NoReturn:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found, cassette = replay(FOLDER / f"{name}.yaml", SCENARIOS[name])
    for answers, wanted in zip(found, SCENARIOS[name].answers, strict=True):
        assert answers.keys() == wanted.keys()
        for key_id, end in wanted.items():
            assert answers[key_id].endswith(end)
    assert cassette.all_played
    assert cassette.play_count == len(cassette)


def test_the_recordings_agree_with_todays_server() -> None:
    """Recorded again, each file is the same to the last byte."""
    recorded = record()
    files = {path.stem: path.read_text("utf-8") for path in FOLDER.glob("*.yaml")}
    assert recorded.keys() == files.keys()
    for name, text in recorded.items():
        assert text == files[name], name


def test_a_recording_with_a_key_in_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program writes clean recordings, and keeps the old file in place of one with a key."""
    path = ROOT / "tools" / "record_secret_cassettes.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr(program, "FOLDER", tmp_path)
    texts = {"good": "FAKE", "bad": "AIza" + "FAKE" * 9}
    monkeypatch.setattr(vault_cassettes, "record", lambda: texts)
    assert program.main(["vault"]) == 1
    assert [one.name for one in (tmp_path / "vault").iterdir()] == ["good.yaml"]
    assert "vault/bad: a key is in the recording" in capsys.readouterr().err
