"""`keyrot fake`, and the completion of the shell."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli.conftest import Keyrot
from google import genai
from google.genai import errors

from keyrot_middleware.cli import OTHER_COMMANDS
from keyrot_middleware.cli.app import app
from keyrot_middleware.cli.fake import _parse
from keyrot_middleware.core.model_names import CURRENT_MODEL

PROGRAM = """
from google import genai
client = genai.Client()
print(client.models.generate_content(model="gemini-2.5-flash", contents="hi").text)
"""


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill a process that is still there."""
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
    assert "gemini-2.5-flash generateContent  200" in rest
    assert "Traceback" not in rest
    assert "  key_1  limit of 5 a minute, then a 429" in lines


def test_a_key_can_get_the_same_reply_always(here: Path) -> None:
    """`--key ID=REPLY` shows a program an error of Google, such as that of the spend rate."""
    command = [sys.executable, "-u", "-m", "keyrot_middleware", "fake", "--port", "0"]
    command += ["--key", "paid=SPEND_RATE"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served, _ended(served):
        assert served.stdout is not None
        lines = list(iter(lambda: served.stdout.readline().rstrip(), "keyrot run app.py"))
        url = next(line for line in lines if "BASE_URL" in line).partition("=")[2]
        client = genai.Client(api_key="FAKE-paid", http_options={"base_url": url})
        with pytest.raises(errors.ClientError, match="spend-based rate limit"):
            client.models.generate_content(model="gemini-flash-latest", contents="hi")
        client.close()
    assert "  paid  always SPEND_RATE" in lines
    assert f"Model: {CURRENT_MODEL}, or any other of Google's." in lines
    assert f"OpenAI's protocol: {url}/v1beta/openai/" in lines


def test_a_port_in_use_is_a_sentence(keyrot: Keyrot) -> None:
    """It names the port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = keyrot("fake", "--port", str(port))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        f"keyrot fake: port {port} of 127.0.0.1 cannot be used: address already in use; "
        "choose another with --port, or --port 0 for any that is free\n"
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("a=-",), 'found "a=-"; allowed: ID, ID=RPM or ID=REPLY'),
        (("a=SPEND_RATES",), "no reply SPEND_RATES; docs/testing.md has them. Did you mean"),
        (("a=0",), 'found "a=0"; allowed'),
        (("a b",), 'found "a b"; allowed'),
        (("a", "a=2"), "a was given twice"),
    ],
)
def test_wrong_keys_are_errors(
    keys: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that is not written as it should be is an error that names what is allowed."""
    from keyrot_middleware.cli.fake import fake

    assert fake(0, keys, quiet=True) == 2
    assert message in capsys.readouterr().err


def test_reset_completes_key_ids(keyrot: Keyrot) -> None:
    """The shell gets the ids with this prefix; wrong settings complete nothing, silently."""
    variables = {"_KEYROT_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    keys = {"GEMINI_API_KEYS": "FAKE-1,FAKE-2", "KEYROT_MISSPELT": "1"}
    ran = keyrot(COMP_WORDS="keyrot reset key", **variables, **keys)
    assert (ran.stdout.split(), ran.stderr) == (["key_1", "key_2"], "")
    ran = keyrot(COMP_WORDS="keyrot reset key_2", **variables, **keys)
    assert ran.stdout.split() == ["key_2"]
    Path("keys.json").write_text("no JSON")
    ran = keyrot(COMP_WORDS="keyrot reset key", **variables, **keys)
    assert (ran.stdout.strip(), ran.stderr) == ("", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(keyrot: Keyrot, shell: str, here: Path) -> None:
    """`keyrot --install-completion SHELL` writes a script that calls keyrot back."""
    ran = keyrot("--install-completion", shell, HOME=str(here))
    assert ran.returncode == 0, ran.stderr
    texts = [path.read_text() for path in here.rglob("*") if path.is_file()]
    assert any("_KEYROT_COMPLETE=complete_" in text for text in texts), os.listdir(here)


def test_a_key_may_be_revoked() -> None:
    """In words of people; the names of replies go in any case."""
    keys, problem = _parse(["bad=revoked", "old=expired", "slow=spend_rate", "free=5"])
    assert problem is None
    assert [key.reply for key in keys] == ["KEY_INVALID", "KEY_EXPIRED", "SPEND_RATE", None]
    assert "Did you mean" in str(_parse(["bad=revokd"])[1])


def test_fake_and_ui_have_different_ports(keyrot: Keyrot) -> None:
    """Both can run without an option."""
    ports = [re.search(r"(87\d\d)", keyrot(name, "--help").stdout) for name in ("fake", "ui")]
    assert [port and port[1] for port in ports] == ["8788", "8787"]


def test_a_flag_has_no_type(keyrot: Keyrot) -> None:
    """`--json`, not `--json <bool>`; the same for --help."""
    for arguments in (("--help",), ("status", "--help"), ("init", "--help")):
        assert "bool" not in keyrot(*arguments).stdout.lower()


def test_the_help_without_the_extra_lists_all_commands() -> None:
    """Those that typer would list."""
    names = {command.name for command in app.registered_commands} - {"run"}
    assert set(OTHER_COMMANDS.split(", ")) == names
