"""The program behind `make record`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from support.cassette_scenarios import SCENARIOS

from keyrot_middleware.testing import FakeClock, FakeGemini, Reply

PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "record_cassettes.py"


@pytest.fixture
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_cassettes", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def google(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGemini]:
    """Replace Google's address in the program, with two keys in the environment."""
    with FakeGemini(FakeClock()) as gemini:
        keys = [gemini.add_key("free", rpm=3), gemini.add_key("good")]
        gemini.answer("three")
        few = ("failover_sync", "failover_async_stream", "suspended_sync")
        monkeypatch.setattr(program, "SCENARIOS", {name: SCENARIOS[name] for name in few})
        monkeypatch.setattr(program, "GOOGLE_HOST", gemini.host)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", gemini.url)
        monkeypatch.setenv("GEMINI_API_KEYS", ",".join(key.value for key in keys))
        yield gemini


def test_without_keys_everything_comes_from_the_fake(program: ModuleType, tmp_path: Path) -> None:
    """Each scenario is written, and the program prints where it is from."""
    assert program.main([str(tmp_path)]) == 0
    texts = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.yaml")}
    assert texts.keys() == SCENARIOS.keys()
    assert all("recorded_from: FakeGemini" in text for text in texts.values())


def test_with_real_keys_the_first_is_exhausted_and_failovers_are_recorded(
    google: FakeGemini, program: ModuleType, tmp_path: Path
) -> None:
    """The 429 of the exhausted key, the 400 of the invented one and the answer of the good one."""
    assert program.main([str(tmp_path)]) == 0
    text = (tmp_path / "failover_sync.yaml").read_text(encoding="utf-8")
    assert "recorded_from: Google" in text
    assert google.count("free", status=200) == 3
    assert not any(google.key(label).value in text for label in ("free", "good"))
    assert "recorded_from: FakeGemini" in (tmp_path / "suspended_sync.yaml").read_text("utf-8")


def test_unexpected_traffic_does_not_change_the_cassette(
    google: FakeGemini, program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Traffic other than the scenario's is reported, and the old file stays."""
    del program.SCENARIOS["failover_async_stream"]
    google.always("good", Reply.KEY_INVALID)
    old = tmp_path / "failover_sync.yaml"
    old.write_text("old", encoding="utf-8")
    assert program.main([str(tmp_path)]) == 1
    assert old.read_text(encoding="utf-8") == "old"
    assert "failover_sync: expected" in capsys.readouterr().err
