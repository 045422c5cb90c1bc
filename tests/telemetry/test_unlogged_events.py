"""What a program that has not set up logging sees of its calls on stderr: each thing once."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.scripted_pool import OK, ScriptedPool, invalid

from keyrot_middleware.errors import KeyrotWarning
from keyrot_middleware.telemetry.logs import LogObserver
from keyrot_middleware.testing import FakeGemini, Reply

PROGRAM = """
import asyncio, logging, sys
from google import genai
import keyrot_middleware
from keyrot_middleware.testing import FakeClock

if "logging" in sys.argv:
    logging.basicConfig(format="logged: %(message)s")
keyrot_middleware.install(clock=FakeClock())
client = genai.Client(http_options={"client_args": {"verify": False}})
MODEL = "gemini-2.5-flash"
for number in range(2):
    client.models.generate_content(model=MODEL, contents="hi")  # line 13
    asyncio.run(client.aio.models.generate_content(model=MODEL, contents="hi"))
"""
LINE = "app.py:13: KeyrotWarning: pool default, gemini-2.5-flash: "


@pytest.fixture
def service() -> Iterator[FakeGemini]:
    """Serve with two keys."""
    with FakeGemini() as server:
        for label in ("first", "second"):
            server.add_key(label, tier="paid")
        yield server


def without_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide pytest's handlers; in the test, since pytest adds them again before it."""
    monkeypatch.setattr(logging.getLogger("keyrot_middleware"), "propagate", False)


def stderr_of(service: FakeGemini, folder: Path, *command: str, **limits: Any) -> str:
    """Run the program over the keys of the service; return what it writes to stderr."""
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
        timeout=60,
        check=True,
    )
    assert service.key("first").value not in ran.stderr
    return ran.stderr


def test_the_first_rejection_of_a_key_is_shown(service: FakeGemini, tmp_path: Path) -> None:
    """At the line of the call, with the key, why, and what to do."""
    service.always("first", Reply.KEY_INVALID)
    text = stderr_of(service, tmp_path)
    assert f'{LINE}key first is rejected: key_invalid (400) "API key not valid' in text
    assert text.count("KeyrotWarning") == 1


def test_the_first_long_wait_is_shown(service: FakeGemini, tmp_path: Path) -> None:
    """With its length, and why each key is not available; later waits are not shown."""
    text = stderr_of(service, tmp_path, rpm=1)
    assert f"{LINE}waits 3" in text
    assert "s for a key (first: rpm until " in text
    assert text.count("KeyrotWarning") == 1


@pytest.mark.parametrize(("rpm", "text"), [(1, "waits 3"), (None, "key first is rejected")])
def test_with_logging_it_is_a_log_line(service, tmp_path, rpm, text) -> None:
    """At WARNING, which logging shows by default, and not a Python warning too."""
    if rpm is None:
        service.always("first", Reply.KEY_INVALID)
    shown = stderr_of(service, tmp_path, "app.py", "logging", rpm=rpm)
    assert f"logged: pool default, gemini-2.5-flash: {text}" in shown
    assert "KeyrotWarning" not in shown


def test_a_program_whose_warnings_are_errors_continues(service: FakeGemini, tmp_path: Path) -> None:
    """No call fails because of a warning."""
    service.always("first", Reply.KEY_INVALID)
    assert stderr_of(service, tmp_path, "-W", "error::UserWarning", "app.py", rpm=1) == ""


def test_each_rejected_key_is_shown_and_again_when_its_new_value_is_rejected(monkeypatch) -> None:
    """A probe that fails again is nothing new."""
    without_logging(monkeypatch)
    log = LogObserver("test")
    scripted = ScriptedPool([log], keys=("a", "b", "c"))
    scripted.script = {"a": [invalid(), invalid(), invalid()], "b": [invalid()], "c": [OK] * 3}
    with pytest.warns(KeyrotWarning) as found:
        scripted.run()
        scripted.clock.advance(3_600)
        scripted.run()
        log.on_key_replaced("a")
        scripted.clock.advance(24 * 3_600)
        scripted.run()
    subjects = [str(one.message).split(": ")[1].split(" is ")[0] for one in found]
    assert subjects == ["key a", "key b", "key a"]
