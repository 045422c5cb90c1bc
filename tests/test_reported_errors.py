"""A program may report errors of any HTTP library by hand: they are all parsed."""

import importlib.util
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from google.genai import errors
from support.modes import spread

from keyrot_middleware import KeyManager
from keyrot_middleware.testing import FakeGemini, Reply

PATH = "/v1beta/models/gemini-3.1-flash-lite:generateContent"
BODY = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}


@pytest.fixture
def manager(gemini, clock) -> KeyManager:
    return KeyManager(clock=clock, keys=[gemini.add_key("a").value])


def by_requests(url: str, headers: dict[str, str]) -> None:
    requests.post(url, json=BODY, headers=headers, timeout=60).raise_for_status()


def by_httpx(url: str, headers: dict[str, str]) -> None:
    name = "httpx2" if importlib.util.find_spec("httpx2") else "httpx"
    httpx = importlib.import_module(name)
    httpx.post(url, json=BODY, headers=headers).raise_for_status()


def by_urllib(url: str, headers: dict[str, str]) -> None:
    headers = {**headers, "content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(BODY).encode(), headers)  # noqa: S310 - loopback
    urllib.request.urlopen(request, timeout=60)  # noqa: S310


def refused(send: Callable[..., None], gemini: FakeGemini, manager: KeyManager, reply: Any) -> Any:
    gemini.script("a", reply)
    key = manager.select_key("gemini-3.1-flash-lite")
    with pytest.raises(Exception, match=r".") as caught:
        send(gemini.url + PATH, {"x-goog-api-key": key.api_key})
    return caught.value


@pytest.mark.parametrize(
    ("send", "reply", "failure"),
    spread(
        [by_requests, by_httpx, by_urllib],
        [
            (Reply.QUOTA_MINUTE, "quota_minute"),
            (Reply.QUOTA_DAY, "quota_day"),
            (Reply.KEY_INVALID, "key_invalid"),
            (Reply.KEY_SUSPENDED, "project_suspended"),
            (Reply.BAD_REQUEST, "bad_request"),
        ],
    ),
)
def test_an_error_with_a_body_is_read_like_the_sdks(send, reply, failure, gemini, manager) -> None:
    """The body separates a bad request from a bad key, a minute from a day; it keeps no key."""
    error = refused(send, gemini, manager, reply)
    assert manager.report_error("key_1", error).failure == failure
    response = getattr(error, "response", None)
    body = error.read().decode() if response is None else response.text
    assert json.loads(body)["error"]["message"], "the program can read it still"
    assert gemini.key("a").value not in body + repr(error)


class ApiError(Exception):
    """An error of a typical API client, with given attributes."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__("failed")
        self.__dict__.update(attributes)


LEAKED = {"code": 403, "message": "Your API key was reported as leaked. Please use another one."}


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ApiError(status_code=403, body={"error": LEAKED}), "key_leaked"),
        (ApiError(status_code=403, body=[{"error": LEAKED}]), "key_leaked"),
        (ApiError(status_code=403, body=LEAKED), "key_leaked"),
        (ApiError(status_code=401, body=None, code="invalid_api_key"), "unknown_refusal"),
        (ApiError(status=503), "overloaded"),
        (ApiError(code=404), "not_found"),
        (ApiError(status_code=429, code=1300), "capacity"),
        (ApiError(code=True, status=200, status_code="403"), "transport"),
        (ApiError(rcvd=SimpleNamespace(code=1011, reason="You exceeded your quota")), "capacity"),
        (ApiError(rcvd=SimpleNamespace(code=1011, reason="Internal error")), "server_error"),
        (ApiError(rcvd=None), "transport"),
        (errors.APIError(1011, "You exceeded your current quota", None), "capacity"),
        (errors.APIError(1011, "Internal error", None), "server_error"),
        (TimeoutError(), "timeout"),
        (ConnectionRefusedError(), "connect"),
    ],
)
def test_errors_are_classified_by_their_attributes(error, failure, manager) -> None:
    """API clients, websockets, and errors without a status."""
    assert manager.report_error("key_1", error).failure == failure


def test_the_retry_time_is_read_from_the_headers(manager, clock) -> None:
    for name in ("retry-after", "Retry-After"):
        response = SimpleNamespace(status_code=429, headers={name: "40"}, text="slow")
        report = manager.report_error(manager.select_key().key_id, ApiError(response=response))
        assert report.failure == "rate_limit"
        assert round(report.cooldown_until.timestamp() - clock.time()) in range(38, 43)
        clock.advance(60)


class HostileError(Exception):
    """Every attribute raises, except those that an exception needs."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") or name in ("args", "add_note"):
            return super().__getattribute__(name)
        raise RuntimeError(name)


def test_a_hostile_error_is_reported_without_an_exception(manager, monkeypatch) -> None:
    """Exceptions of its attributes are not raised by a report."""
    monkeypatch.setattr("keyrot_middleware.errors._strict", False)
    assert manager.report_error("key_1", HostileError("x")).failure == "transport"
