"""Keys without a value: until they have one the others serve, or calls are sent as without us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.modes import MODES, ask
from support.mounted_secrets import Files, serving_keys
from support.servers import wait_for

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini


def test_a_key_without_a_value_is_added_when_it_has_one(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The others serve; it is an error in the log and in status(), until it resolves."""
    files.list("A", "B")
    files.put("B")
    files.install()
    client = connect()
    assert ask("sync", client) == "ok from B"
    assert list(keyrot_middleware.status()["unresolved"]) == ["A"]
    assert caplog.records[0].getMessage().startswith("skipped: key A:")
    assert caplog.records[0].levelname == "ERROR"
    files.put("A")
    wait_for(lambda: serving_keys() == ["A", "B"])
    assert ask("sync", client) == "ok from A"
    assert keyrot_middleware.status()["unresolved"] == {}


def test_a_store_that_is_down_leaves_the_single_key(
    gemini: FakeGemini,
    files: Files,
    connect: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With an error in the log, as long as no key of the pool has a value."""
    monkeypatch.setenv("GEMINI_API_KEY", gemini.add_key("single").value)
    files.list("A", "B")
    files.install()
    client = connect()
    assert ask("sync", client) == "ok from single"
    assert "2 of 3 keys have no value and are skipped: key A: " in caplog.text
    files.put("A")
    wait_for(lambda: "A" in serving_keys())
    assert ask("sync", client) == "ok from A"


@pytest.mark.parametrize("mode", MODES)
def test_without_any_value_calls_are_sent_as_by_the_sdk(
    mode: str, gemini: FakeGemini, files: Files, connect: Callable[..., Any], caplog: Any
) -> None:
    """The patch is active; a client without a key can be made, and works later."""
    files.list("A")
    files.install()
    assert "1 of 1 keys have no value and are skipped" in caplog.text
    status = keyrot_middleware.status()
    assert (status["installed"], list(status["unresolved"])) == (True, ["A"])
    assert [key["state"] for key in status["keys"].values()] == ["unresolved"]
    own, bare = connect(gemini.add_key("own").value), connect()
    assert ask(mode, own) == "ok from own"
    with pytest.raises(keyrot_middleware.KeyPoolExhausted, match="GEMINI_API_KEYS") as caught:
        ask(mode, bare)
    assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")
    assert gemini.count() == 1, "no placeholder on the wire"
    files.put("A")
    wait_for(lambda: serving_keys() == ["A"])
    assert ask(mode, bare) == ask(mode, own) == "ok from A"
    assert list(bare.files.list()) == []


def test_by_hand_a_pool_without_a_value_is_exhausted_until_there_is_one(
    gemini: FakeGemini, files: Files
) -> None:
    """A KeyManager can be made, and raises that no key is available."""
    files.list("A")
    files.install()
    manager = keyrot_middleware.get_key_manager()
    with pytest.raises(keyrot_middleware.KeyPoolExhausted, match="has no Gemini API key"):
        manager.select_key()
    files.put("A")
    wait_for(lambda: serving_keys() == ["A"])
    assert manager.select_key().api_key == gemini.key("A").value
