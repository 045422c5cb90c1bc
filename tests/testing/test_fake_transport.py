"""The transport: faults, limits, speed, and leaving nothing behind."""

import http.client
import json
import socket
import threading

import pytest

from keyrot_middleware.testing import FakeGemini, FakeKey, Reply

MODEL = "gemini-3.1-flash-lite"
BODY = json.dumps({"contents": [{"parts": [{"text": "hello"}]}]})
PATH = f"/v1beta/models/{MODEL}:generateContent"


def post(
    connection: http.client.HTTPConnection, key: FakeKey | None, body: str = BODY, path: str = PATH
) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"} | ({"x-goog-api-key": key.value} if key else {})
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    return response.status, response.read()


@pytest.fixture
def connection(gemini: FakeGemini):
    made = http.client.HTTPConnection(gemini.host, timeout=60)
    yield made
    made.close()


def test_two_keys_in_one_request_are_refused_and_seen(gemini) -> None:
    """A header sent twice in two cases is a common mistake of header patches."""
    key = gemini.add_key("a")
    raw = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nx-goog-api-key: {key.value}\r\n"
        f"X-Goog-Api-Key: {key.value}\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}"
    )
    with socket.create_connection(("127.0.0.1", int(gemini.host.split(":")[1]))) as plain:
        plain.sendall(raw.encode())
        assert plain.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert gemini.log[0].header_values("x-goog-api-key") == [key.value, key.value]
    assert gemini.count(reply="MULTIPLE_KEYS") == 1


def test_nothing_is_left_after_stop() -> None:
    """No thread, no open port, no connection; a stopped server may be started again."""
    before = set(threading.enumerate())
    gemini = FakeGemini().start()
    key = gemini.add_key("a")
    gemini.script("a", Reply.HANG)
    host = gemini.host
    hanging = http.client.HTTPConnection(host, timeout=60)
    hanging.request("POST", PATH, BODY, {"x-goog-api-key": key.value})
    assert gemini.wait_for(1, 60.0)
    gemini.stop()
    gemini.stop()
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        hanging.getresponse()
    hanging.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(host.split(":")[1])), timeout=1)
    assert set(threading.enumerate()) <= before
    with gemini:
        again = http.client.HTTPConnection(gemini.host, timeout=60)
        assert post(again, key)[0] == 200
        again.close()


def test_keys_look_real_but_contain_fake() -> None:
    """Both formats have Google's shape, contain FAKE, and stay out of repr."""
    gemini = FakeGemini()
    standard, auth = gemini.add_key("a"), gemini.add_key("b", style="auth")
    assert standard.value.startswith("AIza") and len(standard.value) == 39
    assert auth.value.startswith("AQ.")
    for key in (standard, auth):
        assert "FAKE" in key.value
        assert key.value not in repr(key)
    with pytest.raises(ValueError, match="already"):
        gemini.add_key("a")
    with pytest.raises(ValueError, match="style"):
        gemini.add_key("c", style="other")
