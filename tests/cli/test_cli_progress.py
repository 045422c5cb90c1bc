"""The line of a wait on the terminal of a program under `keyrot run`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
from keyrot_middleware.telemetry.logs import WaitProgress
from keyrot_middleware.testing import FakeGemini, Reply

INFO = CallInfo("gemini-2.5-flash", "generateContent")
SLOW = Reply.custom(
    429,
    {
        "error": {
            "code": 429,
            "status": "RESOURCE_EXHAUSTED",
            "message": "slow down",
            "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3s"}],
        }
    },
)
PROGRAM = """
from google import genai
client = genai.Client()
print(client.models.generate_content(model="gemini-2.5-flash", contents="hi").text)
"""


def test_waits_are_one_line_that_is_erased(capsys: pytest.CaptureFixture[str]) -> None:
    """The one that ends first, with Google's error in that call; a short one is not shown."""
    progress = WaitProgress()
    first, second = progress.observe(INFO), progress.observe(INFO)
    lease = Lease("A", "p", "b", INFO.model, INFO.verb, 0, 1, at=0.0)
    verdict = Verdict("quota_minute", 429, Scope.PROJECT_MODEL)
    first.after(Settle(lease, Outcome(LeaseOutcome.FAILURE, verdict)), None)
    ticket = Ticket(INFO)
    ticket.blocks = {"A": Block("quota_minute", 100.0)}
    first.before(Sleep(42.0, "key", ticket))
    second.before(Sleep(60.0, "retry"))
    second.before(Sleep(0.5, "retry"))
    first.after(Sleep(42.0, "key", ticket), None)
    second.finish(KeyboardInterrupt())
    shown = capsys.readouterr().err.split("\r\x1b[2K")
    assert re.sub(r"[\d:]{8}", "T", "|".join(shown)) == (
        "|keyrot: waiting until T for A (429 quota_minute)"
        "|keyrot: waiting until T for A (429 quota_minute); 1 more"
        "|keyrot: waiting until T before a retry|"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a pty")
@pytest.mark.parametrize("setting", ["", "off"])
def test_a_program_on_a_terminal_shows_the_wait(setting: str, here: Path) -> None:
    """Under `keyrot run` a wait of 3 s is shown on a terminal, unless it is switched off."""
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
