"""A program whose pool is in memory shows its status to `keyrot status` on a socket."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import keyrot_middleware
from keyrot_middleware import KeyrotWarning
from keyrot_middleware.cli.sources import SocketSource
from keyrot_middleware.errors import KeyrotError

Keyrot = Callable[..., Any]
MODEL = "gemini-2.5-flash"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a path; the paths of sockets are short."""
    return str(tmp_path / "s")


KEYS = ["FAKE-key-number-one", "FAKE-key-number-two"]


def install(path: str) -> None:
    """Install a pool of two keys with a status socket."""
    keyrot_middleware.install(keys=KEYS, status_socket=path)


@pytest.mark.usefixtures("clean_environment")
def test_status_and_explain_see_a_pool_in_memory(keyrot: Keyrot, path: str) -> None:
    """The same JSON as the page's API; only the owner may open the socket, and it is removed."""
    install(path)
    try:
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
        env = {"KEYROT_STATUS_SOCKET": path}
        assert keyrot("status", **env).stdout.startswith("2 of 2 keys are available")
        found = json.loads(keyrot("status", "--json", **env).stdout)
        assert [key["key_id"] for key in found["keys"]] == ["key_1", "key_2"]
        assert found["shared"] is False
        assert (
            "would get one of 2 keys now: key_1, key_2." in keyrot("explain", MODEL, **env).stdout
        )
        assert not any(value in json.dumps(found) for value in KEYS)
    finally:
        keyrot_middleware.uninstall()
    assert not Path(path).exists()
    assert not any(thread.name == "keyrot-status" for thread in threading.enumerate())


@pytest.mark.usefixtures("clean_environment")
def test_the_command_the_page_and_a_notebook_say_the_same_first(keyrot: Keyrot, path: str) -> None:
    """Which keys are available, then failed calls, then failed requests."""
    install(path)
    try:
        with keyrot_middleware.get_key_manager() as manager:
            manager.report_success(manager.select_key(MODEL).key_id)
            manager.report_error(manager.select_key(MODEL).key_id, ConnectionError())
        lines = [
            "2 of 2 keys are available.",
            "Last hour: 1 of 2 calls failed. 1 of 2 requests failed; a call goes on with another "
            "key.",
        ]
        assert keyrot("status", KEYROT_STATUS_SOCKET=path).stdout.splitlines()[:2] == lines
        assert keyrot_middleware.status()["headline"] == lines
        assert "<br>".join(lines) in keyrot_middleware.status()._repr_html_()  # type: ignore[attr-defined]
        said = SocketSource(path).status()["summary"]["headline"]
        first = {"sentence": lines[0], "key_id": None, "available_at": None}
        assert (said["keys"], said["models"]) == (first, [])
        assert f"Last hour: {said['calls']} {said['requests']}" == lines[1]
    finally:
        keyrot_middleware.uninstall()


def test_a_socket_without_a_server_is_reported(keyrot: Keyrot, path: str) -> None:
    """With its path, and what to check."""
    ran = keyrot("status", KEYROT_STATUS_SOCKET=path)
    assert (ran.returncode, "there is no such socket" in ran.stderr) == (1, True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    ran = keyrot("status", KEYROT_STATUS_SOCKET=path)
    assert (ran.returncode, "nothing answers as a pool does" in ran.stderr) == (1, True)
    assert "Traceback" not in ran.stderr


@pytest.mark.usefixtures("clean_environment")
def test_a_socket_that_cannot_be_made_is_a_warning(path: str) -> None:
    """The pool works without it; an existing file is not touched, nor a socket in use."""
    Path(path).write_text("mine")
    with pytest.warns(KeyrotWarning, match="exists and is no socket"):
        install(path)
    keyrot_middleware.uninstall()
    assert Path(path).read_text() == "mine"
    Path(path).unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.warns(KeyrotWarning, match="another process serves"):
            install(path)
        keyrot_middleware.uninstall()
    with pytest.warns(KeyrotWarning, match="no socket can be made"):
        install(f"{path}/no/such/place")
    keyrot_middleware.uninstall()


FORKING = """
import os, sys, keyrot_middleware
keyrot_middleware.install(keys=["FAKE-key-one"], status_socket=sys.argv[1])
child = os.fork()
if child == 0:
    keyrot_middleware.uninstall()
    os._exit(0)
os.waitpid(child, 0)
assert os.path.exists(sys.argv[1])
keyrot_middleware.uninstall()
assert not os.path.exists(sys.argv[1])
"""


def test_a_forked_child_leaves_the_socket_to_its_parent(path: str) -> None:
    """The child's uninstall() removes nothing."""
    command = [sys.executable, "-W", "ignore", "-c", FORKING, path]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.usefixtures("clean_environment")
def test_a_program_that_logs_by_uvicorn_keeps_its_loggers(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Handlers of its access log stay, and the server of the socket writes nothing into its log."""
    access, handler = logging.getLogger("uvicorn.access"), logging.NullHandler()
    errors = logging.getLogger("uvicorn.error")
    before = list(errors.filters)  # litellm adds one of its own where it is imported
    # Servers of other tests in this process have configured it, and pytest adds its own handlers.
    as_new = mock.patch.multiple(access, handlers=[handler], filters=[], propagate=True)
    try:
        with as_new, caplog.at_level(logging.INFO), caplog.at_level(logging.NOTSET, access.name):
            install(path)
            assert SocketSource(path).status()["total"] == 2
            access.info("of the program")
            assert (access.handlers, access.propagate) == ([handler], True)
            keyrot_middleware.uninstall()
            assert (access.filters, errors.filters) == ([], before)
        logged = [r.message for r in caplog.records if r.name.startswith("uvicorn")]
        assert logged == ["of the program"]
    finally:
        keyrot_middleware.uninstall()


@pytest.mark.usefixtures("clean_environment")
def test_the_socket_answers_as_soon_as_install_returns(path: str) -> None:
    """Each time: no connection is refused while the server's thread starts."""
    for _ in range(5):
        install(path)
        try:
            assert SocketSource(path).status()["total"] == 2
        finally:
            keyrot_middleware.uninstall()


ORPHAN = """
import os, sys, time
import keyrot_middleware
keyrot_middleware.install(keys=["FAKE-key-number-one"], status_socket=sys.argv[1])
child = os.fork()
if child == 0:
    print("child", flush=True)
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.usefixtures("clean_environment")
def test_a_child_does_not_hold_the_socket_of_a_killed_parent(path: str) -> None:
    """A program that was killed and started again gets its socket, though a worker remains."""
    command = [sys.executable, "-c", ORPHAN, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        try:
            assert parent.stdout.readline() == b"child\n"
            parent.wait(30)
            install(path)
            assert SocketSource(path).status()["total"] == 2
        finally:
            keyrot_middleware.uninstall()
            parent.stdin.close()


OTHERS = [b'{"message": "page not found"}', b"[]", b"null", b"[" * 10_000, b"\x1b[31m\xff"]


@pytest.mark.parametrize("body", OTHERS, ids=range(len(OTHERS)))
def test_the_socket_of_another_program_is_reported(path: str, body: bytes) -> None:
    """For example Docker's: a sentence, no traceback, and no control characters."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            for _ in range(2):
                client, _ = listener.accept()
                with client:
                    client.recv(4096)
                    length = b"Content-Length: %d" % len(body)
                    client.sendall(b"HTTP/1.1 404 \x1b[31m\r\n" + length + b"\r\n\r\n" + body)

        server = threading.Thread(target=answer)
        server.start()
        for read in (SocketSource(path).status, lambda: SocketSource(path).explain(MODEL)):
            with pytest.raises(KeyrotError, match="KEYROT_STATUS_SOCKET: ") as raised:
                read()
            assert "\x1b" not in str(raised.value)
        server.join()
