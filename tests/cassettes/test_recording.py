"""The content of a cassette: of ours, and of one that a user records."""

import re
import runpy
from pathlib import Path

import pytest
import yaml
from google import genai
from support.cassette_scenarios import SCENARIOS, plain
from support.cassettes import recorder

from keyrot_middleware.testing import FakeGemini

FOLDER = Path(__file__).resolve().parents[2] / "cassettes"
FORBIDDEN = {
    "a standard key": r"AIza[0-9A-Za-z_-]{35}",
    "an auth key": r"\bAQ\.[0-9A-Za-z_-]{20}",
    # In `Bearer authorization="…"` a server names where to get a token.
    "a token": r"(?i)\bbearer\s+(?!authorization=)[0-9a-z._~+/-]{8}|\bya29\.",
    "a key's header": r"(?i)x-goog-api-key|authorization:|cookie:",
    "a key in a query": r"[?&]key=",
    "a loopback address": r"127\.0\.0\.1|localhost|\[::1\]",
    "a project number": r"projects/[1-9]\d{5,}",
    "a date": r"(?i)^\s+(date|server-timing):",
    "binary, which is not readable": r"!!binary",
}


def found_in(text: str) -> list[str]:
    """Name the forbidden content of a cassette: as written, and as YAML joins its lines."""
    read = str(yaml.safe_load(text))
    return [
        what
        for what, pattern in FORBIDDEN.items()
        if re.search(pattern, text, re.MULTILINE) or re.search(pattern, read)
    ]


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.y*ml")), ids=lambda path: path.stem)
def test_no_cassette_holds_a_key(path: Path) -> None:
    """Nothing shaped like a key, a token or an address of the recording machine is in the file."""
    assert found_in(path.read_text(encoding="utf-8")) == []


def test_every_scenario_has_its_cassette_and_can_be_recorded_again(tmp_path: Path) -> None:
    """`make record` writes the recordings of the scenarios, and the folder holds nothing else."""
    program = FOLDER.parent / "tools" / "record_cassettes.py"
    assert runpy.run_path(str(program))["main"]([str(tmp_path)]) == 0
    for folder in (FOLDER, tmp_path):
        assert {path.stem for path in folder.glob("*.yaml")} == SCENARIOS.keys()
    assert not [one for path in tmp_path.iterdir() if (one := found_in(path.read_text("utf-8")))]


@pytest.mark.parametrize("style", ["standard", "auth"])
def test_a_recording_with_one_key_replays_with_another(style: str, tmp_path: Path) -> None:
    """The name counts; the file has neither a value nor a key that the server echoed."""
    path = tmp_path / "own.yaml"
    with FakeGemini() as gemini:
        recorded = gemini.add_key("mine", style=style).value  # type: ignore[arg-type]
        stranger = gemini.add_key("stranger").value
        gemini.answer(f"three {recorded} {stranger}")
        with recorder({"mine": recorded}).use_cassette(path):
            client = genai.Client(api_key=recorded, http_options=gemini.http_options)
            assert recorded in plain(client)
    assert found_in(path.read_text(encoding="utf-8")) == []
    other = recorded[::-1]
    with recorder({"mine": other}, record_mode="none").use_cassette(path):
        answer = plain(genai.Client(api_key=other))
    assert other in answer
    assert stranger not in answer
