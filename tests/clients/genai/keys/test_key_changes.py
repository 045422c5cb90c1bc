"""Values and keys.json change under a running program: no call fails."""

import logging
import os

import pytest
from google.genai import errors
from support.modes import MODES, ask
from support.mounted_secrets import serving_keys, value_of
from support.servers import wait_for

import keyrot_middleware
from keyrot_middleware.runtime import current_pool, pool
from keyrot_middleware.testing import Reply


@pytest.mark.parametrize("mode", MODES)
def test_a_leaked_key_is_available_after_one_refresh(mode, gemini, files, connect) -> None:
    """The same process continues: with the other key at once, with the new value soon."""
    files.start("A", "B")
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


def test_keys_and_limits_change_without_a_restart(gemini, files, connect, caplog) -> None:
    caplog.set_level(logging.INFO, "keyrot_middleware")
    files.list("A", "B")
    for key_id in ("A", "B", "C"):
        files.put(key_id)
    files.install()
    client = connect()
    installed = current_pool()
    assert installed is not None
    stream = client.models.generate_content_stream(model="gemini-3.1-flash-lite", contents="hello")
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


def test_the_last_key_that_is_removed_is_not_sent_again(gemini, files, connect, caplog) -> None:
    caplog.set_level(logging.INFO, "keyrot_middleware")
    files.start("A")
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


def test_an_emptied_keys_file_fails_no_call(gemini, files, connect, caplog) -> None:
    """The keys stay, one ERROR says what to do, and the next whole file is used."""
    files.put("C")
    files.start("A", "B")
    client = connect()
    emptied = (
        f"pool default: keys.json is not used, the keys stay the same: {files.keys_file}: found no "
        'key; to take the last one out, keep it with "active": false'
    )
    with pytest.warns(keyrot_middleware.KeyrotWarning, match="the keys stay the same"):
        files.list()
        wait_for(lambda: emptied in [one.getMessage() for one in caplog.records])
    assert [ask(mode, client) for mode in MODES] == ["ok from A"] * 4
    files.list("C")
    wait_for(lambda: serving_keys() == ["C"])
    assert ask("sync", client) == "ok from C"


@pytest.mark.parametrize("content", ['[{"key_id": "A", "rpm": -1}]', "[{", None])
def test_a_broken_keys_file_is_logged_once(content, files, connect, caplog) -> None:
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
def test_a_value_after_the_rejection_is_found(mode, gemini, files, connect, monkeypatch) -> None:
    """Without any key left the store is read every few seconds, whatever the TTL is, or 0."""
    monkeypatch.setattr(pool, "LOOK_UP_S", 0.01)
    files.start("A", "B", secrets_ttl_s=0)
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


# The thread that refreshes -----------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_worker_refreshes_on_its_own(gemini, files) -> None:
    """Servers install() before they fork: each worker looks values up again."""
    files.start("A")
    new = gemini.add_key("A_new", tier="paid").value
    child = os.fork()
    if child == 0:
        try:
            wait_for(lambda: value_of("A") == new)
            os._exit(0)
        finally:
            os._exit(1)
    files.put("A", "A_new")
    assert os.waitpid(child, 0)[1] == 0


# Keys without a value ----------------------------------------------------------------------------
