"""Values and keys.json change under a running program: no call fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from google.genai import errors
from support.modes import MODES, ask, calls
from support.mounted_secrets import Files, serving_keys, value_of
from support.servers import wait_for

import keyrot_middleware
from keyrot_middleware.runtime import current_pool, pool
from keyrot_middleware.testing import FakeGemini, Reply


@pytest.mark.parametrize("mode", MODES)
def test_a_leaked_key_that_is_replaced_is_available_within_one_refresh(
    mode: str, gemini: FakeGemini, files: Files, connect: Callable[..., Any]
) -> None:
    """The same process continues: with the other key at once, with the new value soon."""
    files.list("A", "B")
    files.put("A")
    files.put("B")
    files.install()
    client = connect()
    assert ask(mode, client) == "ok from A"
    gemini.always("A", Reply.KEY_LEAKED)
    assert [ask(mode, client) for _ in range(3)] == ["ok from B"] * 3
    assert gemini.sent("A") == 2, "it is not used again"
    files.put("A", "A_new")
    answers: list[str] = []
    wait_for(lambda: answers.append(ask(mode, client)) or answers[-1] == "ok from A_new")
    assert set(answers) <= {"ok from B", "ok from A_new"}
    assert keyrot_middleware.status()["keys"]["A"]["active"]


@pytest.mark.parametrize("mode", MODES)
def test_a_value_that_is_replaced_already_serves_the_same_call(
    mode: str, gemini: FakeGemini, files: Files, connect: Callable[..., Any]
) -> None:
    """A pool of one key whose old value is refused: looked up at once, and sent again."""
    files.list("A")
    files.put("A")
    files.install(secrets_ttl_s=300)
    client = connect()
    assert ask(mode, client) == "ok from A"
    gemini.always("A", Reply.KEY_INVALID)
    files.put("A", "A_new")
    assert ask(mode, client) == "ok from A_new"


def test_a_suspended_projects_key_that_is_replaced_is_available_again(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any]
) -> None:
    """The new value is sent, although the project has the same name in keys.json."""
    files.list({"key_id": "A", "project": "web"}, {"key_id": "B", "project": "other"})
    files.put("A")
    files.put("B")
    files.install()
    client = connect()
    gemini.always("A", Reply.KEY_SUSPENDED)
    assert [ask("sync", client) for _ in range(2)] == ["ok from B"] * 2
    files.put("A", "A_new")
    wait_for(lambda: ask("sync", client) == "ok from A_new")
    assert gemini.sent("A") == 1


def test_a_value_replaced_in_time_costs_no_failed_send(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Old and new value are valid for a while: the new one is used, and a log line reports it."""
    caplog.set_level(logging.INFO, "keyrot_middleware")
    files.list("A")
    files.put("A")
    files.install()
    client = connect()
    ask("sync", client)
    files.put("A", "A_new")
    wait_for(lambda: value_of("A") == gemini.key("A_new").value)
    wait_for(lambda: "pool default: key A has a new value and is available again" in caplog.text)
    assert ask("sync", client) == "ok from A_new"
    gemini.always("A", Reply.KEY_INVALID)
    assert list(client.files.list()) == [], "the client's home key is the new value too"
    assert [request.status for request in gemini.log] == [200] * 3


def test_keys_and_limits_change_without_a_restart(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """keys.json is read again when it has changed; calls in flight keep their keys."""
    caplog.set_level(logging.INFO, "keyrot_middleware")
    files.list("A", "B")
    for key_id in ("A", "B", "C"):
        files.put(key_id)
    files.install()
    client = connect()
    installed = current_pool()
    assert installed is not None
    stream = client.models.generate_content_stream(model="gemini-2.5-flash", contents="hello")
    first = next(stream).text
    files.list("C", {"key_id": "B", "rpm": 7})
    wait_for(lambda: serving_keys() == ["C", "B"])
    assert installed.selector.keys["B"].limits.rpm == 7
    assert first + "".join(chunk.text for chunk in stream) == "ok from A"
    assert ask("sync", client) == "ok from C"
    wait_for(lambda: "keys removed: A" in caplog.text)
    assert "keys added: C" in caplog.text
    assert set(keyrot_middleware.status()["keys"]) == {"B", "C"}
    files.list("A", "C")
    wait_for(lambda: serving_keys() == ["A", "C"])
    assert ask("sync", client) == "ok from A"


def test_the_last_key_that_is_removed_is_not_sent_again(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A pool whose only key is switched off has none, logged as ERROR, until one is added."""
    caplog.set_level(logging.INFO, "keyrot_middleware")
    files.list("A")
    files.put("A")
    files.install()
    client = connect()
    assert ask("sync", client) == "ok from A"
    files.list({"key_id": "A", "active": False})
    wait_for(lambda: serving_keys() == [])
    with pytest.raises(errors.ClientError, match="has no Gemini API key"):
        ask("sync", client)
    assert gemini.count() == 1
    wait_for(lambda: "pool default: it has no key; calls go out" in caplog.text)
    files.put("B")
    files.list("B")
    wait_for(lambda: serving_keys() == ["B"])
    assert ask("sync", client) == "ok from B"


@pytest.mark.parametrize("mode", MODES)
def test_a_keys_file_that_is_emptied_for_a_moment_fails_no_call(
    mode: str,
    gemini: FakeGemini,
    files: Files,
    connect: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Under load: the keys stay, one ERROR says what to do, and the next whole file is used."""
    files.list("A", "B")
    for key_id in ("A", "B", "C"):
        files.put(key_id)
    files.install()
    client, stop = connect(), threading.Event()
    emptied = (
        f"pool default: keys.json is not used, the keys stay the same: {files.keys_file}: found no "
        "key, and the pool has no other; allowed: at least one. To take the last one out, keep it "
        'with "active": false.'
    )

    def work() -> list[str | Exception]:
        found: list[str | Exception] = []
        while not stop.is_set():
            found += calls(mode, client, 8, 4)
        return found

    def errors_logged() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(work)
        try:
            wait_for(lambda: gemini.count() > 8)
            with pytest.warns(keyrot_middleware.KeyrotWarning, match="the keys stay the same"):
                files.list()
                wait_for(lambda: emptied in errors_logged())
            seen = gemini.count()
            wait_for(lambda: gemini.count() > seen + 16)
            assert serving_keys() == ["A", "B"]
            files.list("A", "C")
            wait_for(lambda: serving_keys() == ["A", "C"])
        finally:
            stop.set()
        assert set(running.result()) == {"ok from A"}


def test_without_keys_in_keys_json_the_single_key_serves(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The single key is not from keys.json, and stays when that is emptied."""
    monkeypatch.setenv("GEMINI_API_KEY", gemini.add_key("single").value)
    files.list("A")
    files.put("A")
    files.install()
    files.list()
    wait_for(lambda: serving_keys() == ["GEMINI_API_KEY"])
    assert ask("sync", connect()) == "ok from single"


def test_a_disabled_key_is_not_reported_as_available(
    gemini: FakeGemini, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """Not where its value changes at the same time, and not where it changes later."""
    caplog.set_level(logging.INFO, "keyrot_middleware")
    files.list("A")
    files.put("A")
    files.put("B")
    files.install()
    files.list({"key_id": "A", "active": False, "secret": f"file://{files.folder}/B"})
    wait_for(lambda: serving_keys() == [])
    wait_for(lambda: value_of("A") == gemini.key("B").value)
    files.list({"key_id": "A", "active": False})
    wait_for(lambda: value_of("A") == gemini.key("A").value)
    assert "keys removed: A" in caplog.text
    assert "is available again" not in caplog.text
    assert "keys added" not in caplog.text


@pytest.mark.parametrize("content", ['[{"key_id": "A", "rpm": -1}]', "[{", None])
def test_a_broken_keys_file_keeps_the_keys_and_is_logged_once(
    content: str | None, files: Files, connect: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """An error names the mistake; the next valid version is used."""
    files.list("A")
    files.put("A")
    files.put("B")
    files.install()
    if content is None:
        files.keys_file.unlink()
    else:
        files.write(content)
    wait_for(lambda: caplog.records)
    assert ask("sync", connect()) == "ok from A"
    files.list("B")
    wait_for(lambda: serving_keys() == ["B"])
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(lines) == 1
    assert lines[0].startswith(
        f"pool default: keys.json is not used, the keys stay the same: {files.keys_file}"
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_value_that_comes_after_the_rejection_is_found_by_the_next_calls(
    mode: str,
    gemini: FakeGemini,
    files: Files,
    connect: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without any key left the store is read every few seconds, whatever the TTL is, or 0."""
    monkeypatch.setattr(pool, "LOOK_UP_S", 0.01)
    files.list("A", "B")
    files.put("A")
    files.put("B")
    files.install(secrets_ttl_s=0)
    client = connect()
    for label in ("A", "B"):
        gemini.always(label, Reply.KEY_INVALID)
    for _ in range(5):
        with pytest.raises(errors.ClientError):
            ask(mode, client)
    assert (gemini.sent("A"), gemini.sent("B")) == (1, 1)
    files.put("B", "B_new")
    answers: list[str] = []

    def answered() -> bool:
        try:
            answers.append(ask(mode, client))
        except keyrot_middleware.KeyPoolExhausted:
            return False
        return True

    wait_for(answered)
    assert answers == ["ok from B_new"]
    assert (gemini.sent("A"), gemini.sent("B")) == (1, 1)


def test_with_no_key_left_the_stores_are_read_at_most_every_few_seconds(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of failing calls cost a look-up every five seconds."""
    seconds, looks = 1_000.0, list[float]()
    files.list("A")
    files.put("A")
    files.install(secrets_ttl_s=0)
    client = connect()
    gemini.always("A", Reply.KEY_INVALID)
    with pytest.raises(errors.ClientError):
        ask("sync", client)
    current = current_pool()
    assert current is not None
    refresh_all = current.secrets.refresh_all

    def counted(wait_s: float) -> frozenset[str]:
        looks.append(seconds)
        return refresh_all(wait_s)

    monkeypatch.setattr(current.secrets, "refresh_all", counted)
    monkeypatch.setattr(pool.time, "monotonic", lambda: seconds)
    for _ in range(400):
        with pytest.raises(keyrot_middleware.KeyPoolExhausted):
            ask("sync", client)
        seconds += 0.25
    assert [at - looks[0] for at in looks] == [5.0 * number for number in range(20)]


def test_a_key_manager_finds_a_value_that_comes_after_the_rejection(
    gemini: FakeGemini, files: Files
) -> None:
    """Without any key left `select_key` looks the values up before it raises."""
    files.list("A")
    files.put("A")
    files.install(secrets_ttl_s=0)
    manager = keyrot_middleware.get_key_manager()
    rejected = errors.ClientError(
        401, {"error": {"code": 401, "message": "?", "status": "UNAUTHENTICATED"}}
    )
    manager.report_error(manager.select_key("gemini-2.5-flash").key_id, rejected)
    files.put("A", "A_new")
    assert manager.select_key("gemini-2.5-flash").api_key == gemini.key("A_new").value


def test_a_limit_that_is_changed_in_keys_json_beats_what_was_learned_before(
    gemini: FakeGemini, files: Files, connect: Callable[..., Any]
) -> None:
    """Its owner has raised it at Google, and in the file."""
    files.list("A")
    files.put("A")
    files.install(max_wait_s=0)
    gemini.script("A", Reply.QUOTA_MINUTE)
    with pytest.raises(errors.ClientError):
        ask("sync", connect())

    def learned() -> dict[str, int]:
        used = keyrot_middleware.status()["keys"]["A"]["used"]
        return used["gemini-2.5-flash"]["learned"]

    assert learned()
    files.list({"key_id": "A", "rpm": 500})
    wait_for(lambda: not learned())
