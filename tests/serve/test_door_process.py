"""The process of `keyrot serve`: its connections, its end, its output, and several workers."""

import asyncio
import contextlib
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import uvicorn
from door import BODY, CALL, Door, over
from support.docs_blocks import ROOT, blocks
from support.raw_server import RawServer, chunk
from support.servers import wait_for
from typer.testing import CliRunner

from keyrot_middleware.cli.app import app
from keyrot_middleware.serve import server
from keyrot_middleware.testing import FakeGemini

PAGE = ROOT / "docs" / "serve.md"
PATIENT_S = 120.0
KEYROT = (sys.executable, "-m", "keyrot_middleware")
STREAM = CALL.replace("generateContent", "streamGenerateContent?alt=sse")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
TOKEN = "a-token-of-the-tests-0123"


def until(is_so: Callable[[], Any]) -> Any:
    """Wait for what comes soon; return it."""
    end = time.monotonic() + PATIENT_S
    while not (found := is_so()):
        assert time.monotonic() < end, is_so
        time.sleep(0.02)
    return found


def read_all(client: socket.socket) -> bytes:
    """Return what comes until the connection ends; a reset ends it too."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while more := client.recv(65_536):
            got += more
    return got


def connect(port: int, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENT_S)
    client.sendall(data)
    return client


# Connections that wait ----------------------------------------------------------------------------

WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW, LARGE = WHOLE.replace(b"/ ", b"/slow "), WHOLE.replace(b"/ ", b"/large ")
OK = b"HTTP/1.1 200 OK\r\n"


MANY = b"x" * 8_000_000
"""More than the buffers of a connection on this machine take."""


class App:
    """Answers at once; `/slow` when it may, or is cancelled; `/large` more than a client reads."""

    def __init__(self) -> None:
        self.asked, self.may_answer = threading.Event(), threading.Event()

    async def aclose(self) -> None:
        """Close nothing."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            self.asked.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.to_thread(self.may_answer.wait, PATIENT_S)
        body = MANY if scope["path"] == "/large" else b"ok"
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Served:
    """uvicorn in a thread, with our connections."""

    def __init__(self) -> None:
        self.app, listener = App(), socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app,
            http=server.Protocol,
            lifespan="off",
            timeout_keep_alive=1_000,
            log_level="critical",
            loop="asyncio",  # uvicorn before 0.36 would set uvloop's policy for this whole process
            ws="none",
        )
        self.server = server.DoorServer(config)
        sockets = {"sockets": [listener]}
        self.thread = threading.Thread(target=self.server.run, kwargs=sockets, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.app.may_answer.set()
        self.server.should_exit = True
        self.thread.join(PATIENT_S)


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    yield one
    one.close()


WAITING = {
    "nothing": b"",
    "half a head": WHOLE[:-2],
    "half of a second head": WHOLE + WHOLE[:-2],
    "a body without an end": WHOLE[:-2] + b"Content-Length: 9\r\n\r\n1",
}


@pytest.mark.parametrize("sent", WAITING.values(), ids=WAITING)
def test_a_connection_that_waits_for_a_request_is_closed(served, sent, monkeypatch) -> None:
    """Whatever of a head or of an unread body came before, and however long ago a reply was."""
    monkeypatch.setattr(server, "HEAD_S", 0.2)
    with connect(served.port, sent) as client:
        assert read_all(client).count(OK) == (len(sent) > len(WHOLE))


def test_a_connection_that_sends_a_byte_at_times_is_closed(served, monkeypatch) -> None:
    """The time counts from its beginning, not from the last byte."""
    monkeypatch.setattr(server, "HEAD_S", 0.4)
    with connect(served.port, WHOLE[:-2]) as client:
        client.settimeout(0.05)

        def has_ended() -> bool:
            try:
                client.sendall(b"X-A: 1\r\n")
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:  # reset, since it was closed before the last byte
                return True

        until(has_ended)


@pytest.mark.parametrize("sent", [SLOW, WHOLE + SLOW], ids=["one", "pipelined"])
def test_a_reply_may_take_longer(served, sent, monkeypatch) -> None:
    """A connection that waits, opened later, is closed first; the reply comes whole."""
    monkeypatch.setattr(server, "HEAD_S", 0.2)
    with connect(served.port, sent) as client:
        got = b""
        while got.count(b"\r\nok") < sent.count(WHOLE):
            got += client.recv(65_536)
        for _ in range(2):
            with connect(served.port) as waiting:
                assert read_all(waiting) == b""
        served.app.may_answer.set()
        assert (got + read_all(client)).count(OK) == sent.count(b"GET")


def test_a_connection_that_ends_leaves_no_timer(served, monkeypatch) -> None:
    """Nothing holds it in memory until the time would be over."""
    monkeypatch.setattr(server, "HEAD_S", 100_000.0)
    connections = served.server.server_state.connections
    with connect(served.port, WHOLE) as client:
        got = b""
        while not got.endswith(b"\r\n\r\nok"):  # closed with bytes unread, it would be reset
            got += client.recv(65_536)
        found = weakref.ref(until(lambda: next(iter(connections), None)))
    until(lambda: gc.collect() + 1 and found() is None)


def test_a_client_that_does_not_read_the_end_of_a_reply_is_left(served, monkeypatch) -> None:
    """Its connection is closed in the end, though bytes are left that it could take."""
    monkeypatch.setattr(server, "HEAD_S", 0.2)
    monkeypatch.setattr(server, "TAKE_S", 0.2)
    connections = served.server.server_state.connections
    with connect(served.port, LARGE):
        until(lambda: connections)
        until(lambda: not connections)


def test_a_client_that_does_not_read_does_not_hold_up_the_end(served) -> None:
    """Not even where an answer to its next request would have to wait for it."""
    with connect(served.port, LARGE + SLOW):
        assert served.app.asked.wait(PATIENT_S)
        for _ in range(2):
            served.server.handle_exit(signal.SIGTERM, None)
        until(lambda: not served.server.server_state.tasks)
    served.app.may_answer.set()  # for the thread that waits for it
    served.thread.join(PATIENT_S)
    assert not served.thread.is_alive()


def test_the_door_closes_half_a_head(door, tmp_path) -> None:
    """After 15 seconds, also where a token is required that it cannot send."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    one = door("--token-file", str(file), GEMINI_API_KEYS="FAKE-a")
    with connect(one.port, WHOLE[:-2]) as client:
        assert read_all(client) == b""
    assert one.stop() == f"keyrot: other users can read {file}: chmod 600 {file}\n"


# Its end ------------------------------------------------------------------------------------------


class Provider(RawServer):
    """Sends an event, and the last one when it may."""

    def __init__(self) -> None:
        self.may_end, self.asked = threading.Event(), threading.Event()
        super().__init__(self._stream)

    def _stream(self, connection: socket.socket, key: str) -> None:
        connection.sendall(HEAD + chunk(b"data: {}\n\n"))
        self.asked.set()
        assert self.may_end.wait(PATIENT_S)
        connection.sendall(chunk(b"data: {}\n\n") + chunk(b""))

    def close(self) -> None:
        self.may_end.set()
        super().close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    one = Provider()
    yield one
    one.close()


def ask(one: Door, path: str = STREAM) -> socket.socket:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n"
    return connect(one.port, f"{head}{BODY}".encode())


def over_provider(provider: RawServer, here: Path) -> dict[str, str]:
    state = f"sqlite:///{here}/state"
    return {
        "KEYROT_ALLOWED_HOSTS": provider.host,
        "GEMINI_API_KEYS": "FAKE-a",
        "KEYROT_STATE_URL": state,
        "KEYROT_POOL": "tests",
        "KEYROT_MAX_WAIT_S": "0",
    }


def first_event(client: socket.socket) -> bytes:
    got = b""
    while b"data: {}" not in got:
        got += client.recv(65_536)
    return got


WORKERS = [(), ("--workers", "2")]


@pytest.mark.parametrize("options", WORKERS, ids=["one process", "workers"])
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_it_ends_with_the_last_request(door, provider, here, options, sig) -> None:
    """The stream comes whole; connections that wait do not hold it up, and the log says what does.

    systemd and a terminal send the signal to each process of it, and that is no second signal.
    """
    one = door(*options, **over_provider(provider, here))
    with connect(one.port), connect(one.port, WHOLE[:-2]), ask(one) as client:
        got = first_event(client)
        for pid in (one.process.pid, *children(one.process.pid)):
            os.kill(pid, sig)
        line = one.process.stderr.readline()
        assert line.startswith("keyrot: 1 request in flight: it ends with the last one, after 30 s")
        time.sleep(1)  # the first process passes it on
        provider.may_end.set()
        got += read_all(client)
    assert (got.count(b"data: {}"), got[-5:]) == (2, LAST)
    assert (one.process.communicate(timeout=PATIENT_S)[1], one.process.returncode) == ("", 0)


def test_workers_that_still_start_end_quietly(door, here) -> None:
    """Ctrl-C reaches each process before it can handle it, and none prints a traceback."""
    one = door("--workers", "2", GEMINI_API_KEYS="FAKE-a", KEYROT_STATE_URL=f"sqlite:///{here}/s")
    for pid in (*until(lambda: children(one.process.pid)), one.process.pid):
        os.kill(pid, signal.SIGINT)
    lines = one.process.communicate(timeout=PATIENT_S)[1].splitlines()
    assert all(line.startswith("keyrot: ") for line in lines)
    assert one.process.returncode == 0


@pytest.mark.parametrize("options", WORKERS, ids=["one process", "workers"])
def test_what_comes_while_it_ends_is_refused_at_once(door, provider, here, options) -> None:
    """It does not wait for the last request: a proxy or a program can ask elsewhere."""
    one = door(*options, **over_provider(provider, here))
    with ask(one) as client:
        first_event(client)
        one.process.send_signal(signal.SIGTERM)
        assert "1 request in flight" in one.process.stderr.readline()
        until(lambda: is_refused(one.port))
        assert one.process.poll() is None  # the request in flight still holds it
        provider.may_end.set()
        assert read_all(client).endswith(LAST)


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENT_S).close()
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("options", WORKERS, ids=["one process", "workers"])
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_second_signal_ends_it_at_once(door, provider, here, options, sig) -> None:
    """The program can see that its stream was cut, and the log has no traceback."""
    one = door(*options, **over_provider(provider, here))
    with ask(one) as client:
        got = first_event(client)
        one.process.send_signal(sig)
        assert "a second signal ends it at once" in one.process.stderr.readline()
        one.process.send_signal(sig)
        got += read_all(client)
    assert (got.count(b"data: {}"), got.endswith(LAST)) == (1, False)
    assert (one.process.communicate(timeout=PATIENT_S)[1], one.process.returncode) == ("", 0)


def test_a_request_without_a_reply_gets_an_error_at_the_end(door, here) -> None:
    """In the provider's form, so that its SDK can read it and send the request again."""
    asked, left = threading.Event(), threading.Event()

    def talk(connection: socket.socket, key: str) -> None:
        asked.set()
        connection.recv(1)
        left.set()

    silent = RawServer(talk)
    try:
        one = door(**over_provider(silent, here))
        with ask(one, CALL) as client:
            assert asked.wait(PATIENT_S)
            one.process.send_signal(signal.SIGTERM)
            assert "1 request in flight" in one.process.stderr.readline()
            one.process.send_signal(signal.SIGTERM)
            head, _, body = read_all(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert "it was stopped" in json.loads(body)["error"]["message"]
        assert left.wait(PATIENT_S)
        assert one.process.communicate(timeout=PATIENT_S)[1] == ""
    finally:
        silent.close()


def test_a_broken_stream_is_no_traceback(door, here) -> None:
    """The program sees that it was cut; the log has a line of ours at most."""
    broken = RawServer(lambda connection, key: connection.sendall(HEAD + chunk(b"data: {}\n\n")))
    try:
        one = door(**over_provider(broken, here))
        with ask(one) as client:
            got = read_all(client)
        assert (got.count(b"data: {}"), got.endswith(LAST)) == (1, False)
        assert all(line.startswith("keyrot: ") for line in one.stop().splitlines())
    finally:
        broken.close()


# What it prints -----------------------------------------------------------------------------------


def run(*options: str, **env: str) -> tuple[int, str]:
    """Run it in this process, where it ends before it serves."""
    ran = CliRunner().invoke(app, ["serve", *options], env=env)
    return ran.exit_code, ran.output


def test_without_a_key_that_is_all_it_says(here) -> None:
    """No warning that calls go out as they are, which holds for `install()` only."""
    ran = subprocess.run(
        [*KEYROT, "serve", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=2 * PATIENT_S,
        check=False,
    )
    [line] = ran.stderr.splitlines()
    assert line.startswith("keyrot: there is no key to serve with: set GEMINI_API_KEYS")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "ENABLE_KEY_ROTATION" in run(ENABLE_KEY_ROTATION="false")[1]


def test_with_keys_of_express_mode_only_it_says_so(here) -> None:
    """The door does not serve that platform."""
    (here / "keys.json").write_text('[{"key_id": "a", "platform": "vertex_express"}]')
    code, output = run("--port", "0", GEMINI_KEY_a="FAKE-a")
    assert (code, "Vertex AI in express mode, which is not served" in output) == (1, True)


def test_the_page_shows_what_it_prints(door, here) -> None:
    """The block at the top of docs/serve.md, from the first line to the last."""
    keys = [{"key_id": "a"}, {"key_id": "b"}, {"key_id": "c", "provider": "openai"}]
    (here / "keys.json").write_text(json.dumps(keys))
    values = {f"KEYROT_KEY_{key['key_id']}": f"FAKE-{key['key_id']}" for key in keys}
    one = door(KEYROT_POOL="web", **values)
    shown = next(block.code for block in blocks(PAGE) if block.language == "text")
    assert [line.replace(f":{one.port}/", ":8789/") for line in one.lines] == shown.splitlines()


def test_it_counts_keys_with_a_value_and_logs_the_others(door, here, tmp_path) -> None:
    """The log has lines of its own, and no line of Python's source."""
    (here / "keys.json").write_text('[{"key_id": "a"}, {"key_id": "b"}, {"key_id": "c"}]')
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    one = door("--token-file", str(file), KEYROT_KEY_a="FAKE-a", KEYROT_KEY_b="FAKE-b")
    assert one.lines[0] == "keyrot serve: pool default, 2 keys, and 1 without a value"
    assert one.lines[-1] == f"API key of each program: the token in {file}. Ctrl-C ends it"
    lines = one.stop().splitlines()
    assert any("1 of 3 keys have no value and are skipped: key c" in line for line in lines)
    assert all(line.startswith("keyrot: ") for line in lines)


def test_workers_do_not_repeat_what_the_first_process_has_logged(door, here) -> None:
    """A key without a value is in the log as often as with one process."""
    (here / "keys.json").write_text('[{"key_id": "a"}, {"key_id": "b"}]')
    env = {"KEYROT_KEY_a": "FAKE-a", "KEYROT_STATE_URL": f"sqlite:///{here}/state"}
    said = []
    for options in WORKERS:
        one = door(*options, **env)
        assert one("/healthz", None, "GET").status == 200
        said.append(one.stop().splitlines())
    assert any("key b" in line for line in said[0])
    assert said[0] == said[1]


@pytest.mark.parametrize("name", ["token", "a 'token'"])
def test_the_printed_request_works_where_a_token_is_required(door, here, name) -> None:
    """As it is printed, in a shell; the token itself is not printed."""
    (here / name).write_text(TOKEN)
    (here / name).chmod(0o600)
    with FakeGemini() as service:
        one = door("--token-file", name, **over(service, "A"))
        command = next(line for line in one.lines if line.startswith("Try: "))[5:]
        shell = ["/bin/sh", "-c", f"{command} -sS"]
        ran = subprocess.run(shell, cwd=here, capture_output=True, text=True, check=False)
    assert "candidates" in json.loads(ran.stdout), ran
    assert TOKEN not in "".join(one.lines)


def test_another_port_than_the_page_and_a_port_in_use_is_a_sentence(here) -> None:
    """`keyrot ui` and `keyrot fake` run beside it, and the error names what to do."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    ports = {
        name: next(one.default for one in commands[name].params if one.name == "port")
        for name in ("ui", "serve", "fake")
    }
    assert (len(set(ports.values())), ports["serve"]) == (3, 8789)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, output = run("--port", port, GEMINI_API_KEYS="FAKE-a")
    expected = f"keyrot: --host 127.0.0.1 --port {port}: Address already in use; choose another"
    assert (code, output.startswith(expected), "--port 0" in output) == (2, True, True)


def test_the_page_has_each_option_and_its_default() -> None:
    """A row for each, and no other."""
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    own = {one.opts[0]: str(one.default or "-") for one in command.params if one.name != "help"}
    rows = re.findall(r"^\| `(--[\w-]+)` \| `?([^|`]+)`? \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert dict(rows) == own


# Workers ------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, without what has ended."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system lists no processes")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes()
            if (int(parent), state != "Z") == (pid, True) and b"spawn_main" in command:
                found.append(int(folder.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_with_counts_in_memory_are_refused(here) -> None:
    """The error says why, and what to set."""
    given = {"GEMINI_API_KEYS": "FAKE-a", "KEYROT_STATE_URL": "memory://"}
    code, output = run("--workers", "2", **given)
    assert code == 2
    assert "each process would count for itself" in output
    assert "sqlite or redis://" in output


@pytest.mark.parametrize("limit", ["rpd", "rpm"])
def test_one_limit_holds_for_all_workers(door, here, limit) -> None:
    """Exactly 20 of 40 calls at once are sent, and each process says so."""
    while time.time() % 60 > 40:  # in one minute, where the machine allows
        time.sleep(1)
    (here / "keys.json").write_text(json.dumps([{"key_id": "a", limit: 20}]))
    with FakeGemini() as service:
        key = service.add_key("a", tier="paid").value
        env = {
            "KEYROT_POOL": "tests",
            "KEYROT_STATE_URL": f"sqlite:///{here}/state",
            "GEMINI_KEY_a": key,
        }
        one = door(
            "--workers", "2", KEYROT_ALLOWED_HOSTS=service.host, KEYROT_MAX_WAIT_S="0", **env
        )
        assert one("/readyz", None, "GET").status == 200
        minute, got = int(time.time() // 60), []
        calls = [threading.Thread(target=lambda: got.append(one().status)) for _ in range(40)]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
        if limit == "rpm" and int(time.time() // 60) != minute:
            pytest.skip("the calls took more than a minute")
        assert (got.count(200), got.count(429), service.count()) == (20, 20, 20)
        assert limit == "rpm" or one("/readyz", None, "GET").status == 503

        def successes() -> int:
            command = [*KEYROT, "status", "--json"]
            more = {**os.environ, **env}
            ran = subprocess.run(command, env=more, capture_output=True, text=True, check=False)
            return json.loads(ran.stdout)["keys"][0]["success_count"]

        wait_for(lambda: successes() == 20)  # a success is written within a second


def test_a_worker_that_is_killed_is_replaced(door, here) -> None:
    """The rest go on, the log says so, and no process is left at the end."""
    with FakeGemini() as service:
        env = over(service, "A") | {
            "KEYROT_STATE_URL": f"sqlite:///{here}/state",
            "KEYROT_POOL": "tests",
        }
        one = door("--workers", "2", **env)
        before = until(lambda: found if len(found := children(one.process.pid)) == 2 else None)
        assert one().status == 200
        os.kill(before[0], signal.SIGKILL)
        line = one.process.stderr.readline()
        assert line == f"keyrot: worker {before[0]} has ended; another one starts\n"
        after = until(lambda: found if len(found := children(one.process.pid)) == 2 else None)
        assert len({*before, *after}) == 3
        assert one().status == 200
        assert (one.stop(), one.process.returncode) == ("", 0)
        assert not any(map(is_running, (*before, *after)))


def test_workers_end_with_the_first_process(door, here) -> None:
    """Also where it is killed and cannot end them, so the port is free again."""
    env = {"GEMINI_API_KEYS": "FAKE-a", "KEYROT_STATE_URL": f"sqlite:///{here}/state"}
    one = door("--workers", "2", **env)
    found = until(lambda: found if len(found := children(one.process.pid)) == 2 else None)
    assert one("/healthz", None, "GET").status == 200
    one.process.kill()
    until(lambda: not any(map(is_running, found)))


def test_no_process_shows_the_token(door, here, tmp_path) -> None:
    """Neither its arguments nor its environment, which others of this machine may read."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    env = {"GEMINI_API_KEYS": "FAKE-a", "KEYROT_STATE_URL": f"sqlite:///{here}/state"}
    one = door("--workers", "2", "--token-file", str(file), **env)
    found = until(lambda: found if len(found := children(one.process.pid)) == 2 else None)
    for pid in (one.process.pid, *found):
        for name in ("cmdline", "environ"):
            assert TOKEN.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert one("/gemini/v1beta/models", None, "GET").status == 401  # and each knows it


def test_a_worker_that_cannot_start_ends_them_all(door, here) -> None:
    """With its error and its exit code, for systemd to see; it is not started again and again."""
    (here / "keys.json").write_text('[{"key_id": "a"}]')
    env = {"KEYROT_KEY_a": "FAKE-a", "KEYROT_STATE_URL": f"sqlite:///{here}/state"}
    one = door("--workers", "2", **env)
    found = until(lambda: found if len(found := children(one.process.pid)) == 2 else None)
    assert one("/healthz", None, "GET").status == 200
    (here / "keys.json").write_text("{")
    os.kill(found[0], signal.SIGKILL)
    errors = one.process.communicate(timeout=PATIENT_S)[1]
    assert "keys.json" in errors
    assert (one.process.returncode, "Traceback" in errors) == (1, False)
