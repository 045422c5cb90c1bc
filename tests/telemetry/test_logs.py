"""Log lines at each level, from real calls through a real pool."""

import asyncio
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from support.replies import capacity, invalid, no_room
from support.scripted_pool import OK, PROMPT, ScriptedPool, failure, minute

from keyrot_middleware.core.flow import Exhausted
from keyrot_middleware.core.model import RetryPolicy
from keyrot_middleware.errors import raise_internal_errors
from keyrot_middleware.telemetry.logs import LogObserver
from keyrot_middleware.testing import FakeGemini, Reply

NAME = "keyrot_middleware"


@pytest.fixture(autouse=True)
def raising() -> Iterator[None]:
    with raise_internal_errors():
        yield


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{r.levelname} {r.getMessage()}" for r in caplog.records if r.name == NAME]


def story(scripted: ScriptedPool) -> None:
    scripted.script = {"flash_01": [minute(20), OK], "exp_02": [invalid()]}
    scripted.run()


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
        "WARNING pool test, gemini-3.1-flash-lite: no key is available: "
        "flash_01: quota_minute until 2026-01-01 12:31:40Z"
    )


@pytest.mark.promise(number=2)
def test_no_line_holds_a_key_or_the_text_of_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, whatever fails."""
    caplog.set_level(logging.DEBUG, NAME)
    scripted = ScriptedPool([LogObserver("test")], keys=("flash_01", "exp_02"))
    scripted.script = {"flash_01": [failure(503)], "exp_02": [failure(transport="other")]}
    with pytest.raises(ConnectionResetError):
        scripted.run()
    text = "\n".join(lines(caplog))
    assert "before the next try" in text
    assert "ended by ConnectionResetError" in text
    assert "FAKE" not in text
    assert PROMPT not in text


def lines_with(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
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

    with ThreadPoolExecutor(27) as threads:
        for one in [threads.submit(call) for _ in range(27)]:
            one.result(60)
    assert len(lines_with(caplog, "is rejected")) == 1


@pytest.mark.parametrize(
    ("reply", "line", "note"),
    [
        (minute(20), "cooling down until 2026-", ", cooling down until 2026-"),
        (capacity(), "cooling down, tried again at 2026-", "; tried again at 2026-"),
        (no_room(), "cooling down, tried again at 2026-", "; tried again at 2026-"),
    ],
    ids=["named", "not named", "of a method"],
)
def test_only_a_time_that_is_named_is_an_end(
    reply: Any, line: str, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another one is when the key is tried again."""
    caplog.set_level(logging.INFO, NAME)
    scripted = ScriptedPool([LogObserver("test")], keys=("a",), policy=RetryPolicy(max_wait_s=0.0))
    scripted.script = {"a": [reply]}
    with pytest.raises(Exhausted) as raised:
        scripted.run()
    (found,) = lines_with(caplog, "is cooling down")
    assert line in found
    assert note in raised.value.__notes__[0]


def test_an_exhausted_pool_is_one_warning_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """The next warning has the number of further failed calls."""
    policy = RetryPolicy(strategy="fill", max_wait_s=0.0)
    scripted = ScriptedPool([LogObserver("test")], keys=("a",), policy=policy)
    scripted.script = {"a": [minute(200)]}
    for _ in range(150):
        with pytest.raises(Exhausted):
            scripted.run()
        scripted.clock.advance(1)
    found = lines_with(caplog, "no key is available")
    assert len(found) == 3
    assert ["59 more calls" in line for line in found] == [False, True, True]


PROGRAM = """
import asyncio, logging, sys
from google import genai
import keyrot_middleware
from keyrot_middleware.testing import FakeClock

if "logging" in sys.argv:
    logging.basicConfig(format="logged: %(message)s")
keyrot_middleware.install(clock=FakeClock())
client = genai.Client(http_options={"client_args": {"verify": False}})
MODEL = "gemini-3.1-flash-lite"
for number in range(2):
    client.models.generate_content(model=MODEL, contents="hi")  # line 13
    asyncio.run(client.aio.models.generate_content(model=MODEL, contents="hi"))
"""
LINE = "app.py:13: KeyrotWarning: pool default, gemini-3.1-flash-lite: "


@pytest.fixture
def service() -> Iterator[FakeGemini]:
    with FakeGemini() as server:
        for label in ("first", "second"):
            server.add_key(label, tier="paid")
        yield server


def stderr_of(service: FakeGemini, folder: Path, *command: str, **limits: Any) -> str:
    labels = ("first", "second")
    (folder / "app.py").write_text(PROGRAM)
    (folder / "keys.json").write_text(json.dumps([{"key_id": one, **limits} for one in labels]))
    ran = subprocess.run(
        [sys.executable, *(command or ("app.py",))],
        cwd=folder,
        env={
            **{f"GEMINI_KEY_{label}": service.key(label).value for label in labels},
            "KEYROT_STRATEGY": "fill",
            "KEYROT_ALLOWED_HOSTS": service.host,
            "GOOGLE_GEMINI_BASE_URL": service.url,
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert service.key("first").value not in ran.stderr
    return ran.stderr


@pytest.mark.parametrize(
    ("rpm", "text"),
    [
        (1, r"waits 3\d\.\d s for a key \(first: rpm until "),
        (None, r"key first is rejected: key_invalid \(400\) .API key not valid"),
    ],
)
def test_a_program_sees_the_first_rejection_and_the_first_long_wait_once(
    service, tmp_path, rpm, text
) -> None:
    """At the line of the call; with logging as a log line; never as an error."""
    if rpm is None:
        service.always("first", Reply.KEY_INVALID)
    shown = stderr_of(service, tmp_path, rpm=rpm)
    assert re.search(LINE + text, shown)
    assert shown.count("KeyrotWarning") == 1
    shown = stderr_of(service, tmp_path, "app.py", "logging", rpm=rpm)
    assert re.search(f"logged: pool default, gemini-3.1-flash-lite: {text}", shown)
    assert "KeyrotWarning" not in shown
    assert stderr_of(service, tmp_path, "-W", "error::UserWarning", "app.py", rpm=rpm) == ""
