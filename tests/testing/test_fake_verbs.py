"""Verbs over plain HTTP that some SDK versions cannot send."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

from keyrot_middleware.testing import FakeGemini, Reply

Request = Callable[..., tuple[int, Any]]


@pytest.fixture
def send_request(gemini: FakeGemini):
    """Send a request with the paid key `a` and return status and JSON, or bytes."""
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
