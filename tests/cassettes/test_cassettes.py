"""A pool over recorded traffic: an unchanged `genai.Client()`, no server, no key in the file."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google import genai
from support.cassettes import recorder

import keyrot_middleware
from keyrot_middleware.providers.keys import holds_key
from keyrot_middleware.testing import FakeClock, FakeGemini, Reply

FOLDER = Path(__file__).resolve().parents[2] / "cassettes"
TRAFFIC = [("key_1", 429), ("key_2", 400), ("key_3", 200), ("key_3", 200)]
"""An exhausted minute, an invalid key, a good key; the second call uses the good key first."""
ASK: Any = {"model": "gemini-2.5-flash", "contents": "Count from one to five, in words."}


def plain(client: genai.Client) -> str:
    return client.models.generate_content(**ASK).text or ""


def stream(client: genai.Client) -> str:
    return "".join(chunk.text or "" for chunk in client.models.generate_content_stream(**ASK))


PROGRAMS = {"failover_sync": plain, "failover_sync_stream": stream}


@pytest.fixture
def gemini() -> Iterator[FakeGemini]:
    """Serve what the cassettes hold."""
    with FakeGemini(FakeClock()) as server:
        server.answer("one two three four five")
        for name in ("key_1", "key_2", "key_3"):
            server.add_key(name)
        server.always("key_1", Reply.QUOTA_MINUTE)
        server.always("key_2", Reply.KEY_INVALID)
        yield server


@pytest.fixture(params=PROGRAMS)
def cassette(request: Any, tmp_path: Path) -> Path:
    """Copy a cassette; vcrpy records one that is not there."""
    path = tmp_path / f"{request.param}.yaml"
    if (FOLDER / path.name).exists():
        shutil.copy(FOLDER / path.name, path)
    return path


def run(path: Path, gemini: FakeGemini, mode: str) -> None:
    """Call twice, over the cassette or over the fake, and check the result."""
    keys = {key: gemini.key(key).value for key in ("key_1", "key_2", "key_3")}
    allowed = (gemini.host, "generativelanguage.googleapis.com")
    with recorder(keys, record_mode=mode).use_cassette(path) as tape:
        keyrot_middleware.install(
            keys=list(keys.values()), strategy="fill", clock=FakeClock(), allowed_hosts=allowed
        )
        options: Any = gemini.http_options if mode == "all" else None
        for _ in range(2):
            with genai.Client(http_options=options) as client:
                assert "three" in PROGRAMS[path.stem](client)
        health = keyrot_middleware.status()["keys"]
    keyrot_middleware.uninstall()
    pairs = zip(tape.requests, tape.responses, strict=True)
    got = [(sent.headers["x-key-name"], reply["status"]["code"]) for sent, reply in pairs]
    assert got == TRAFFIC
    assert [name for name, key in health.items() if not key["active"]] == ["key_2"]


def test_a_cassette_is_replayed_without_a_server(cassette: Path, gemini: FakeGemini) -> None:
    """Every call succeeds, the bad keys are tried once, and nothing reaches a server."""
    run(cassette, gemini, "none")
    assert gemini.count() == 0


def test_a_recording_holds_no_key_and_is_replayed_with_others(
    cassette: Path, gemini: FakeGemini
) -> None:
    """The name counts: neither a value nor an address of this machine is in the file."""
    cassette.unlink()
    run(cassette, gemini, "all")
    text = cassette.read_text("utf-8") + (FOLDER / cassette.name).read_text("utf-8")
    assert not holds_key(text)
    assert "127.0.0.1" not in text
    with FakeGemini() as other:
        for name in ("key_1", "key_2", "key_3"):
            other.add_key(name)
        run(cassette, other, "none")
