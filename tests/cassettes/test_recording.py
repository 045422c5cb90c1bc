"""The content of a cassette: of ours, and of one that a user records."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import yaml
from google import genai
from support.cassette_scenarios import SCENARIOS, Program, plain, plain_async, stream

from keyrot_middleware.testing import FakeGemini, Reply
from keyrot_middleware.testing.cassettes import recorder

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


def test_every_scenario_has_its_cassette() -> None:
    """The folder holds the recordings of the scenarios, their sources, and nothing else."""
    recorded = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}
    assert recorded.keys() == SCENARIOS.keys()
    for text in recorded.values():
        assert re.search(r"^  recorded_from: (FakeGemini|Google)$", text, re.MULTILINE)


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


def test_a_saved_cassette_that_is_extended_stays_clean(tmp_path: Path) -> None:
    """Loading puts the key back into the echo; saving removes it again."""
    path = tmp_path / "own.yaml"
    with FakeGemini() as gemini:
        key = gemini.add_key("mine").value
        gemini.script("mine", Reply.KEY_SUSPENDED)
        for mode in ("once", "new_episodes"):
            with recorder({"mine": key}, record_mode=mode).use_cassette(path) as cassette:
                with pytest.raises(genai.errors.ClientError, match="suspended"):
                    plain(genai.Client(api_key=key, http_options=gemini.http_options))
                if mode == "new_episodes":
                    stream(genai.Client(api_key=key, http_options=gemini.http_options))
            assert found_in(path.read_text(encoding="utf-8")) == []
        assert len(cassette) == 2
        assert gemini.count() == 2


@pytest.mark.parametrize("program", [plain, plain_async])
def test_a_compressed_body_is_searched_too(program: Program, tmp_path: Path) -> None:
    """Google compresses; the file has the text, without the key."""
    path = tmp_path / "own.yaml"
    with FakeGemini() as gemini:
        key = gemini.add_key("mine").value
        part = {"candidates": [{"content": {"parts": [{"text": f"three {key}"}]}}]}
        body = gzip.compress(json.dumps(part).encode())
        gemini.script("mine", Reply.custom(200, body, headers={"Content-Encoding": "gzip"}))
        with recorder({"mine": key}).use_cassette(path):
            client = genai.Client(api_key=key, http_options=gemini.http_options)
            assert key in program(client)
    text = path.read_text(encoding="utf-8")
    assert found_in(text) == []
    assert "three [key:mine]" in text


ENCODINGS = {
    "escapes": lambda text: "".join(f"\\u{ord(char):04x}" for char in text).encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "EBCDIC": lambda text: text.encode("cp037"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_body_in_another_encoding_is_searched_too(encoding: str, tmp_path: Path) -> None:
    """YAML writes such bytes as base64, in which no search finds a key any more."""
    path = tmp_path / "own.yaml"
    charset = "; charset=cp037" if encoding == "EBCDIC" else ""
    with FakeGemini() as gemini:
        key, stranger = gemini.add_key("mine").value, gemini.add_key("stranger").value
        body = ENCODINGS[encoding](f'{{"error": "{key} and {stranger}"}}')
        kind = f"application/json{charset}"
        gemini.script("mine", Reply.custom(403, body, content_type=kind))
        client = genai.Client(api_key=key, http_options=gemini.http_options)
        with recorder({"mine": key}).use_cassette(path), pytest.raises(Exception, match=r"."):
            plain(client)
        text = path.read_text(encoding="utf-8")
        (interaction,) = yaml.safe_load(text)["interactions"]
        saved = interaction["response"]["body"]["string"]
        saved = saved.encode() if isinstance(saved, str) else saved
        for part in (key[8:-1], stranger[8:-1]):
            assert ENCODINGS[encoding](part).removeprefix(b"\xff\xfe\0\0") not in saved
            assert part.encode() not in saved.replace(b"\0", b"")
        replaying = recorder({"mine": key}, record_mode="none").use_cassette(path)
        with replaying, pytest.raises(Exception, match=r".") as caught:
            plain(client)
        assert stranger not in str(caught.value)


def test_a_body_that_cannot_be_read_is_not_saved(tmp_path: Path) -> None:
    """A body with an unsupported coding is refused, since it could contain a key."""
    path = tmp_path / "own.yaml"
    odd = Reply.custom(200, "{}", headers={"Content-Encoding": "zstd-of-tomorrow"})
    with FakeGemini() as gemini:
        key = gemini.add_key("mine").value
        gemini.script("mine", odd)
        client = genai.Client(api_key=key, http_options=gemini.http_options)
        with recorder({"mine": key}).use_cassette(path), pytest.raises(ValueError, match="gzip"):
            plain(client)
    assert not path.exists()
