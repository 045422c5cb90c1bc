"""`keyrot ui`: its address and token, its options, and how it ends."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.servers import server
from typer.testing import CliRunner

from keyrot_middleware.cli.app import app

Keyrot = Callable[..., Any]
TOKEN = "a-token-of-the-tests-0123"


@pytest.fixture
def shared(tmp_path: Path, clean_environment: None) -> dict[str, str]:
    (tmp_path / "keys.json").write_text(json.dumps([{"key_id": "one"}]))
    return {
        "KEYROT_STATE_URL": server("valkey").url,
        "KEYROT_POOL": f"pool-{uuid4().hex[:8]}",
        "GEMINI_KEY_one": "FAKE-value-of-one",
    }


class Command:
    """`keyrot ui` while it runs."""

    def __init__(self, *options: str, **env: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "keyrot_middleware", "ui", "--port", "0", *options],
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.lines: list[str] = []
        while not self.lines or "Ctrl-C" not in self.lines[-1]:
            line = self._process.stdout.readline()
            assert line, self._process.communicate()
            self.lines.append(line.rstrip())
        found = re.search(r"http://([\w.:\[\]]+):(\d+)/\?token=(\S*)", "\n".join(self.lines))
        assert found is not None, self.lines
        self.host, self.port, self.token = found[1], int(found[2]), found[3]

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        """Send a request; return status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def kill(self) -> None:
        """End it where a test has failed before it came to `end`."""
        self._process.kill()
        self._process.wait()

    def end(self, how: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Interrupt it; return its exit code and what it wrote to stderr."""
        self._process.send_signal(how)
        _, errors = self._process.communicate(timeout=120)
        return self._process.returncode, errors


def test_it_serves_the_page_behind_a_random_token(shared: dict[str, str]) -> None:
    """The printed address opens the page; Ctrl-C ends it without a traceback."""
    command = Command(**shared)
    assert command.lines[0].startswith(f"keyrot ui: pool {shared['KEYROT_POOL']}, 1 keys, state in")
    assert (command.host, len(command.token)) == ("127.0.0.1", 32)
    assert command.get("/api/status")[0] == 401
    bearer = {"Authorization": f"Bearer {command.token}"}
    status, body = command.get("/api/status", **bearer)
    found = json.loads(body)
    assert (status, found["shared"], found["actions"]) == (200, True, False)
    assert [key["key_id"] for key in found["keys"]] == ["one"]
    assert "FAKE-value" not in body
    assert command.get(f"/?token={command.token}")[0] == 303
    assert command.end() == (0, "")


def test_a_token_file_is_for_a_permanent_page(shared: dict[str, str], tmp_path: Path) -> None:
    """The token in the file is not printed; other machines may then connect."""
    file = tmp_path / "token.txt"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    command = Command("--token-file", str(file), "--host", "0.0.0.0", "--actions", **shared)
    assert TOKEN not in "\n".join(command.lines)
    assert any("TLS" in line for line in command.lines)
    status, body = command.get("/api/status", Host="example.com", Authorization=f"Bearer {TOKEN}")
    assert (status, json.loads(body)["actions"]) == (200, True)
    assert command.end() == (0, "")


def run(*arguments: str, **env: str) -> tuple[int, str]:
    ran = CliRunner().invoke(app, ["ui", *arguments], env=env)
    return ran.exit_code, ran.output


def test_with_memory_the_error_names_what_to_do(shared: dict[str, str]) -> None:
    """Without a shared state there is nothing to show from outside."""
    code, output = run("--port", "0", **{**shared, "KEYROT_STATE_URL": "memory://"})
    assert (code, "keyrot_middleware.ui.app(token=…)" in output) == (1, True)


def test_a_port_in_use_is_a_sentence() -> None:
    """The port, and what to do instead, are named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = run("--port", str(port))
    text = f"--host 127.0.0.1 --port {port}: Address already in use"
    assert (found[0], found[1].startswith(f"keyrot: {text}")) == (2, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.com"])
def test_another_host_needs_a_token_file(host: str) -> None:
    """A page that other machines reach must not use a token printed on a terminal."""
    code, output = run("--host", host)
    assert (code, "--token-file FILE" in output) == (2, True)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "No such file"), (b"short", "at least 16 characters, found 5"), (b"\xff", "UTF-8")],
    ids=["missing", "short", "bytes"],
)
def test_a_wrong_token_file_is_a_sentence(tmp_path, content, sentence) -> None:
    """The error names the mistake and how to make a token, and not the file's content."""
    file = tmp_path / "token.txt"
    if content is not None:
        file.write_bytes(content)
    code, output = run("--token-file", str(file))
    assert (code, sentence in output, "secrets.token_urlsafe" in output) == (2, True, True)
    assert "short;" not in output


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_extra_is_a_sentence(keyrot, hide, shared, package) -> None:
    """Without Starlette or uvicorn the command names the extra to install."""
    ran = keyrot("ui", "--port", "0", **shared, **hide(package))
    assert ran.returncode == 2
    assert "pip install '.[ui]'" in ran.stderr
