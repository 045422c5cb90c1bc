"""The error for each failure of Secret Manager and google-auth, always without a value."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cloud_emulator import ScriptedReplies
from support.fake_secret_manager import PROJECT, READER, UNPRIVILEGED, status
from support.json_server import Response
from support.store_servers.gcp import GcpServer
from support.stores import all_output, resolve_all, resolve_one
from support.unreachable import closed_port

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets import gcp as gcp_login
from keyrot_middleware.secrets.gcp import ENDPOINT_VARIABLE, open_gcp

PLACE = f"gcp://{PROJECT}/plain"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GcpServer]:
    """Start a Secret Manager with two keys."""
    made = GcpServer(tmp_path)
    made.manager.write("plain", "FAKE-value-a")
    made.put("b", "FAKE-value-b")
    yield made
    made.close()


def test_denied_names_place_and_identity(server: GcpServer) -> None:
    """The service account's address, and the role to give."""
    text = resolve_one(server.denied(), PLACE)
    assert text.startswith(
        f"key a: {PLACE}: access denied to {UNPRIVILEGED}, or there is no such secret"
    )
    assert "roles/secretmanager.secretAccessor" in text


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (status(404, "NOT_FOUND", "no"), "there is no such secret in this project"),
        (
            status(400, "FAILED_PRECONDITION", "Secret Version [x] is in DISABLED state."),
            "cannot be read (FAILED_PRECONDITION): is its version disabled or destroyed?",
        ),
        (status(403, "PERMISSION_DENIED", "no"), f"access denied to {READER}"),
        (status(403, "PERMISSION_DENIED", "no", "SERVICE_DISABLED"), "API is not enabled"),
        (status(403, "PERMISSION_DENIED", "no", "BILLING_DISABLED"), "no billing account"),
        (
            status(403, "PERMISSION_DENIED", "no", "ACCESS_TOKEN_SCOPE_INSUFFICIENT"),
            f"the login of {READER} has not the scope cloud-platform",
        ),
        (Response(418, b"<html>"), "Secret Manager refused (418)"),
        (Response(418, {"error": "odd"}), "Secret Manager refused (418)"),
        (Response(302, {}, {"Location": "http://127.0.0.1:9/"}), "Secret Manager refused (302)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value.status),
)
def test_a_permanent_failure_is_not_retried(
    server: GcpServer, answer: Response, message: str
) -> None:
    """The message has key, secret, reason and what to do; the next key is still read."""
    server.manager.odd = then = ScriptedReplies(answer)
    found = resolve_all(server.open(), a=PLACE, b=None)
    assert message in found["a"]
    assert found["b"] == "FAKE-value-b"
    assert then.reads == 2


def test_a_revoked_login_is_renewed_once(server: GcpServer) -> None:
    """Then the value is there; where the new login is refused too, the error is reported."""
    store = server.open()
    assert resolve_one(store, PLACE) == "FAKE-value-a"
    server.manager.revoke()
    assert resolve_one(store, PLACE) == "FAKE-value-a"
    assert server.manager.count("/token") == 2
    no = status(401, "UNAUTHENTICATED", "no")
    server.manager.odd = then = ScriptedReplies(no, no)
    assert f"the login of {READER} is no longer taken (UNAUTHENTICATED)" in resolve_one(
        store, PLACE
    )
    assert then.reads == 2


def test_a_login_that_was_refused_is_tried_again_at_the_next_look_up(server: GcpServer) -> None:
    """From the start, with the credentials file as it is then."""
    file = server.manager.credentials(READER)
    good = file.read_text()
    file.write_text(good.replace(READER, UNPRIVILEGED))
    store = open_gcp(
        {"GOOGLE_APPLICATION_CREDENTIALS": str(file), ENDPOINT_VARIABLE: server.manager.url}
    )
    server.manager.odd = lambda a: (
        Response(400, {"error": "invalid_grant"}) if "token" in a.path else None
    )
    text = resolve_one(store, PLACE)
    assert "the login at Google failed (invalid_grant)" in text
    server.manager.odd = lambda _: None
    file.write_text(good)
    assert resolve_one(store, PLACE) == "FAKE-value-a"


@pytest.mark.parametrize(
    "answer",
    [
        Response(429, {"error": {"status": "RESOURCE_EXHAUSTED"}}, {"Retry-After": "60"}),
        status(503, "UNAVAILABLE", "m"),
        Response(500, b"<html>"),
        Response(0, None),
        Response(200, b"<html>"),
        Response(200, {"payload": {"data": "not base64!"}}),
    ],
    ids=["quota", "unavailable", "broken", "cut off", "html", "no base64"],
)
def test_a_busy_or_damaged_answer_is_requested_again(server: GcpServer, answer: Response) -> None:
    """A moment later, however long its Retry-After is."""
    server.manager.odd = then = ScriptedReplies(answer)
    began = time.monotonic()
    assert resolve_one(server.open(), PLACE) == "FAKE-value-a"
    server.manager.odd = ScriptedReplies(answer, answer)
    assert resolve_one(server.open(), PLACE).startswith(f"key a: {PLACE}: ")
    assert time.monotonic() - began < 30, "its Retry-After is a minute"
    assert then.reads == 2


def test_a_token_endpoint_that_is_down_is_reported(server: GcpServer, tmp_path: Path) -> None:
    """Not as a failure of Secret Manager, and once for all keys."""
    info = json.loads(server.manager.credentials(READER).read_text())
    file = tmp_path / "down.json"
    file.write_text(json.dumps({**info, "token_uri": f"http://127.0.0.1:{closed_port()}/token"}))
    environ = {"GOOGLE_APPLICATION_CREDENTIALS": str(file), ENDPOINT_VARIABLE: server.manager.url}
    found = resolve_all(open_gcp(environ), **{f"key_{n}": f"{PLACE}/{n}" for n in range(1, 99)})
    assert all("Google's login cannot be reached (TransportError)" in t for t in found.values())
    assert server.requests() == 0


def test_a_store_that_hangs_is_given_up_in_seconds(
    server: GcpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One time limit for 500 secrets, not one each."""
    assert gcp_login.READ_TIMEOUT_S <= 5
    monkeypatch.setattr(gcp_login, "READ_TIMEOUT_S", 1.0)
    began = time.monotonic()
    store = server.hanging()
    found = resolve_all(store, **{f"key_{n}": f"gcp://{PROJECT}/key_{n}" for n in range(500)})
    assert time.monotonic() - began < 30
    assert all("cannot be reached (ReadTimeout)" in text for text in found.values())


def test_an_invalid_credentials_file_is_reported(server: GcpServer, tmp_path: Path) -> None:
    """Nothing of its content is shown."""
    file = tmp_path / "odd.json"
    file.write_text("FAKE-value in a file")
    text = resolve_one(open_gcp({"GOOGLE_APPLICATION_CREDENTIALS": str(file)}), PLACE)
    assert "no Google login was found" in text
    assert "FAKE-value" not in text


@pytest.mark.parametrize("package", ["google.auth.transport.requests", "requests"])
def test_without_the_library_the_error_has_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """When the store is opened, as an error of the configuration."""
    monkeypatch.delitem(sys.modules, "google.auth.transport.requests", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'keyrot-middleware\[gcp\]'") as caught:
        open_gcp({})
    assert caught.value.__cause__ is None


def test_no_value_and_no_token_is_in_anything_but_the_answer(
    server: GcpServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the libraries' DEBUG lines either."""
    monkeypatch.setenv("GOOGLE_SDK_PYTHON_LOGGING_SCOPE", "google")
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "google")
    refs: dict[str, str | None] = {"a": PLACE, "b": None, "c": None}
    stores = [server.open(), server.denied(), server.down()]
    assert stores[0].resolve(refs)["b"] == Secret("FAKE-value-b")
    tokens = server.manager.tokens
    server.manager.revoke()
    printed = all_output(stores, refs) + caplog.text
    hidden = ("FAKE-value", "PRIVATE KEY", *tokens, *server.manager.tokens)
    assert [s for s in hidden if s in printed] == []
