"""The transport: faults, limits, speed, and leaving nothing behind."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from keyrot_middleware.testing import FakeGemini, FakeKey, Reply

MODEL = "gemini-2.5-flash"
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


def test_a_reset_gives_no_response(gemini, connection) -> None:
    """The connection is reset before a byte is answered, and the log has status 0."""
    key = gemini.add_key("a")
    gemini.script("a", Reply.RESET)
    with pytest.raises(ConnectionResetError):
        post(connection, key)
    assert (gemini.log[0].status, gemini.log[0].reply) == (0, "RESET")


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


Request = Callable[..., tuple[int, Any]]


@pytest.fixture
def send_request(gemini: FakeGemini):
    key = gemini.add_key("a", tier="paid")
    connection = http.client.HTTPConnection(gemini.host, timeout=60)

    def send(method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        connection.request(method, path, data, {"x-goog-api-key": key.value} | headers)
        response = connection.getresponse()
        raw = response.read()
        is_json = response.headers["content-type"].startswith("application/json")
        return response.status, json.loads(raw) if is_json and raw else raw

    yield send
    connection.close()


def test_a_long_running_operation_is_done_when_requested(send_request: Request) -> None:
    """Its name is under the model, and it belongs to the project."""
    _, begun = send_request("POST", "/v1beta/models/veo-3.1:predictLongRunning", {"instances": []})
    assert begun["name"].startswith("models/veo-3.1/operations/")
    assert send_request("GET", f"/v1beta/{begun['name']}") == (
        200,
        {"name": begun["name"], "done": True, "response": {}},
    )


def test_an_interaction_is_kept(gemini: FakeGemini, send_request: Request) -> None:
    """It has the answer, is charged to its model, and can be read again."""
    status, made = send_request(
        "POST", "/v1beta/interactions", {"model": "gemini-3.6-flash", "input": "x"}
    )
    assert (status, made["outputs"][0]["text"]) == (200, "ok from a")
    assert gemini.used("a", "gemini-3.6-flash").requests == 1
    assert send_request("GET", f"/v1beta/interactions/{made['id']}")[1] == made
    assert send_request("GET", "/v1beta/interactions/none")[0] == 404


def test_an_interaction_fails_with_a_string_code(gemini: FakeGemini, send_request: Request) -> None:
    """On its own path every scripted error has the shape of the Interactions API."""
    gemini.script("a", Reply.EXHAUSTED)
    message = "Resource has been exhausted (e.g. check quota)."
    assert send_request("POST", "/v1beta/interactions", {"model": "gemini-x"}) == (
        429,
        {"error": {"message": message, "code": "too_many_requests"}},
    )


def test_an_operation_ends_with_a_video(gemini: FakeGemini, send_request: Request) -> None:
    """Held operations are pending until the test ends them; the video is a file of the project."""
    gemini.hold_operations()
    _, operation = send_request("POST", "/v1beta/models/veo-x:predictLongRunning", {})
    assert "done" not in send_request("GET", f"/v1beta/{operation['name']}")[1]
    file = gemini.finish_operation(operation["name"], b"film")
    done = send_request("GET", f"/v1beta/{operation['name']}")[1]
    assert done["done"] is True
    assert file in done["response"]["generateVideoResponse"]["generatedSamples"][0]["video"]["uri"]
    assert send_request("GET", f"/download/v1beta/{file}:download?alt=media") == (200, b"film")
    gemini.add_key("b")
    assert gemini.add_file("b", b"other", "files/other") == "files/other"
    assert send_request("GET", "/v1beta/files/other")[0] == 403
