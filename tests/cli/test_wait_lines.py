"""`keyrot run` on a real terminal: the line that says for which key calls wait."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.servers import wait_for

from keyrot_middleware.cli.wait_lines import first_end
from keyrot_middleware.core.model import Block, CallInfo
from keyrot_middleware.core.waiting import Ticket
from keyrot_middleware.testing import FakeGemini, Reply

pty = pytest.importorskip("pty")

RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "50s"}
BUSY = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "busy", "details": [RETRY]}
WAITS = re.compile(r"keyrot: waiting for key_1, until \d\d:\d\d:\d\dZ, in \d+ s \((\d) calls?\)")
TAKES_THE_TERMINAL = "import os, sys; os.setsid(); os.close(os.open(os.ttyname(2), os.O_RDWR)); "
"""As a shell gives it to a program: with a terminal of its own Ctrl-C reaches it."""

PROGRAM = """
import os, sys, threading
from google import genai
import keyrot_middleware

client = genai.Client()

def call(number):
    text = client.models.generate_content(model="gemini-3.8-flash", contents="hi").text
    sys.stdout.write(f"answer {number}: {text}\\n")  # in one piece: print() writes the end apart
    sys.stdout.flush()

def make_available():
    sys.stdin.readline()
    keyrot_middleware.reset("key_1")
"""
TWO_CALLS = """
threads = [threading.Thread(target=call, args=(number,)) for number in range(2)]
for thread in threads: thread.start()
print("half a line, ", end="", flush=True)
make_available()
for thread in threads: thread.join()
"""
MAIN_THREAD = """
threading.Thread(target=make_available, daemon=True).start()
call(0)
"""
IN_A_CHILD = """
if child := os.fork():
    os.waitpid(child, 0)
else:
    threading.Thread(target=make_available, daemon=True).start()
    call(0)
    os._exit(0)
"""
LEAVES_A_THREAD = """
threading.Thread(target=call, args=(0,), daemon=True).start()
sys.stdin.readline()
"""


class Running:
    """A program under `keyrot run`, and what it writes to its terminal."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int, gemini: FakeGemini) -> None:
        self.process, self.terminal, self.gemini = process, terminal, gemini
        self.shown = ""

    def read_until(self, true: Callable[[str], Any], seconds: float = 120.0) -> Any:
        """Read until what was shown is as wanted, or the program has closed its terminal."""
        until = time.monotonic() + seconds
        while not (found := true(self.shown)):
            assert time.monotonic() < until, self.shown[-2_000:]
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    data = os.read(self.terminal, 4096)
                except OSError:  # Linux: the other end is closed
                    return None
                self.shown += data.decode()
        return found

    def end(self) -> str:
        """Let the calls be served; return what was written."""
        self.gemini.always_any(None)
        self.go_on()
        self.read_until(lambda _: False)
        assert self.process.wait(120) == 0, self.shown[-2_000:]
        return self.shown

    def go_on(self) -> None:
        """Let the program go on from where it reads a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()


Start = Callable[..., Any]


@pytest.fixture
def start(clean_environment: None, here: Path) -> Iterator[Start]:
    @contextmanager
    def run(program: str, *options: str, before: str = "", **env: str) -> Iterator[Running]:
        (here / "app.py").write_text(PROGRAM + program)
        terminal, its_end = pty.openpty()
        with FakeGemini() as gemini:
            key = gemini.add_key("a", tier="paid")
            gemini.always_any(Reply.custom(429, {"error": BUSY}))
            env = {
                "GEMINI_API_KEYS": key.value,
                "GOOGLE_GEMINI_BASE_URL": gemini.url,
                "KEYROT_ALLOWED_HOSTS": gemini.host,
                "NO_PROXY": "127.0.0.1",
                "TERM": "xterm",
                **env,
            }
            run = [sys.executable, "-m", "keyrot_middleware", "run", *options, "app.py"]
            starter = f"{TAKES_THE_TERMINAL}{before}os.execv(sys.argv[1], sys.argv[1:])"
            process = subprocess.Popen(
                [sys.executable, "-c", starter, *run],
                env=os.environ | env,
                stdin=subprocess.PIPE,
                stdout=its_end,
                stderr=its_end,
            )
            os.close(its_end)
            try:
                yield Running(process, terminal, gemini)
            finally:
                process.kill()
                process.communicate()
                os.close(terminal)

    yield run


def test_a_line_says_for_which_key_calls_wait(start: Start) -> None:
    """With the time and the number of calls, once; what the program writes stays as it is."""
    with start(TWO_CALLS) as running:
        running.read_until(WAITS.search)
        time.sleep(2.5)
        written = running.end()
    assert [found.group(1) for found in WAITS.finditer(written)] == ["2"]
    assert "\x1b" not in written
    assert "half a line, " in written
    assert re.search(r"answer \d: ok from a\r\nanswer \d: ok from a\r\n\Z", written)


def test_a_terminal_that_is_stopped_keeps_no_program_from_its_end(start: Start) -> None:
    """Ctrl-S stops what is written, not the program, and not its end."""
    with start(LEAVES_A_THREAD) as running:
        running.read_until(lambda shown: "KeyrotWarning" in shown)
        os.write(running.terminal, b"\x13")
        time.sleep(2.5)
        running.go_on()
        assert running.process.wait(120) == 0


ELSEWHERE: list[Any] = [
    pytest.param(MAIN_THREAD, ["-v"], id="-v, which logs it"),
    pytest.param(IN_A_CHILD, [], id="a forked child"),
]


@pytest.mark.parametrize(("program", "options"), ELSEWHERE)
def test_it_is_not_said(program: str, options: list[str], start: Start) -> None:
    """Where the log says it, and by other processes."""
    with start(program, *options) as running:
        running.read_until(lambda shown: "waits" in shown)
        time.sleep(2.5)  # it would be said after one second
        written = running.end()
    assert "keyrot: waiting" not in written
    assert "answer 0: ok from a" in written


def test_nothing_is_written_to_a_file(start: Start, here: Path) -> None:
    """Nor to the terminal, where that is not the program's stderr."""
    log = here / "log.txt"
    redirected = f"os.dup2(os.open({str(log)!r}, os.O_CREAT | os.O_WRONLY), 2); "
    with start(MAIN_THREAD, before=redirected) as running:
        wait_for(lambda: log.exists() and "waits" in log.read_text())
        time.sleep(2.5)
        written = running.end()
    assert written == "answer 0: ok from a\r\n"
    assert "keyrot: waiting" not in log.read_text()


def test_of_many_calls_it_names_the_key_that_comes_first() -> None:
    """Not one whose time is past, as of calls behind others, and none that another call uses."""
    call = CallInfo("m", "generateContent")
    front, behind, third = Ticket(call), Ticket(call), Ticket(call)
    front.blocks = {"a": Block("rpm", 150.0), "b": Block("quota_minute", 142.0)}
    behind.blocks = {"a": Block("rpm", 90.0)}
    third.blocks = {"c": Block("concurrency", 100.1)}
    assert first_end([front, behind, third], 100.0) == (142.0, "b")
    assert first_end([behind, third], 100.0) == (100.0, "")
