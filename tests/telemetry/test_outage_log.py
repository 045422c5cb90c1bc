"""An outage in the log: one line where it begins, one where it is over, in each process."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import Any

import pytest
from support.pool import INFO, Rig, key
from support.replies import failure

import keyrot_middleware
from keyrot_middleware.core.activity import NAMES_KEPT, CallRecord
from keyrot_middleware.core.outcomes import QUIET_S, End
from keyrot_middleware.telemetry.logs import OutageLog
from keyrot_middleware.testing import FakeGemini, Reply

SAID = 'the last 3 calls failed: 503 "Down"'


class Watched:
    """Ends of calls of a model, one every *step* seconds."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "keyrot_middleware")
        self.log, self.caplog, self.now = OutageLog("web"), caplog, 1_000.0

    def see(self, kinds: str, step: float = 1.0, model: str = "m", of: str = "") -> list[str]:
        """Return the lines after ends: `x` failed, `+` good, `r` refused, `0` got no key."""
        self.caplog.clear()
        names: dict[str, Any] = {"x": "failed", "+": "good", "r": "refused", "0": "no_key"}
        for kind in kinds:
            self.now += step
            failed = ("overloaded", 503, "Down.") if kind == "x" else ("", None, "")
            record = CallRecord(self.now, model, 0.1, "ok", (), workload=of)
            say = self.log.watch(record, End(self.now, names[kind], *failed))
            if say is not None:
                say()
        return [f"{one.levelname} {one.getMessage()}" for one in self.caplog.records]


def test_a_total_outage_is_one_warning_and_its_end_one_line(caplog: Any) -> None:
    """When calls have been good for as long as it lasted."""
    seen = Watched(caplog)
    assert seen.see("+++++xx") == []
    assert seen.see("xxxxx") == [f"WARNING pool web, m: {SAID.replace('last 3', 'last 6')}"]
    assert seen.see("x" * 50 + "00") == []
    assert seen.see("+" * 56) == []
    assert seen.see("+" * 20) == ["INFO pool web, m: calls succeed again, after 56 s"]
    assert seen.see("+" * 20 + "xxx", 30) == [f"WARNING pool web, m: {SAID}"]


def test_one_that_comes_and_goes_is_one_outage(caplog: Any) -> None:
    """Its end is a line after ten good minutes at the latest; requests at fault are none."""
    seen = Watched(caplog)
    assert len(seen.see("xxx" + "x+xx" * 100, 10)) == 1
    assert seen.see("+++xxx+++xxx", 60) == []
    assert seen.see("+" * int(QUIET_S / 60), 60) == []
    assert len(seen.see("+", 60)) == 1
    assert seen.see("rrrrrr") == []


def test_a_workload_that_fails_alone_is_a_line_too(caplog: Any) -> None:
    """Where the calls of others are good; an outage of the model is one line for all of them."""
    seen, said = Watched(caplog), list[str]()
    for _ in range(6):
        said += seen.see("+++", of="chat") + seen.see("x", of="batch")
    assert said == [
        f"WARNING pool web, m: {SAID}".replace("calls", "calls in workload batch"),
    ]
    assert len(seen.see("xxxxxx", of="chat")) == 1
    assert seen.see("xxxxxx", of="batch") + seen.see("xxx", of="other") == []


def test_models_are_watched_up_to_a_number(caplog: Any) -> None:
    """A program may let its users name them; the oldest is forgotten, whether or not it fails."""
    seen = Watched(caplog)
    for number in range(2 * NAMES_KEPT):
        assert seen.see("+", model=f"m{number}") == []
    assert len(seen.see("xxxx", model="one more")) == 1
    for number in range(3 * NAMES_KEPT):
        assert len(seen.see("xxxx", model=f"failing {number}")) == 1
    assert len(seen.log._ends) == 2 * NAMES_KEPT
    assert len(seen.log._failing) <= 2 * NAMES_KEPT
    assert len(seen.see("xxxx", model="m7", step=100)) == 1


def test_a_handler_that_looks_at_the_pool_does_not_block() -> None:
    """The line is said when the counts are done."""
    rig = Rig(key("a"), max_retries=0, max_wait_s=0)
    rig.default, looks = failure(503, "Down."), list[int]()

    class Looks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            looks.append(len(rig.pool.activity.read().view((), rig.time()).calls))

    rig.pool.activity.watch = OutageLog("test").watch
    logger, handler = logging.getLogger("keyrot_middleware"), Looks(logging.WARNING)
    logger.addHandler(handler)
    try:
        for _ in range(4):
            with suppress(Exception):
                rig.call(INFO)
        reader = threading.Thread(target=rig.pool.activity.send, daemon=True)
        reader.start()
        reader.join(20)
        assert not reader.is_alive()
    finally:
        logger.removeHandler(handler)
    assert len(looks) == 1


def test_an_installed_pool_logs_it_without_any_alert(
    gemini: FakeGemini, pool: Any, connect: Any, caplog: Any
) -> None:
    """For a program that has no receiver of events."""
    pool("A", "B", max_retries=0)
    gemini.always_any(Reply.OVERLOADED)
    client = connect()
    for _ in range(10):
        with suppress(Exception):
            client.models.generate_content(model="gemini-3.1-flash-lite", contents="hi")
    keyrot_middleware.status()
    said = [one.getMessage() for one in caplog.records if "calls failed" in one.getMessage()]
    assert said == [
        "pool default, gemini-3.1-flash-lite: the last 3 calls failed: "
        '503 "The model is overloaded. Please try again later"'
    ]
