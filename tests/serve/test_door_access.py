"""Who may call through the door: no browser, no proxy, no odd request, and no key of its own."""

import shutil
import socket
import subprocess

import pytest
from door import BODY, CALL, over

from keyrot_middleware.testing import FakeGemini

TOKEN = "a-token-of-the-tests-0123"
HEAD = f"POST {CALL} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
MANY = "X-A: 1\r\n" * 100
SIZE = f"Content-Length: {len(BODY)}\r\n"


def post(path: str) -> str:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{SIZE}\r\n{BODY}"


ATTACKS = {
    "a page of the web": (f"{HEAD}Origin: https://x.test\r\n{SIZE}\r\n{BODY}", 403),
    "another site": (f"{HEAD}Sec-Fetch-Site: cross-site\r\n{SIZE}\r\n{BODY}", 403),
    "DNS rebinding": (HEAD.replace("127.0.0.1", "x.test") + f"{SIZE}\r\n{BODY}", 403),
    "two hosts": (f"{HEAD}Host: localhost\r\n{SIZE}\r\n{BODY}", 400),
    "a proxy": (f"{HEAD}X-Forwarded-For: 10.0.0.1\r\n{SIZE}\r\n{BODY}", 403),
    "HTTP/1.0": (HEAD.replace("1.1", "1.0") + f"{SIZE}\r\n{BODY}", 403),
    "two lengths": (f"{HEAD}{SIZE}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a hundred headers": (f"{HEAD}{MANY}{SIZE}\r\n{BODY}", 431),
    "a websocket": (f"{HEAD}Upgrade: websocket\r\n{SIZE}\r\n{BODY}", 501),
    "an absolute address": (post(f"http://x.test{CALL}"), 404),
    "another host in the path": (post("/gemini@x.test/v1beta/models/m:generateContent"), 404),
    "dots": (post("/gemini/v1beta/../v1beta/models/m:generateContent"), 404),
    "encoded dots": (post("/gemini/v1beta/%2e%2e/models/m:generateContent"), 404),
    "an encoded slash": (post("/gemini/v1beta/models%2fm:generateContent"), 404),
    "a backslash": (post("/gemini\\v1beta/models/m:generateContent"), 404),
    "two slashes": (post("//gemini/v1beta/models/m:generateContent"), 404),
    "another provider": (post("/openai/v1/chat/completions"), 404),
    "an unknown path": (post("/gemini/v1beta/nothing:here"), 404),
    "another platform": (
        post("/gemini/v1beta1/projects/p/locations/l/publishers/google/models/m:generateContent"),
        404,
    ),
}


@pytest.fixture(scope="module")
def service():
    with FakeGemini() as server:
        yield server


def test_no_attack_is_sent_on(door, service) -> None:
    """Each gets a refusal that shows no key, and nothing reaches the provider."""
    env = over(service, "A")
    one = door(**env)
    before = service.count()
    for name, (request, status) in ATTACKS.items():
        got = one.raw(request)
        assert got.startswith(f"HTTP/1.1 {status} "), (name, got)
        assert env["GEMINI_API_KEYS"] not in got
        assert service.count() == before, name
    assert "Traceback" not in one.stop()


def test_a_real_key_is_refused_and_anything_else_is_as_nothing(door, service, fake_key) -> None:
    """A program that was moved here may still send its own key or login: it is told so."""
    one = door(**over(service, "B"))
    for given in ({"X_Goog_Api_Key": fake_key}, {"Authorization": f"Bearer {fake_key}"}):
        refused = one(**given)
        assert (refused.status, "keyrot-pool" in refused.body.decode()) == (401, True)
        assert fake_key not in refused.body.decode()
    assert one(f"{CALL}?key={fake_key}").status == 401
    assert one(X_Goog_Api_Key="keyrot-pool").status == 200


def test_with_a_token_nothing_else_is_accepted(door, service, tmp_path) -> None:
    """In any place of a key; it is not sent on, and other names of the server are allowed."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    one = door("--token-file", str(file), "--host", "0.0.0.0", **over(service, "C"))
    for given in ({}, {"X_Goog_Api_Key": "keyrot-pool"}, {"Authorization": f"Bearer {TOKEN}x"}):
        assert one(**given).status == 401
    assert one(X_Goog_Api_Key=TOKEN, Host="door.test").status == 200
    assert one(Authorization=f"Bearer {TOKEN}").status == 200
    assert one(f"{CALL}?key={TOKEN}").status == 200
    assert service.sent("C") == 3
    assert TOKEN not in "\n".join(one.lines)
    assert one.url == f"http://{socket.gethostname()}:{one.port}"
    command = next(line for line in one.lines if "curl" in line).partition(": ")[2]
    here = command.replace(socket.gethostname(), "127.0.0.1", 1)
    if shutil.which("curl") is not None:
        subprocess.run(["sh", "-c", f"{here} --fail"], capture_output=True, check=True)
        assert service.sent("C") == 4


@pytest.mark.parametrize("token", ["sixteen letters and spaces", "'FAKE-in-quotes-1'", "FÄKE" * 4])
def test_a_token_that_no_program_can_send_is_refused(door, tmp_path, token) -> None:
    """Before it serves; the message does not show it."""
    file = tmp_path / "token"
    file.write_text(token, "utf-8")
    with pytest.raises(AssertionError) as error:
        door("--token-file", str(file), GEMINI_API_KEYS="FAKE-a")
    assert "a token has no spaces" in str(error.value)
    assert token not in str(error.value)


@pytest.fixture
def fake_key() -> str:
    return "AIza" + "FAKE-key-of-a-program-that-moved-0"
