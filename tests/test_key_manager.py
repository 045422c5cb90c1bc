"""KeyManager: the pool for programs that select keys by hand."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import errors
from support.fake_settings import write_keys
from support.servers import wait_for

import keyrot_middleware
from keyrot_middleware import (
    KeyManager,
    KeyPoolExhausted,
    _install,
    get_key_manager,
)
from keyrot_middleware import key_manager as manager_module
from keyrot_middleware.testing import FakeClock, FakeGemini, Reply

MODEL = "gemini-2.5-flash"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(start=datetime(2026, 11, 25, 12, 0, 10, tzinfo=UTC))


@pytest.fixture
def gemini(clock: FakeClock) -> Any:
    with FakeGemini(clock=clock) as server:
        for label in "ab":
            server.add_key(label)
        yield server


@pytest.fixture
def manager(gemini: FakeGemini, clock: FakeClock) -> KeyManager:
    keys = [gemini.key(label).value for label in "ab"]
    return KeyManager(clock=clock, keys=keys, strategy="fill")


@pytest.fixture
def only_key(
    gemini: FakeGemini, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., KeyManager]:
    """Return a manager of one key with these limits."""

    def build(**limits: int) -> KeyManager:
        monkeypatch.setenv("ONLY_KEY", gemini.key("a").value)
        entry = {"key_id": "key_1", "secret": "env://ONLY_KEY", **limits}
        return KeyManager(clock=clock, keys_file=write_keys(tmp_path / "keys.json", entry))

    return build


def generate(gemini: FakeGemini, api_key: str) -> Any:
    client = genai.Client(api_key=api_key, http_options=gemini.http_options)
    try:
        return client.models.generate_content(model=MODEL, contents="hi")
    finally:
        client.close()


def fail(gemini: FakeGemini, manager: KeyManager, reply: Any, label: str = "a") -> Any:
    """Send once with the key of *label*, which answers with *reply*; report the result."""
    gemini.script(label, reply)
    key = manager.select_key(MODEL)
    with pytest.raises(errors.APIError) as caught:
        generate(gemini, key.api_key)
    return manager.report_error(key.key_id, caught.value)


def test_a_selected_key_works_and_its_true_tokens_are_recorded(gemini, manager) -> None:
    """A success by hand counts requests and the tokens of the server."""
    key = manager.select_key(MODEL, tokens_needed=500)
    manager.report_success(key.key_id, response=generate(gemini, key.api_key))
    health = manager.get_health_status()[key.key_id]
    used = health["used"][MODEL]
    assert (used["requests_minute"], health["success_count"]) == (1, 1)
    assert 0 < used["tokens_minute"] < 500


def test_a_minute_quota_cools_the_key_down_and_the_other_is_selected(gemini, manager) -> None:
    """A 429 by hand follows the same table as one under install()."""
    report = fail(gemini, manager, Reply.QUOTA_MINUTE)
    assert (report.failure, report.try_another_key) == ("quota_minute", True)
    assert report.cooldown_until is not None
    assert manager.select_key(MODEL).key_id == "key_2"
    assert manager.get_health_status()["key_1"]["in_cooldown"]


def test_a_bad_request_penalizes_no_key_and_needs_no_other(gemini, manager) -> None:
    """The caller gets that another key would not help."""
    report = fail(gemini, manager, Reply.BAD_REQUEST)
    assert report == ("bad_request", False, None)
    assert not manager.get_health_status()["key_1"]["in_cooldown"]


def test_when_no_key_is_available_the_error_has_the_time_and_the_reasons(gemini, manager) -> None:
    """KeyPoolExhausted names every key, including those that the caller excluded."""
    fail(gemini, manager, Reply.QUOTA_MINUTE)
    with pytest.raises(KeyPoolExhausted) as caught:
        manager.select_key(MODEL, exclude=("key_1", "key_2"))
    assert caught.value.code == 429
    assert caught.value.reasons["key_1"].startswith("quota_minute until 2026-11-25T12:01:")
    assert caught.value.reasons["key_2"].startswith("excluded")
    with pytest.raises(errors.ClientError):
        manager.select_key(MODEL, exclude=("key_2",))


def test_all_rejected_is_an_auth_error_and_shows_no_key(gemini, manager) -> None:
    """When every key is rejected the code is Google's, and no value is shown."""
    for label in "ab":
        fail(gemini, manager, Reply.KEY_INVALID, label)
    with pytest.raises(KeyPoolExhausted) as caught:
        manager.select_key(MODEL)
    assert caught.value.code == 400
    assert caught.value.reasons["key_1"].startswith("key_invalid, rejected; replace its value;")
    values = [gemini.key(label).value for label in "ab"]
    assert not any(value in repr(caught.value) + str(caught.value) for value in values)


def test_a_selected_key_does_not_print_its_value(manager) -> None:
    """The value of a key is not in its repr."""
    key = manager.select_key()
    assert key.api_key not in repr(key)


def test_a_selected_key_cannot_be_pickled(manager) -> None:
    """Its value is not sent to another process or a cache by accident."""
    key = manager.select_key()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(key)


@pytest.mark.parametrize("tokens", [-5, "12", 1.5])
def test_wrong_numbers_of_tokens_are_refused_and_change_nothing(manager, tokens) -> None:
    """The error names what is allowed, and the windows are unchanged."""
    key = manager.select_key(MODEL, tokens_needed=100)
    before = manager.get_health_status()
    with pytest.raises(
        ValueError, match=r"^tokens_needed: found .*; allowed: a whole number from 0"
    ):
        manager.select_key(MODEL, tokens_needed=tokens)
    with pytest.raises(ValueError, match=r"^tokens_used: found .*; allowed: a whole number from 0"):
        manager.report_success(key.key_id, tokens_used=tokens)
    assert manager.get_health_status() == before
    manager.report_success(key.key_id, tokens_used=90)
    assert manager.get_health_status()[key.key_id]["used"][MODEL]["tokens_minute"] == 90


def test_one_id_alone_may_be_excluded(manager) -> None:
    """A text is one id, not its letters."""
    assert manager.select_key(MODEL, exclude="key_1").key_id == "key_2"


def test_an_error_without_a_selection_is_recorded(manager) -> None:
    """A report without a selection cools the key down, and raises nothing."""
    error = errors.ClientError(429, {"error": {"code": 429, "message": "slow", "status": "x"}})
    assert manager.report_error("key_1", error).failure == "capacity"
    assert manager.get_health_status()["key_1"]["in_cooldown"]
    with pytest.raises(KeyError, match="there are: key_1, key_2"):
        manager.report_error("key_9", error)


def test_limits_hold_for_threads_that_select_by_hand(only_key) -> None:
    """Twenty are leased of a limit of twenty, to eight threads together."""
    manager = only_key(rpm=20)
    leased: list[str] = []

    def choose() -> None:
        for _ in range(20):
            try:
                leased.append(manager.select_key(MODEL).key_id)
            except KeyPoolExhausted:
                return

    threads = [threading.Thread(target=choose) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leased) == 20


def test_a_selection_that_is_never_reported_is_released(only_key, clock) -> None:
    """A selection that is never reported holds its slot for ten minutes, not forever."""
    manager = only_key(max_concurrency=1)
    manager.select_key(MODEL)
    with pytest.raises(KeyPoolExhausted):
        manager.select_key(MODEL)
    clock.advance(601)
    assert manager.select_key(MODEL).key_id == "key_1"


def test_a_probe_is_not_over_when_its_key_is_handed_out(gemini, only_key, clock) -> None:
    """Behind a cooldown the first selection goes alone: nothing is known before its report."""
    manager = only_key()
    fail(gemini, manager, Reply.QUOTA_MINUTE)
    clock.advance(120)
    with manager.lease(MODEL):
        with pytest.raises(KeyPoolExhausted) as caught:
            manager.select_key(MODEL)
        assert caught.value.reasons["key_1"].startswith("probe until")
    assert manager.select_key(MODEL).key_id == "key_1"


def test_a_manager_that_is_dropped_releases_its_selections(only_key) -> None:
    """Nobody can report them any more."""
    manager = only_key(max_concurrency=1)
    other = KeyManager(manager._pool)
    other.select_key(MODEL)
    with pytest.raises(KeyPoolExhausted):
        manager.select_key(MODEL)
    del other
    gc.collect()
    assert manager.select_key(MODEL).key_id == "key_1"


def test_the_process_wide_manager_shares_the_installed_pool(gemini, clock) -> None:
    """The manager knows what a call under install() learned, and the other way round."""
    keys = [gemini.key(label).value for label in "ab"]
    keyrot_middleware.install(
        clock=clock, keys=keys, allowed_hosts=(gemini.host,), strategy="fill", max_wait_s=0
    )
    try:
        manager = get_key_manager()
        assert manager is get_key_manager()
        with keyrot_middleware.bypass():
            fail(gemini, manager, Reply.KEY_INVALID)
        client = genai.Client(http_options=gemini.http_options)
        assert client.models.generate_content(model=MODEL, contents="hi").text == "ok from b"
        assert keyrot_middleware.status()["keys"]["key_1"]["disabled_reason"] == "key_invalid"
    finally:
        keyrot_middleware.uninstall()


def test_without_install_one_pool_is_opened_once(monkeypatch) -> None:
    """Otherwise each call would look up all keys again, and start threads that never stop."""
    opened: list[Any] = []

    def counted(*args: Any, **more: Any) -> Any:
        opened.append(_install.open_pool(*args, **more))
        return opened[-1]

    monkeypatch.setattr(manager_module, "_shared", {})
    monkeypatch.setattr(manager_module, "open_pool", counted)
    monkeypatch.setenv("GEMINI_API_KEYS", "FAKE-one,FAKE-two")
    first = get_key_manager()
    assert [get_key_manager() is first for _ in range(3)] == [True] * 3
    monkeypatch.setenv("KEYROT_STRATEGY", "none of them")
    assert get_key_manager() is first, "settings are read once"
    assert len(opened) == 1
    opened[0].close()


@pytest.mark.usefixtures("clean_environment")
def test_a_closed_manager_leaves_no_thread_and_no_open_selection() -> None:
    """Its own pool is closed with it; the process-wide manager is opened again."""
    before = set(threading.enumerate())
    with KeyManager(keys=["FAKE-key-one"], max_wait_s=0) as manager:
        manager.select_key(MODEL)
        health = manager.get_health_status
    assert manager.closed
    assert health()["key_1"]["success_count"] == 0
    wait_for(lambda: set(threading.enumerate()) <= before)


def test_closing_a_manager_of_the_installed_pool_leaves_the_pool(gemini, clock) -> None:
    """It is the pool of `install()`, which stays open; the next manager is another one."""
    keyrot_middleware.install(clock=clock, keys=[gemini.key("a").value])
    try:
        first = get_key_manager()
        first.close()
        second = get_key_manager()
        assert second is not first
        assert second.select_key(MODEL).key_id == "key_1"
    finally:
        keyrot_middleware.uninstall()


def test_without_any_key_the_error_names_what_to_set() -> None:
    """A manager without keys raises an error that names what to set."""
    with pytest.raises(keyrot_middleware.ConfigError, match="GEMINI_API_KEYS"):
        KeyManager()


def test_switched_off_there_is_nothing_to_select(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the switch, and not the keys, which are there."""
    monkeypatch.setenv("GEMINI_API_KEYS", "FAKE-one")
    monkeypatch.setenv("ENABLE_KEY_ROTATION", "false")
    for make in (keyrot_middleware.KeyManager, keyrot_middleware.get_key_manager):
        with pytest.raises(keyrot_middleware.ConfigError, match="off by ENABLE_KEY_ROTATION"):
            make()
    assert keyrot_middleware.KeyManager(enabled=True).select_key().key_id == "key_1"
