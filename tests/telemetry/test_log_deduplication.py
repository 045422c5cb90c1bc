"""Many calls with the same finding write one log line."""

from __future__ import annotations

import logging
from threading import Barrier, Thread
from typing import Any

import pytest
from support.scripted_pool import ScriptedPool, invalid, minute

from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.telemetry.logs import LogObserver

NAME = "keyrot_middleware"


def lines(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    """Return our lines that contain a word."""
    messages = [record.getMessage() for record in caplog.records if record.name == NAME]
    return [line for line in messages if word in line]


def test_failures_that_come_together_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Twenty-seven calls are in flight with a key when Google rejects it."""
    caplog.set_level(logging.INFO, NAME)
    scripted, together = ScriptedPool([LogObserver("test")], keys=("a",)), Barrier(27)

    def reject() -> Any:
        together.wait(30)
        return invalid()

    scripted.script = {"a": [reject] * 27}

    def call() -> None:
        with pytest.raises(Exhausted):
            scripted.run()

    threads = [Thread(target=call) for _ in range(27)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(lines(caplog, "is rejected")) == 1


def test_an_exhausted_pool_is_one_warning_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """The next warning has the number of further failed calls."""
    policy = RetryPolicy(strategy="fill", max_wait_s=0.0)
    scripted = ScriptedPool([LogObserver("test")], keys=("a",), policy=policy)
    scripted.script = {"a": [minute(200)]}
    for _ in range(150):
        with pytest.raises(Exhausted):
            scripted.run()
        scripted.clock.advance(1)
    found = lines(caplog, "no key is available")
    assert len(found) == 3
    assert ["59 more calls" in line for line in found] == [False, True, True]
