"""The countdown of a wait on the terminal of a program under `keyrot run`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from keyrot_middleware.cli import progress as progress_module
from keyrot_middleware.cli.progress import WaitProgress, wait_progress
from keyrot_middleware.core.commands import Settle, Sleep
from keyrot_middleware.core.model import (
    Block,
    CallInfo,
    Lease,
    LeaseOutcome,
    Outcome,
    Scope,
    Verdict,
)
from keyrot_middleware.core.waiting import Ticket
from keyrot_middleware.testing import FakeGemini, Reply

INFO = CallInfo("gemini-2.5-flash", "generateContent")
SLOW = Reply.custom(
    429,
    {
        "error": {
            "code": 429,
            "status": "RESOURCE_EXHAUSTED",
            "message": "slow down",
            "details": [
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3s"},
            ],
        }
    },
)
PROGRAM = """
from google import genai
client = genai.Client()
print(client.models.generate_content(model="gemini-2.5-flash", contents="hi").text)
"""


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr(progress_module, "TICK_S", 0.01)
    still = SimpleNamespace(monotonic=lambda: 0.0, sleep=time.sleep)  # the seconds never change
    monkeypatch.setattr(progress_module, "time", still)
    return io.StringIO()


@pytest.fixture
def progress(out: io.StringIO) -> WaitProgress:
    return WaitProgress(Console(file=out, force_terminal=True, width=100, color_system=None))


def waiting(**blocks: str) -> Sleep:
    ticket = Ticket(1, INFO)
    ticket.blocks = {key: Block(reason, 100.0) for key, reason in blocks.items()}
    return Sleep(42.0, "key", ticket)


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def drawing() -> bool:
    return any(thread.name == "keyrot-progress" for thread in threading.enumerate())


def test_the_key_the_reason_and_the_time_are_shown(
    progress: WaitProgress, out: io.StringIO
) -> None:
    """A wait is one line, erased when it is over; its thread ends with it."""
    call = progress.observe(INFO)
    call.before(waiting(A="rpm"))
    until(lambda: "keyrot: waiting 42 s for A (rpm)" in out.getvalue())
    call.after(waiting(A="rpm"), (0.0, 42.0))
    until(lambda: not drawing())
    assert out.getvalue().endswith("\r\x1b[2K")
    assert "\n" not in out.getvalue()


def test_googles_errors_in_this_call_are_shown(progress: WaitProgress, out: io.StringIO) -> None:
    """A key that failed in this call is shown with its HTTP code; a retry with the last failure."""
    call = progress.observe(INFO)
    lease = Lease("A", "p", "b", INFO.model, INFO.verb, 0, 1, at=0.0)
    verdict = Verdict("quota_minute", 429, Scope.PROJECT_MODEL)
    call.after(Settle(lease, Outcome(LeaseOutcome.FAILURE, verdict)), None)
    call.before(waiting(A="quota_minute"))
    until(lambda: "for A (429 quota_minute)" in out.getvalue())
    call.finish(None)
    call.before(Sleep(9.0, "retry"))
    until(lambda: "waiting 9 s before the next try (429 quota_minute)" in out.getvalue())
    call.finish(KeyboardInterrupt())
    until(lambda: not drawing())


def test_several_calls_are_one_line(progress: WaitProgress, out: io.StringIO) -> None:
    """The wait that ends first is shown, and how many more there are."""
    calls = [progress.observe(INFO) for _ in range(3)]
    for call in calls:
        call.before(waiting(A="rpm"))
    until(lambda: "for A (rpm); 2 more calls wait" in out.getvalue())
    for call in calls:
        call.finish(None)
    until(lambda: not drawing())


def test_a_short_wait_is_not_shown(progress: WaitProgress) -> None:
    """Half a second starts no thread."""
    progress.observe(INFO).before(Sleep(0.5, "retry"))
    assert not drawing()


def test_without_a_terminal_there_is_no_countdown() -> None:
    """In a pipe nothing is observed."""
    assert wait_progress() is None


@pytest.mark.skipif(sys.platform == "win32", reason="a pty")
@pytest.mark.parametrize("setting", ["", "off"])
def test_a_program_on_a_terminal_shows_the_wait(setting: str, here: Path) -> None:
    """Under `keyrot run` a wait of 3 s is counted down on a terminal, unless it is switched off."""
    import pty

    Path("app.py").write_text(PROGRAM)
    with FakeGemini() as gemini:
        key = gemini.add_key("a")
        gemini.script("a", SLOW)
        env = {
            "GEMINI_API_KEYS": key.value,
            "GOOGLE_GEMINI_BASE_URL": gemini.url,
            "KEYROT_ALLOWED_HOSTS": gemini.host,
            "KEYROT_PROGRESS": setting,
            "TERM": "xterm",
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, "-m", "keyrot_middleware", "run", "app.py"]
        shown = _in_terminal(pty, command, {**os.environ, **env})
    assert "ok from a" in shown
    assert ("for key_1 (429 " in shown) == (setting != "off"), shown
    assert ("waiting" in shown) == (setting != "off"), shown


def _in_terminal(pty: Any, command: list[str], env: dict[str, str]) -> str:
    """Run a command in a pseudo terminal; return what it showed."""
    terminal, program = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), program)
    process = subprocess.Popen(command, env=env, **streams)
    os.close(program)
    shown = b""
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:  # Linux: the other end is closed
            data = b""
        if not data:
            break
        shown += data
    os.close(terminal)
    process.wait(60)
    return shown.decode()
