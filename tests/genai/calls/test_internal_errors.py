"""An internal error of state, secrets or telemetry does not reach the call."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from google.genai import types
from support.modes import MODEL, MODES, ask, calls, run

import keyrot_middleware
from keyrot_middleware import guard
from keyrot_middleware.testing import Reply


class InternalError(Exception):
    """An error inside one of our components."""


def breaks(*_: Any, **__: Any) -> Any:
    """Raise it."""
    raise InternalError("secret FAKE-value in a message")


@pytest.fixture
def lenient(monkeypatch) -> None:
    """Switch the strict guard off, as in a program."""
    monkeypatch.setattr(guard, "_strict", False)


@pytest.mark.parametrize("door", ["acquire", "settle"])
@pytest.mark.parametrize("mode", MODES)
def test_a_broken_state_does_not_reach_the_call(
    mode, door, gemini, pool, connect, lenient, monkeypatch, caplog
) -> None:
    """The call is still sent with a key of the pool, and the log names the broken component."""
    made = pool("A", "B")
    pool.ledger.checked = False
    monkeypatch.setattr(made.state, door, breaks)
    assert ask(mode, connect()) in ("ok from A", "ok from B")
    assert gemini.count() == 1
    assert "state failed" in caplog.text
    assert "FAKE-value" not in caplog.text, "a foreign message may hold a secret"


@pytest.mark.parametrize("mode", MODES)
def test_rotation_continues_without_the_state(
    mode, gemini, pool, connect, lenient, monkeypatch
) -> None:
    """Even then a failed key is excluded for the rest of the call."""
    made = pool("A", "B", "C", strategy="fill")
    pool.ledger.checked = False
    monkeypatch.setattr(made.state, "acquire", breaks)
    gemini.always("A", Reply.QUOTA_MINUTE)
    gemini.always("B", Reply.KEY_INVALID)
    assert ask(mode, connect()) == "ok from C"
    assert [request.key for request in gemini.log] == ["A", "B", "C"]


@pytest.mark.parametrize("mode", MODES)
def test_a_broken_owner_table_means_the_home_key(
    mode, gemini, pool, connect, lenient, monkeypatch
) -> None:
    """A prompt with a file uses the client's own key, as without us."""
    made = pool("A", "B")
    monkeypatch.setattr(made.state, "get_owner", breaks)
    part = types.Part.from_uri(file_uri=f"{gemini.url}/v1beta/files/abc", mime_type="text/plain")
    (error,) = calls(mode, connect(gemini.key("B").value), 1, contents=["look", part])
    assert (error.code, [request.key for request in gemini.log]) == (403, ["B"])


@pytest.mark.parametrize("mode", MODES)
def test_a_broken_secret_store_does_not_reach_the_call(
    mode, gemini, pool, connect, lenient, monkeypatch
) -> None:
    """A rejected key is looked up again; when that fails, the next key serves."""
    made = pool("A", "B", strategy="fill")
    monkeypatch.setattr(type(made.secrets), "refresh", breaks)
    gemini.always("A", Reply.KEY_INVALID)
    assert ask(mode, connect()) == "ok from B"


class Broken:
    """A sink that fails in one of its methods."""

    thorough = True

    def __init__(self, door: str) -> None:
        self._door = door

    def __getattr__(self, name: str) -> Any:
        if name == self._door:
            return breaks
        return (lambda *_: self) if name == "observe" else (lambda *_: None)


DOORS = ["observe", "before", "after", "attach", "detach", "finish"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("mode", MODES)
def test_broken_telemetry_does_not_reach_the_call(
    mode, door, gemini, pool, connect, lenient
) -> None:
    """Whichever method of a sink fails, the calls rotate, and the other sinks are notified."""
    made = pool("A", "B", strategy="fill")
    made.observers = (Broken(door), *made.observers)
    gemini.always("A", Reply.QUOTA_MINUTE)
    client = connect()
    assert [ask(mode, client) for _ in range(2)] == ["ok from B"] * 2


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("mode", MODES)
def test_broken_telemetry_is_raised_in_our_own_tests(mode, door, pool, connect) -> None:
    """Inside raise_internal_errors() the guard hides nothing."""
    made = pool("A")
    pool.ledger.checked = False
    made.observers = (Broken(door),)
    with pytest.raises(InternalError):
        ask(mode, connect())
    gc.collect()


@pytest.mark.parametrize("door", ["acquire", "settle"])
@pytest.mark.parametrize("mode", MODES)
def test_a_broken_state_is_raised_in_our_own_tests(mode, door, pool, connect, monkeypatch) -> None:
    """Inside raise_internal_errors() the guard hides nothing."""
    made = pool("A")
    pool.ledger.checked = False
    monkeypatch.setattr(made.state, door, breaks)
    with pytest.raises(InternalError):
        ask(mode, connect())


@pytest.mark.parametrize("mode", MODES)
def test_a_broken_secret_store_is_raised_in_our_own_tests(
    mode, gemini, pool, connect, monkeypatch
) -> None:
    """Inside raise_internal_errors() the guard hides nothing."""
    made = pool("A", "B", strategy="fill")
    monkeypatch.setattr(type(made.secrets), "refresh", breaks)
    gemini.always("A", Reply.KEY_INVALID)
    with pytest.raises(InternalError):
        ask(mode, connect())


@pytest.mark.parametrize("mode", MODES)
def test_an_error_in_parsing_the_request_sends_it_unchanged(
    mode, gemini, pool, connect, lenient, monkeypatch
) -> None:
    """An unreadable request is sent as the SDK sends it, with the client's own key."""
    pool("A")
    monkeypatch.setattr("keyrot_middleware.http_clients.calls._call_info", breaks)
    assert ask(mode, connect(gemini.add_key("own").value)) == "ok from own"


def test_an_unread_async_stream_with_a_broken_state(pool, connect, lenient, monkeypatch) -> None:
    """Not even where it cannot be caught: in the collection of an unread stream."""
    made = pool("A")
    pool.ledger.checked = False
    client = connect()
    monkeypatch.setattr(made.state, "settle", breaks)

    async def leave() -> None:
        body = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
        path = f"models/{MODEL}:streamGenerateContent?alt=sse"
        await client._api_client.async_request_streamed("post", path, body, None)

    run(client, leave)
    gc.collect()


def test_a_new_value_of_a_rejected_key_is_used(gemini, pool, connect, monkeypatch) -> None:
    """Replaced in the store while the program runs: the call with the old one continues."""
    pool("A")
    client = connect()
    new = gemini.add_key("new").value
    gemini.always("A", Reply.KEY_INVALID)
    monkeypatch.setenv("GEMINI_KEY_A", new)
    assert ask("sync", client) == "ok from new"
    assert keyrot_middleware.status()["keys"]["A"]["active"] is True
