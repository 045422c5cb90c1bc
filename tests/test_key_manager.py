"""KeyManager: the pool for programs that select keys by hand."""

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from google import genai
from google.genai import errors
from support.fake_settings import write_keys

import keyrot_middleware
from keyrot_middleware import KeyManager, KeyPoolExhausted, KeyrotError, _install, get_key_manager
from keyrot_middleware import key_manager as manager_module
from keyrot_middleware.testing import FakeClock, FakeGemini, Reply

MODEL = "gemini-3.1-flash-lite"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(start=datetime(2026, 11, 25, 12, 0, 10, tzinfo=UTC))


@pytest.fixture
def gemini(clock) -> Any:
    with FakeGemini(clock=clock) as server:
        for label in "ab":
            server.add_key(label)
        yield server


@pytest.fixture
def manager(gemini, clock) -> KeyManager:
    keys = [gemini.key(label).value for label in "ab"]
    return KeyManager(clock=clock, keys=keys, strategy="fill")


@pytest.fixture
def only_key(gemini, clock, tmp_path, monkeypatch) -> Callable[..., KeyManager]:
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
    assert key.api_key not in repr(key)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(key)
    manager.report_success(key.key_id, response=generate(gemini, key.api_key))
    health = manager.get_health_status()[key.key_id]
    used = health["used"][MODEL]
    assert (used["requests_minute"], health["success_count"]) == (1, 1)
    assert 0 < used["tokens_minute"] < 500


def test_when_no_key_is_available_the_error_has_the_time_and_the_reasons(gemini, manager) -> None:
    """KeyPoolExhausted names every key, including those that the caller excluded."""
    fail(gemini, manager, Reply.QUOTA_MINUTE)
    with pytest.raises(KeyPoolExhausted) as caught:
        manager.select_key(MODEL, exclude=("key_1", "key_2"))
    assert caught.value.code == 429
    assert caught.value.reasons["key_1"].startswith("excluded")
    with pytest.raises(KeyPoolExhausted) as caught:
        manager.select_key(MODEL, exclude=("key_2",))
    assert caught.value.reasons["key_1"].startswith("quota_minute until 2026-11-25 12:01:")
    assert caught.value.reasons["key_2"].startswith("excluded")


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


def test_a_selection_that_is_never_reported_is_released(only_key, clock) -> None:
    """A selection that is never reported holds its slot for ten minutes, not forever."""
    manager = only_key(max_concurrency=1)
    manager.select_key(MODEL)
    with pytest.raises(KeyPoolExhausted):
        manager.select_key(MODEL)
    clock.advance(601)
    assert manager.select_key(MODEL).key_id == "key_1"


def test_a_report_without_a_selection_names_the_failure(manager) -> None:
    """It changes nothing: the key is judged where a selection of it is open."""
    text = "Your API key was reported as leaked. Please use another API key."
    error = errors.ClientError(403, {"error": {"code": 403, "message": text}})
    assert manager.report_error("key_1", error) == ("key_leaked", True, None)
    assert manager.get_health_status()["key_1"]["available"]
    manager.report_success("key_1", 5)
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
        with genai.Client(http_options=gemini.http_options) as client:
            answer = client.models.generate_content(model=MODEL, contents="hi")
        assert answer.text == "ok from b"
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


def test_without_any_key_the_error_names_what_to_set() -> None:
    """A manager without keys raises an error that names what to set."""
    with pytest.raises(keyrot_middleware.ConfigError, match="GEMINI_API_KEYS"):
        KeyManager()


def test_switched_off_there_is_nothing_to_select(monkeypatch) -> None:
    """The error names the switch, and not the keys, which are there."""
    monkeypatch.setenv("GEMINI_API_KEYS", "FAKE-one")
    monkeypatch.setenv("ENABLE_KEY_ROTATION", "false")
    for make in (keyrot_middleware.KeyManager, keyrot_middleware.get_key_manager):
        with pytest.raises(keyrot_middleware.ConfigError, match="off by ENABLE_KEY_ROTATION"):
            make()
    assert keyrot_middleware.KeyManager(enabled=True).select_key().key_id == "key_1"


@pytest.mark.usefixtures("clean_environment")
def test_explain_names_the_key_that_select_key_then_gives() -> None:
    """And has the reason why each other key is not used; negative tokens are refused."""
    manager = KeyManager(keys=["FAKE-key-one", "FAKE-key-two"], strategy="fill")
    assert manager.explain(MODEL)["key_id"] == manager.select_key(MODEL).key_id == "key_1"
    manager.report_error("key_1", TimeoutError())
    found = manager.explain(MODEL, 5)
    assert [key["available"] for key in found["keys"]] == [True, True]
    with pytest.raises(KeyrotError, match="whole numbers"):
        manager.explain(MODEL, -1)
