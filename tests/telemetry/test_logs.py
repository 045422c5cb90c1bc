"""Log lines at each level, from real calls through a real pool."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
from support.scripted_pool import OK, PROMPT, ScriptedPool, failure, invalid, minute

from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.errors import raise_internal_errors
from keyrot_middleware.telemetry.logs import LogObserver

NAME = "keyrot_middleware"


@pytest.fixture(autouse=True)
def raising() -> Iterator[None]:
    """An observer that fails must fail the test."""
    with raise_internal_errors():
        yield


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Level and text of each of our lines."""
    return [f"{r.levelname} {r.getMessage()}" for r in caplog.records if r.name == NAME]


def story(scripted: ScriptedPool) -> None:
    """Make a call that meets an exhausted minute, an invalid key, a wait, and a success."""
    scripted.script = {"flash_01": [minute(20), OK], "exp_02": [invalid()]}
    scripted.run()


def test_the_story_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """One line for each decision, in order."""
    caplog.set_level(logging.DEBUG, NAME)
    story(ScriptedPool([LogObserver("test")], keys=("flash_01", "exp_02")))
    about = "pool test, gemini-2.5-flash: "
    assert [line.replace(about, "") for line in lines(caplog)] == [
        "DEBUG lease of key flash_01, 10 input tokens reserved",
        "DEBUG attempt 1 is sent with key flash_01",
        "DEBUG key flash_01 failed with GoogleError",
        "INFO key flash_01 (project project-fla, gemini-2.5-flash only) is cooling down until "
        "2026-01-01 12:30:50Z: quota_minute (429)",
        "DEBUG key flash_01 settled: quota_minute (429), ? input and ? output tokens",
        "DEBUG lease of key exp_02, 10 input tokens reserved",
        "DEBUG attempt 2 is sent with key exp_02",
        "DEBUG key exp_02 failed with GoogleError",
        'WARNING key exp_02 is rejected: key_invalid (400) "API key not valid. Please pass a valid '
        'API key."; replace its value; '
        "tried again at 2026-01-01 12:45:30Z",
        "DEBUG key exp_02 settled: key_invalid (400), ? input and ? output tokens",
        "WARNING waits 20.0 s for a key (flash_01: quota_minute until 2026-01-01 12:30:50Z); "
        "later waits are log lines at INFO",
        "DEBUG lease of key flash_01 as a probe, 10 input tokens reserved",
        "DEBUG attempt 3 is sent with key flash_01",
        "DEBUG key flash_01 settled: success, 12 input and 30 output tokens",
        "DEBUG done",
    ]


@pytest.mark.parametrize(
    ("level", "levels"),
    [
        (logging.INFO, ["INFO", "WARNING", "WARNING"]),
        (logging.WARNING, ["WARNING", "WARNING"]),
        (logging.ERROR, []),
    ],
)
def test_the_story_at_other_levels(caplog, level, levels) -> None:
    """INFO has what changes; WARNING, the default, what needs attention."""
    caplog.set_level(level, NAME)
    story(ScriptedPool([LogObserver("test")], keys=("flash_01", "exp_02")))
    assert [line.split()[0] for line in lines(caplog)] == levels


def test_an_exhausted_pool_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It names each key, why it cannot serve, and until when."""
    scripted = ScriptedPool([LogObserver("test")], keys=("flash_01",))
    scripted.script = {"flash_01": [minute(70)]}
    with pytest.raises(Exception, match="429"):
        asyncio.run(scripted.arun())
    with pytest.raises(Exhausted):
        scripted.run()
    assert lines(caplog)[-1] == (
        "WARNING pool test, gemini-2.5-flash: no key is available: "
        "flash_01: quota_minute until 2026-01-01 12:31:40Z"
    )


def test_a_long_or_wide_cooldown_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Billing problems and exhausted days need a person's attention."""
    scripted = ScriptedPool([LogObserver("test")], keys=("flash_01", "exp_02", "pro_03"))
    denied = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "SERVICE_DISABLED"}
    scripted.script = {"flash_01": [failure(402)], "exp_02": [failure(403, details=[denied])]}
    caplog.set_level(logging.WARNING, NAME)
    with pytest.raises(Exhausted):
        scripted.run()
    assert lines(caplog)[:-1] == [
        "WARNING pool test, gemini-2.5-flash: key flash_01 (all of billing account billing) "
        "is cooling down until 2026-01-01 13:30:30Z: payment_required (402)"
    ]


def test_no_line_holds_a_key_or_the_text_of_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, whatever fails."""
    caplog.set_level(logging.DEBUG, NAME)
    scripted = ScriptedPool([LogObserver("test")], keys=("flash_01", "exp_02"))
    scripted.script = {"flash_01": [failure(503), failure(transport="other")]}
    with pytest.raises(ConnectionResetError):
        scripted.run()
    text = "\n".join(lines(caplog))
    assert "before the next try" in text
    assert "ended by ConnectionResetError" in text
    assert "FAKE" not in text
    assert PROMPT not in text
