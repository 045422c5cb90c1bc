"""An internal error of state, secrets or telemetry does not reach the call."""

from typing import Any

import pytest
from google.genai import types
from support.modes import MODES, ask, calls, spread

from keyrot_middleware import errors
from keyrot_middleware.testing import Reply


class InternalError(Exception):
    """An error inside one of our components."""


def breaks(*_: Any, **__: Any) -> Any:
    raise InternalError("secret FAKE-value in a message")


class Broken:
    """A sink that fails in one of its methods."""

    thorough = True

    def __init__(self, door: str) -> None:
        self._door = door

    def __getattr__(self, name: str) -> Any:
        if name == self._door:
            return breaks
        return (lambda *_: self) if name == "observe" else (lambda *_: None)


SINK = ["observe", "before", "after", "attach", "detach", "finish"]
DOORS = ["acquire", "settle", "refresh", *SINK]


@pytest.fixture
def lenient(monkeypatch) -> None:
    """Switch the strict guard off, as in a program."""
    monkeypatch.setattr(errors, "_strict", False)


@pytest.fixture
def break_door(gemini, pool, monkeypatch) -> Any:
    """Install a pool of which one method fails; A = 429, B = invalid, C serves."""

    def install(door: str) -> None:
        made = pool("A", "B", "C", strategy="fill")
        pool.ledger.checked = False
        gemini.always("A", Reply.QUOTA_MINUTE)
        gemini.always("B", Reply.KEY_INVALID)
        if door in SINK:
            made.observers = (Broken(door), *made.observers)
        else:
            owner = type(made.secrets) if door == "refresh" else made.state
            monkeypatch.setattr(owner, door, breaks)

    return install


@pytest.mark.parametrize(("mode", "door"), spread(MODES, DOORS))
def test_a_call_goes_on_without_it(
    mode, door, gemini, break_door, connect, lenient, caplog
) -> None:
    """A failed key is excluded all the same, and the log names the component, not its message."""
    break_door(door)
    assert ask(mode, connect()) == "ok from C"
    assert [request.key for request in gemini.log] == ["A", "B", "C"]
    assert "failed (<class" in caplog.text
    assert "FAKE-value" not in caplog.text, "a foreign message may hold a secret"


@pytest.mark.parametrize("mode", MODES)
def test_without_owners_the_home_key_serves(
    mode, gemini, pool, connect, lenient, monkeypatch
) -> None:
    """A prompt with a file uses the client's own key, as without us."""
    made = pool("A", "B")
    monkeypatch.setattr(made.state, "get_owner", breaks)
    part = types.Part.from_uri(file_uri=f"{gemini.url}/v1beta/files/abc", mime_type="text/plain")
    (error,) = calls(mode, connect(gemini.key("B").value), 1, contents=["look", part])
    assert (error.code, [request.key for request in gemini.log]) == (403, ["B"])


@pytest.mark.parametrize("mode", MODES)
def test_an_unreadable_request_is_unchanged(
    mode, gemini, pool, connect, lenient, monkeypatch
) -> None:
    """As the SDK sends it, with the client's own key."""
    pool("A")
    monkeypatch.setattr("keyrot_middleware.clients.call.parse_body", breaks)
    assert ask(mode, connect(gemini.add_key("own").value)) == "ok from own"
