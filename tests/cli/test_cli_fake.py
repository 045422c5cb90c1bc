"""`keyrot fake`, and the completion of the shell."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli.conftest import Keyrot
from typer.testing import CliRunner

from keyrot_middleware.cli.app import app
from keyrot_middleware.cli.fake import make_server, parse

PROGRAM = """
from google import genai
client = genai.Client()
print(client.models.generate_content(model="gemini-3.1-flash-lite", contents="hi").text)
"""


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to one process")
def test_a_program_uses_the_printed_lines(python: Keyrot, here: Path) -> None:
    """The printed variables lead a program to it; each request is a line; Ctrl-C ends it."""
    command = [sys.executable, "-u", "-m", "keyrot_middleware", "fake", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served, _ended(served):
        assert served.stdout is not None
        lines = []
        for line in served.stdout:
            lines.append(line.rstrip())
            if line.startswith("keyrot run"):
                break
        exports = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
        env = dict(line.split("=", 1) for line in exports)
        assert env["GEMINI_API_KEYS"] == "FAKE-key_1,FAKE-key_2,FAKE-key_3"
        Path("app.py").write_text(PROGRAM)
        ran = python("-m", "keyrot_middleware", "run", "app.py", **env)
        assert ran.stdout.startswith("ok from key_"), ran.stderr
        served.send_signal(signal.SIGINT)
        rest = served.stdout.read()
        served.wait(30)
    assert served.returncode == 0
    assert "gemini-3.1-flash-lite generateContent  200" in rest
    assert "Traceback" not in rest
    assert "  key_1  limit of 5 a minute, then a 429" in lines


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_a_port_in_use_is_a_sentence() -> None:
    """It names the port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = run("fake", "--port", str(port))
    assert (ran.exit_code, ran.output) == (
        1,
        f"keyrot: port {port} of 127.0.0.1 cannot be used: address already in use; "
        "choose another with --port, or --port 0 for any that is free\n",
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("a=-",), 'found "a=-"; allowed: ID, ID=RPM, ID=RPM/RPD or ID=REPLY'),
        (("a=SPEND_RATES",), "no reply SPEND_RATES; docs/testing.md has them. Did you mean"),
        (("bad=revokd",), "Did you mean"),
        (("a=0",), 'found "a=0"; allowed'),
    ],
)
def test_wrong_keys_are_errors(keys: tuple[str, ...], message: str) -> None:
    """A key that is not written as it should be is an error that names what is allowed."""
    ran = run("fake", *(part for key in keys for part in ("--key", key)))
    assert (ran.exit_code, message in ran.output) == (2, True)


def test_a_key_can_get_the_same_reply_always() -> None:
    """In words of people; the names of replies go in any case."""
    keys = parse(["bad=revoked", "old=expired", "slow=spend_rate", "free=5"])
    assert [key.reply for key in keys] == ["KEY_INVALID", "KEY_EXPIRED", "SPEND_RATE", None]


def test_a_key_can_have_limits_that_cloud_quotas_lists() -> None:
    """Of a minute and a day; its project has a name that Google allows."""
    path = "/v1/projects/project-key-1/locations/global/services/"
    server, _ = make_server("gemini", parse(["key_1=5/40"]))
    with server:
        pages = [
            httpx.get(f"{server.url}{path}generativelanguage.googleapis.com/quotaInfos?{page}").text
            for page in ("pageToken=0", "pageToken=1")
        ]
    assert ['"value": "5"' in page for page in pages] == [False, True]
    assert ['"value": "40"' in page for page in pages] == [True, False]


ROOT = Path(__file__).parents[2]


def test_the_demo_runs_a_program_without_and_with_the_pool(keyrot: Keyrot, tmp_path: Path) -> None:
    """One key fails at question 6, a pool answers all; short, no spans, and what to do next."""
    (tmp_path / "keys.json").write_text("not even JSON: the demo must not look at it")
    ran = keyrot("demo", GEMINI_API_KEYS="mine", KEYROT_STRATEGY="nonsense", PATH="")
    assert ran.returncode == 0, ran.stderr
    for line in (
        r"question 1 +ok +revoked_1 key_invalid → exhausted_1 quota_day → free_1 ok",
        r"question 5 +ok +free_1 ok",
        r"question 6 +429 RESOURCE_EXHAUSTED +free_1 quota → paid_1 ok",
        r"question 7 +not reached +paid_1 ok",
        r"chat +not reached +paid_1 ok, paid_1 ok",
        r"answered +5 of 9 +9 of 9",
    ):
        assert re.search(rf"^{line} *$", ran.stdout, re.MULTILINE), line
    lines = ran.stdout.splitlines()
    assert len(lines) <= 30
    assert "gen_ai." not in ran.stdout
    assert "keyrot init" in lines[-2]
    assert "keyrot run your_program.py" in lines[-1]
