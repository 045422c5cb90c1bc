from keyrot_middleware.core.activity import CallRecord
"""An internal error of state or secrets does not fail a call; our own tests raise it."""
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
import asyncio
from keyrot_middleware.core.activity import CallRecord
import logging
from keyrot_middleware.core.activity import CallRecord
from contextlib import suppress
from keyrot_middleware.core.activity import CallRecord
from typing import Any
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
import pytest
from keyrot_middleware.core.activity import CallRecord
from support.pool import INFO, Rig, key
from keyrot_middleware.core.activity import CallRecord
from support.replies import OK, Chunks, invalid
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
from keyrot_middleware import errors
from keyrot_middleware.core.activity import CallRecord
from keyrot_middleware.errors import handle_internal_error, raise_internal_errors
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
ROOMS = ("acquire", "settle", "get_owner", "refresh")
from keyrot_middleware.core.activity import CallRecord
HIDDEN = "FAKE-secret-of-the-library"
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
class BrokenError(Exception):
from keyrot_middleware.core.activity import CallRecord
    """An internal error."""
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
@pytest.fixture
from keyrot_middleware.core.activity import CallRecord
def rig() -> Rig:
from keyrot_middleware.core.activity import CallRecord
    return Rig(key("a"), key("b"), strategy="fill")
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
@pytest.fixture
from keyrot_middleware.core.activity import CallRecord
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
from keyrot_middleware.core.activity import CallRecord
    """Continue after internal errors, as in the user's process."""
from keyrot_middleware.core.activity import CallRecord
    monkeypatch.setattr(errors, "_strict", False)
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
def break_component(rig: Rig, component: str) -> None:
from keyrot_middleware.core.activity import CallRecord
    def broken(*_: Any, **__: Any) -> Any:
from keyrot_middleware.core.activity import CallRecord
        raise BrokenError(HIDDEN)
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
    setattr(rig.pool.secrets if component == "refresh" else rig.state, component, broken)
from keyrot_middleware.core.activity import CallRecord
    rig.will("a", invalid() if component == "refresh" else OK)
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
def info(component: str) -> Any:
from keyrot_middleware.core.activity import CallRecord
    owned = INFO._replace(bound_to_owner=True, resources=("files/x",))
from keyrot_middleware.core.activity import CallRecord
    return owned if component == "get_owner" else INFO
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
@pytest.mark.parametrize("component", ROOMS)
from keyrot_middleware.core.activity import CallRecord
@pytest.mark.parametrize("way", ["sync", "async"])
from keyrot_middleware.core.activity import CallRecord
async def test_an_internal_error_never_reaches_the_call(
from keyrot_middleware.core.activity import CallRecord
    rig: Rig,
from keyrot_middleware.core.activity import CallRecord
    component: str,
from keyrot_middleware.core.activity import CallRecord
    way: str,
from keyrot_middleware.core.activity import CallRecord
    caplog: pytest.LogCaptureFixture,
from keyrot_middleware.core.activity import CallRecord
    monkeypatch: pytest.MonkeyPatch,
from keyrot_middleware.core.activity import CallRecord
) -> None:
from keyrot_middleware.core.activity import CallRecord
    """It continues; a warning names the component, without the error's text. Our tests raise."""
from keyrot_middleware.core.activity import CallRecord
    break_component(rig, component)
from keyrot_middleware.core.activity import CallRecord
    asked = info(component), rig.selector.keys["a"]
from keyrot_middleware.core.activity import CallRecord
    with pytest.raises(BrokenError):
from keyrot_middleware.core.activity import CallRecord
        _ = rig.call(*asked) if way == "sync" else await rig.acall(*asked)
from keyrot_middleware.core.activity import CallRecord
    monkeypatch.setattr(errors, "_strict", False)
from keyrot_middleware.core.activity import CallRecord
    rig = Rig(key("a"), key("b"), strategy="fill")
from keyrot_middleware.core.activity import CallRecord
    break_component(rig, component)
from keyrot_middleware.core.activity import CallRecord
    with caplog.at_level(logging.WARNING):
from keyrot_middleware.core.activity import CallRecord
        assert (rig.call(*asked) if way == "sync" else await rig.acall(*asked)) == "answer"
from keyrot_middleware.core.activity import CallRecord
    assert f"failed ({BrokenError} at" in caplog.text
from keyrot_middleware.core.activity import CallRecord
    assert "test_internal_error_guard.py:" in caplog.text
from keyrot_middleware.core.activity import CallRecord
    assert HIDDEN not in caplog.text
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
@pytest.mark.usefixtures("lenient")
from keyrot_middleware.core.activity import CallRecord
@pytest.mark.parametrize("way", ["sync", "async"])
from keyrot_middleware.core.activity import CallRecord
async def test_a_call_without_a_state_uses_the_pool_without_reservations(rig, way) -> None:
from keyrot_middleware.core.activity import CallRecord
    """Each call still excludes failed keys; a lease without a reservation is not settled."""
from keyrot_middleware.core.activity import CallRecord
    break_component(rig, "acquire")
from keyrot_middleware.core.activity import CallRecord
    rig.script.clear()
from keyrot_middleware.core.activity import CallRecord
    rig.will("a", invalid())
from keyrot_middleware.core.activity import CallRecord
    assert (rig.call() if way == "sync" else await rig.acall()) == "answer"
from keyrot_middleware.core.activity import CallRecord
    assert rig.sent == ["a", "b"]
from keyrot_middleware.core.activity import CallRecord
    assert rig.ledger.outcomes == []
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
@pytest.mark.usefixtures("lenient")
from keyrot_middleware.core.activity import CallRecord
@pytest.mark.parametrize("component", ["acquire", "settle"])
from keyrot_middleware.core.activity import CallRecord
async def test_dropping_a_stream_survives_an_internal_error(rig: Rig, component: str) -> None:
from keyrot_middleware.core.activity import CallRecord
    """Closing an unread stream raises nothing, even while the state is down."""
from keyrot_middleware.core.activity import CallRecord
    break_component(rig, component)
from keyrot_middleware.core.activity import CallRecord
    rig.script.clear()
from keyrot_middleware.core.activity import CallRecord
    rig.will("a", Chunks(1))
from keyrot_middleware.core.activity import CallRecord
    await (await rig.aopen()).aclose()
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
@pytest.mark.usefixtures("lenient")
from keyrot_middleware.core.activity import CallRecord
def test_raising_ends_with_its_block(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
from keyrot_middleware.core.activity import CallRecord
    """`raise_internal_errors()` nests; without a current exception the component is named."""
from keyrot_middleware.core.activity import CallRecord
    break_component(rig, "acquire")
from keyrot_middleware.core.activity import CallRecord
    for _ in range(2):
from keyrot_middleware.core.activity import CallRecord
        with pytest.raises(BrokenError), raise_internal_errors(), raise_internal_errors():
from keyrot_middleware.core.activity import CallRecord
            rig.call()
from keyrot_middleware.core.activity import CallRecord
        assert rig.call() == "answer"
from keyrot_middleware.core.activity import CallRecord
    handle_internal_error("telemetry")
from keyrot_middleware.core.activity import CallRecord
    assert "telemetry failed" in caplog.text
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
# What an observer sees -------------------------------------------------------------------------
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
class RecordingObserver:
from keyrot_middleware.core.activity import CallRecord
    def __init__(self) -> None:
from keyrot_middleware.core.activity import CallRecord
        self.events: list[Any] = []
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
    def before(self, command: Any) -> None:
from keyrot_middleware.core.activity import CallRecord
        self.events.append(type(command).__name__)
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
    def after(self, command: Any, reply: Any) -> None:
from keyrot_middleware.core.activity import CallRecord
        if isinstance(reply, BaseException):
from keyrot_middleware.core.activity import CallRecord
            self.events.append(type(reply).__name__)
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
    def attach(self) -> object:
from keyrot_middleware.core.activity import CallRecord
        self.events.append("(")
from keyrot_middleware.core.activity import CallRecord
        return self
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
    def detach(self, token: object) -> None:
from keyrot_middleware.core.activity import CallRecord
        assert token is self
from keyrot_middleware.core.activity import CallRecord
        self.events.append(")")
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
    def finish(self, error: BaseException | None, record: CallRecord) -> None:
from keyrot_middleware.core.activity import CallRecord
        self.events.append(type(error).__name__ if error else "end")
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
SENT = ["Acquire", "Send", "(", ")", "Settle"]
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
@pytest.mark.parametrize("way", ["sync", "async"])
from keyrot_middleware.core.activity import CallRecord
def test_an_observer_sees_every_command_and_an_interruption(rig: Rig, way: str) -> None:
from keyrot_middleware.core.activity import CallRecord
    """Each command before and after, attached only while the SDK works, and the end, once."""
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
    def events() -> list[Any]:
from keyrot_middleware.core.activity import CallRecord
        observer = RecordingObserver()
from keyrot_middleware.core.activity import CallRecord
        with suppress(KeyboardInterrupt):
from keyrot_middleware.core.activity import CallRecord
            if way == "sync":
from keyrot_middleware.core.activity import CallRecord
                rig.call(observer=observer)
from keyrot_middleware.core.activity import CallRecord
            else:
from keyrot_middleware.core.activity import CallRecord
                asyncio.run(rig.acall(observer=observer))
from keyrot_middleware.core.activity import CallRecord
        return observer.events
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
    def stop() -> Any:
from keyrot_middleware.core.activity import CallRecord
        raise KeyboardInterrupt
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
    rig.will("a", invalid())
from keyrot_middleware.core.activity import CallRecord
    rig.will("b", OK, stop)
from keyrot_middleware.core.activity import CallRecord
    assert events() == [*SENT, "Refresh", *SENT, "end"]
from keyrot_middleware.core.activity import CallRecord
    assert events() == [*SENT[:-1], "KeyboardInterrupt", "Settle", "KeyboardInterrupt"]
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
@pytest.mark.parametrize("way", ["sync", "async"])
from keyrot_middleware.core.activity import CallRecord
async def test_a_stream_is_attached_only_while_the_sdk_works(rig: Rig, way: str) -> None:
from keyrot_middleware.core.activity import CallRecord
    """The attempt is current while a chunk is read, not while the caller has it."""
from keyrot_middleware.core.activity import CallRecord
    observer = RecordingObserver()
from keyrot_middleware.core.activity import CallRecord
    rig.will("a", Chunks(1, 2))
from keyrot_middleware.core.activity import CallRecord
    seen = []
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
    def read(chunk: int) -> None:
from keyrot_middleware.core.activity import CallRecord
        seen.append((chunk, observer.events.count("("), observer.events.count(")")))
from keyrot_middleware.core.activity import CallRecord

from keyrot_middleware.core.activity import CallRecord
    if way == "sync":
from keyrot_middleware.core.activity import CallRecord
        for chunk in rig.open(observer=observer):
from keyrot_middleware.core.activity import CallRecord
            read(chunk)
from keyrot_middleware.core.activity import CallRecord
    else:
from keyrot_middleware.core.activity import CallRecord
        async for chunk in await rig.aopen(observer=observer):
from keyrot_middleware.core.activity import CallRecord
            read(chunk)
from keyrot_middleware.core.activity import CallRecord
    assert seen == [(1, 2, 2), (2, 3, 3)]
from keyrot_middleware.core.activity import CallRecord
    assert observer.events[-2:] == ["Settle", "end"]
