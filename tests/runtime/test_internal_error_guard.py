"""An internal error of state or secrets does not fail a call; our own tests raise it."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest
from support.pool import INFO, Rig, key
from support.replies import OK, Chunks, invalid

from keyrot_middleware import errors

ROOMS = ("acquire", "settle", "get_owner", "refresh")
HIDDEN = "FAKE-secret-of-the-library"


class BrokenError(Exception):
    """An internal error."""


@pytest.fixture
def rig() -> Rig:
    return Rig(key("a"), key("b"), strategy="fill")


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Continue after internal errors, as in the user's process."""
    monkeypatch.setattr(errors, "_strict", False)


def break_component(rig: Rig, component: str) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise BrokenError(HIDDEN)

    setattr(rig.pool.secrets if component == "refresh" else rig.state, component, broken)
    rig.will("a", invalid() if component == "refresh" else OK)


def info(component: str) -> Any:
    owned = INFO._replace(bound_to_owner=True, resources=("files/x",))
    return owned if component == "get_owner" else INFO


@pytest.mark.parametrize("component", ROOMS)
@pytest.mark.parametrize("way", ["sync", "async"])
async def test_an_internal_error_never_reaches_the_call(
    rig: Rig,
    component: str,
    way: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It continues; a warning names the component, without the error's text. Our tests raise."""
    break_component(rig, component)
    asked = info(component), rig.selector.keys["a"]
    with pytest.raises(BrokenError):
        _ = rig.call(*asked) if way == "sync" else await rig.acall(*asked)
    monkeypatch.setattr(errors, "_strict", False)
    rig = Rig(key("a"), key("b"), strategy="fill")
    break_component(rig, component)
    with caplog.at_level(logging.WARNING):
        assert (rig.call(*asked) if way == "sync" else await rig.acall(*asked)) == "answer"
    assert f"failed ({BrokenError} at" in caplog.text
    assert "test_internal_error_guard.py:" in caplog.text
    assert HIDDEN not in caplog.text


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_call_without_a_state_uses_the_pool_without_reservations(rig, way) -> None:
    """Each call still excludes failed keys; a lease without a reservation is not settled."""
    break_component(rig, "acquire")
    rig.script.clear()
    rig.will("a", invalid())
    assert (rig.call() if way == "sync" else await rig.acall()) == "answer"
    assert rig.sent == ["a", "b"]
    assert rig.ledger.outcomes == []


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("component", ["acquire", "settle"])
async def test_dropping_a_stream_survives_an_internal_error(rig: Rig, component: str) -> None:
    """Closing an unread stream raises nothing, even while the state is down."""
    break_component(rig, component)
    rig.script.clear()
    rig.will("a", Chunks(1))
    await (await rig.aopen()).aclose()


# What an observer sees -------------------------------------------------------------------------


class RecordingObserver:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def before(self, command: Any) -> None:
        self.events.append(type(command).__name__)

    def after(self, command: Any, reply: Any) -> None:
        if isinstance(reply, BaseException):
            self.events.append(type(reply).__name__)

    def attach(self) -> object:
        self.events.append("(")
        return self

    def detach(self, token: object) -> None:
        assert token is self
        self.events.append(")")

    def finish(self, error: BaseException | None, record: Any) -> None:
        self.events.append(type(error).__name__ if error else "end")


SENT = ["Acquire", "Send", "(", ")", "Settle"]


@pytest.mark.parametrize("way", ["sync", "async"])
def test_an_observer_sees_every_command_and_an_interruption(rig: Rig, way: str) -> None:
    """Each command before and after, attached only while the SDK works, and the end, once."""

    def events() -> list[Any]:
        observer = RecordingObserver()
        with suppress(KeyboardInterrupt):
            if way == "sync":
                rig.call(observer=observer)
            else:
                asyncio.run(rig.acall(observer=observer))
        return observer.events

    def stop() -> Any:
        raise KeyboardInterrupt

    rig.will("a", invalid())
    rig.will("b", OK, stop)
    assert events() == [*SENT, "Refresh", *SENT, "end"]
    assert events() == [*SENT[:-1], "KeyboardInterrupt", "Settle", "KeyboardInterrupt"]
