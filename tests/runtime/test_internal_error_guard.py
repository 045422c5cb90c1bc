"""An internal error of state or secrets does not fail a call; our own tests raise it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from support.pool import INFO, Rig, key
from support.replies import OK, Chunks, invalid

from keyrot_middleware import errors
from keyrot_middleware.errors import handle_internal_error, raise_internal_errors

ROOMS = ("acquire", "settle", "get_owner", "refresh")
HIDDEN = "FAKE-secret-of-the-library"


class BrokenError(Exception):
    """An internal error."""


@pytest.fixture
def rig() -> Rig:
    """Make a pool of two keys."""
    return Rig(key("a"), key("b"), strategy="fill")


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Continue after internal errors, as in the user's process."""
    monkeypatch.setattr(errors, "_strict", False)


def break_component(rig: Rig, component: str) -> None:
    """Let one component of the pool raise."""

    def broken(*_: Any, **__: Any) -> Any:
        raise BrokenError(HIDDEN)

    setattr(rig.pool.secrets if component == "refresh" else rig.state, component, broken)


def info(component: str) -> Any:
    """Use something that calls *component*."""
    return (
        INFO._replace(bound_to_owner=True, resources=("files/x",))
        if component == "get_owner"
        else INFO
    )


@pytest.mark.parametrize("component", ROOMS)
@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.usefixtures("lenient")
async def test_an_internal_error_never_reaches_the_call(
    rig: Rig, component: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The call continues without the component; a warning names it, without the error's text."""
    break_component(rig, component)
    if component == "refresh":
        rig.will("a", invalid())
    home = rig.selector.keys["a"]
    with caplog.at_level(logging.WARNING):
        reply = (
            rig.call(info(component), home)
            if way == "sync"
            else await rig.acall(info(component), home)
        )
    assert reply == "answer"
    assert f"failed ({BrokenError} at" in caplog.text
    assert "test_internal_error_guard.py:" in caplog.text
    assert HIDDEN not in caplog.text


@pytest.mark.parametrize("component", ROOMS)
@pytest.mark.parametrize("way", ["sync", "async"])
async def test_an_internal_error_is_raised_in_our_own_tests(
    rig: Rig, component: str, way: str
) -> None:
    """The guard must hide nothing from this suite."""
    break_component(rig, component)
    rig.will("a", invalid() if component == "refresh" else OK)
    with pytest.raises(BrokenError):
        _ = rig.call(info(component)) if way == "sync" else await rig.acall(info(component))


@pytest.mark.usefixtures("lenient")
async def test_a_call_without_a_state_uses_the_pool_without_reservations(rig: Rig) -> None:
    """Each call still excludes failed keys; a lease without a reservation is not settled."""
    break_component(rig, "acquire")
    for call in (rig.call, None):
        rig.will("a", invalid())
        reply = call() if call else await rig.acall()
        assert reply == "answer"
    assert rig.sent == ["a", "b", "a", "b"]
    assert rig.state.settled == []


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("component", ["acquire", "settle"])
async def test_dropping_a_stream_survives_an_internal_error(rig: Rig, component: str) -> None:
    """Closing an unread stream raises nothing, even while the state is down."""
    break_component(rig, component)
    rig.will("a", Chunks(1))
    await (await rig.aopen()).aclose()


@pytest.mark.usefixtures("lenient")
def test_an_error_outside_of_a_handler_is_still_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Without a current exception the component is named."""
    handle_internal_error("telemetry")
    assert "telemetry failed" in caplog.text


@pytest.mark.usefixtures("lenient")
def test_raising_ends_with_its_block(rig: Rig) -> None:
    """`raise_internal_errors()` raises inside its block, and continues after it."""
    break_component(rig, "acquire")
    for _ in range(2):
        with pytest.raises(BrokenError), raise_internal_errors(), raise_internal_errors():
            rig.call()
        assert rig.call() == "answer"


class RecordingObserver:
    """Records the commands of a call."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def before(self, command: Any) -> None:
        """Record the command."""
        self.events.append(type(command).__name__)

    def after(self, command: Any, reply: Any) -> None:
        """Record an exception."""
        if isinstance(reply, BaseException):
            self.events.append(type(reply).__name__)

    def attach(self) -> object:
        """Record it."""
        self.events.append("(")
        return self

    def detach(self, token: object) -> None:
        """Record it."""
        assert token is self
        self.events.append(")")

    def finish(self, error: BaseException | None) -> None:
        """Record it."""
        self.events.append(type(error).__name__ if error else "end")


SENT = ["Acquire", "Send", "(", ")", "Settle"]


def _call(rig: Rig, way: str, observer: RecordingObserver) -> Any:
    if way == "sync":
        return rig.call(observer=observer)
    return asyncio.run(rig.acall(observer=observer))


@pytest.mark.parametrize("way", ["sync", "async"])
def test_an_observer_sees_every_command(rig: Rig, way: str) -> None:
    """Each command before and after, attached only while the SDK works, and the end, once."""
    observer = RecordingObserver()
    rig.will("a", invalid())
    _call(rig, way, observer)
    assert observer.events == [*SENT, "Refresh", *SENT, "end"]


@pytest.mark.parametrize("way", ["sync", "async"])
def test_an_observer_sees_an_interruption(rig: Rig, way: str) -> None:
    """The command that raised, its exception, the settle, and the end with the exception."""
    observer = RecordingObserver()

    def stop() -> Any:
        raise KeyboardInterrupt

    rig.will("a", stop)
    with pytest.raises(KeyboardInterrupt):
        _call(rig, way, observer)
    assert observer.events == [*SENT[:-1], "KeyboardInterrupt", "Settle", "KeyboardInterrupt"]


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_stream_is_attached_only_while_the_sdk_works(rig: Rig, way: str) -> None:
    """The attempt is current while a chunk is read, not while the caller has it."""
    observer = RecordingObserver()
    rig.will("a", Chunks(1, 2))
    seen = []

    def read(chunk: int) -> None:
        seen.append((chunk, observer.events.count("("), observer.events.count(")")))

    if way == "sync":
        for chunk in rig.open(observer=observer):
            read(chunk)
    else:
        async for chunk in await rig.aopen(observer=observer):
            read(chunk)
    assert seen == [(1, 2, 2), (2, 3, 3)]
    assert observer.events[-2:] == ["Settle", "end"]
