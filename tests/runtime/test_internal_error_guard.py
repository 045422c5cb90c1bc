"""We are never the outage: a fault of state or secrets is survived, and raised in our own tests."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from support.pool import INFO, STREAMED, Rig, key
from support.replies import OK, Chunks, invalid

from keyrot_middleware import guard
from keyrot_middleware.core.flow import call_flow
from keyrot_middleware.guard import handle_internal_error, raise_internal_errors
from keyrot_middleware.runtime import aio, sync

ROOMS = ("acquire", "settle", "get_owner", "refresh")
HIDDEN = "FAKE-secret-of-the-library"


class BrokenError(Exception):
    """A fault of ours."""


@pytest.fixture
def rig() -> Rig:
    """Make a pool of two keys."""
    return Rig(key("a"), key("b"), strategy="fill")


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Survive faults, as in the user's process."""
    monkeypatch.setattr(guard, "_strict", False)


def break_(rig: Rig, room: str) -> None:
    """Let one room of the pool raise."""

    def broken(*_: Any, **__: Any) -> Any:
        raise BrokenError(HIDDEN)

    setattr(rig.pool.secrets if room == "refresh" else rig.state, room, broken)


def info(room: str) -> Any:
    """Ask something that visits *room*."""
    return (
        INFO._replace(bound_to_owner=True, resources=("files/x",)) if room == "get_owner" else INFO
    )


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.usefixtures("lenient")
async def test_a_fault_never_reaches_the_call(
    rig: Rig, room: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The call goes on without what is broken; a warning says where, and shows no text of it."""
    break_(rig, room)
    if room == "refresh":
        rig.will("a", invalid())
    home = rig.selector.keys["a"]
    with caplog.at_level(logging.WARNING):
        reply = rig.call(info(room), home) if way == "sync" else await rig.acall(info(room), home)
    assert reply == "answer"
    assert f"failed ({BrokenError} at" in caplog.text
    assert "test_internal_error_guard.py:" in caplog.text
    assert HIDDEN not in caplog.text


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("way", ["sync", "async"])
async def test_in_our_own_tests_a_fault_is_raised(rig: Rig, room: str, way: str) -> None:
    """The guard must hide nothing from this suite."""
    break_(rig, room)
    rig.will("a", invalid() if room == "refresh" else OK)
    with pytest.raises(BrokenError):
        _ = rig.call(info(room)) if way == "sync" else await rig.acall(info(room))


@pytest.mark.usefixtures("lenient")
async def test_a_call_without_a_state_walks_the_pool_without_a_booking(rig: Rig) -> None:
    """Degraded, each call still excludes what failed; nothing is settled that was not lent."""
    break_(rig, "acquire")
    for call in (rig.call, None):
        rig.will("a", invalid())
        reply = call() if call else await rig.acall()
        assert reply == "answer"
    assert rig.sent == ["a", "b", "a", "b"]
    assert rig.state.settled == []


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("room", ["acquire", "settle"])
async def test_a_dropped_stream_survives_a_fault(rig: Rig, room: str) -> None:
    """Closing a stream that nobody read raises nothing, even while the state is down."""
    break_(rig, room)
    rig.will("a", Chunks(1))
    flow = call_flow(rig.make(STREAMED))
    await (await aio.run_stream(flow, aio.AsyncDriver(rig.pool, INFO, rig.asend))).aclose()


@pytest.mark.usefixtures("lenient")
def test_a_fault_outside_of_a_handler_is_still_announced(caplog: pytest.LogCaptureFixture) -> None:
    """Without an exception at hand the room is named."""
    handle_internal_error("telemetry")
    assert "telemetry failed" in caplog.text


@pytest.mark.usefixtures("lenient")
def test_strictness_ends_with_its_block(rig: Rig) -> None:
    """`raise_internal_errors()` raises inside, and survives again after it."""
    break_(rig, "acquire")
    for _ in range(2):
        with pytest.raises(BrokenError), raise_internal_errors(), raise_internal_errors():
            rig.call()
        assert rig.call() == "answer"


class Watcher:
    """Follows a call, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def before(self, command: Any) -> None:
        """Note."""
        self.told.append(type(command).__name__)

    def after(self, command: Any, reply: Any) -> None:
        """Note an exception."""
        if isinstance(reply, BaseException):
            self.told.append(type(reply).__name__)

    def attach(self) -> object:
        """Note."""
        self.told.append("(")
        return self

    def detach(self, token: object) -> None:
        """Note."""
        assert token is self
        self.told.append(")")

    def finish(self, error: BaseException | None) -> None:
        """Note."""
        self.told.append(type(error).__name__ if error else "end")


SENT = ["Acquire", "Send", "(", ")", "Settle"]


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_watch_is_told_of_every_command(rig: Rig, way: str) -> None:
    """Each command before and after, attached only while the SDK works, and the end, once."""
    watcher, flow = Watcher(), call_flow(rig.make())
    rig.will("a", invalid())
    if way == "sync":
        sync.run(flow, sync.SyncDriver(rig.pool, INFO, rig.send, watcher))
    else:
        await aio.run(flow, aio.AsyncDriver(rig.pool, INFO, rig.asend, watcher))
    failed, served = [*SENT[:-1], "GetTime", "Settle"], SENT
    assert watcher.told == ["GetTime", *failed, "Refresh", "GetTime", *served, "end"]


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_watch_is_told_of_what_interrupts(rig: Rig, way: str) -> None:
    """The command that raised, its exception, the settle, and the end with the exception."""
    watcher, flow = Watcher(), call_flow(rig.make())

    def stop(_: Any) -> Any:
        raise KeyboardInterrupt

    async def astop(_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        if way == "sync":
            sync.run(flow, sync.SyncDriver(rig.pool, INFO, stop, watcher))
        else:
            await aio.run(flow, aio.AsyncDriver(rig.pool, INFO, astop, watcher))
    sent = ["GetTime", "Acquire", "Send", "(", ")"]
    assert watcher.told == [*sent, "KeyboardInterrupt", "Settle", "KeyboardInterrupt"]


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_a_stream_is_watched_while_the_sdk_works_and_no_longer(rig: Rig, way: str) -> None:
    """The attempt is current for each chunk that is waited for, not while the caller has it."""
    watcher, flow = Watcher(), call_flow(rig.make(STREAMED))
    rig.will("a", Chunks(1, 2))
    seen = []
    if way == "sync":
        for chunk in sync.run_stream(flow, sync.SyncDriver(rig.pool, INFO, rig.send, watcher)):
            seen.append((chunk, watcher.told.count("("), watcher.told.count(")")))
    else:
        performer = aio.AsyncDriver(rig.pool, INFO, rig.asend, watcher)
        async for chunk in await aio.run_stream(flow, performer):
            seen.append((chunk, watcher.told.count("("), watcher.told.count(")")))
    assert seen == [(1, 2, 2), (2, 3, 3)]
    assert watcher.told[-2:] == ["Settle", "end"]
