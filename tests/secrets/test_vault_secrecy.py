"""No token, login or value leaves the Vault store in an unintended way."""

from __future__ import annotations

import gc
import json
import logging
import pickle
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from support.openbao import ROOT_TOKEN, OpenBao, shared
from support.vault_proxy import Reply, vault_proxy

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret, SecretStore
from keyrot_middleware.secrets.vault import open_vault

VALUE = "AIza" + "FAKE" + "q" * 31
TOKEN = "hvs.FAKE" + "t" * 24
SECRET_ID = "secret-id-FAKE-1234"
ROLE_ID = "role-id-FAKE-5678"
ROLE = {"VAULT_ROLE_ID": ROLE_ID, "VAULT_SECRET_ID": SECRET_ID}
HIDDEN = (VALUE, TOKEN, SECRET_ID, ROLE_ID, ROOT_TOKEN)


@pytest.fixture(scope="module")
def bao() -> OpenBao:
    """Return the shared server, with the key in it."""
    server = shared()
    server.write("secret/data/secrecy", {"a": VALUE, "n": 1})
    return server


def shown(store: SecretStore, refs: dict[str, str | None]) -> str:
    """Return the text of all that a look-up gives: answers, errors, their chains, the store."""
    found = store.resolve(refs)
    texts = [repr(found), repr(store), str(found)]
    for error in found.values():
        if isinstance(error, SecretError):
            assert error.__context__ is None
            assert error.__cause__ is None
            assert error.__traceback__ is None
            texts += traceback.format_exception(error)
            texts.append(repr(pickle.loads(pickle.dumps(error))))  # noqa: S301 - our own
    return "\n".join(texts)


def echo(handler: Any, body: bytes) -> Reply:
    """Be a server that repeats the request in its error."""
    repeated = [*handler.headers.values(), body.decode(), "hvs." + "x" * 30, VALUE]
    return handler.server.status, json.dumps({"errors": repeated}).encode(), {}


@pytest.mark.parametrize("status", [400, 403, 404, 418, 429, 500, 503])
@pytest.mark.parametrize("identity", [{"VAULT_TOKEN": TOKEN}, ROLE], ids=["token", "role"])
def test_a_server_that_echoes_secrets_is_not_quoted(
    status: int, identity: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Errors quote the server's message without the token, the login, or similar text."""
    caplog.set_level(logging.DEBUG)

    def answer(handler: Any, body: bytes) -> Reply:
        handler.server.status = status
        return echo(handler, body)

    with vault_proxy(answer) as url:
        text = shown(open_vault({"VAULT_ADDR": url, **identity}), {"a": None})
    for hidden in (*HIDDEN, "hvs.xxxx"):
        assert hidden not in text
        assert hidden not in caplog.text


def test_logs_and_reprs_show_nothing_of_a_good_look_up(
    bao: OpenBao, caplog: pytest.LogCaptureFixture
) -> None:
    """With every logger at DEBUG, those of the libraries too."""
    caplog.set_level(logging.DEBUG)
    store = open_vault({"VAULT_ADDR": bao.url, "VAULT_TOKEN": ROOT_TOKEN})
    refs: dict[str, str | None] = {"a": "vault://secret/secrecy#a", "b": "vault://secret/secrecy#n"}
    text = shown(store, refs)
    assert "its value is a number" in text
    assert caplog.records
    assert not any(hidden in text + caplog.text for hidden in HIDDEN)


def test_a_token_that_is_no_header_is_not_shown(bao: OpenBao) -> None:
    """A line break in a token is refused before a library could quote it."""
    for token in (f"{TOKEN}\nX-Other: {TOKEN}", f"{TOKEN}é"):
        text = shown(open_vault({"VAULT_ADDR": bao.url, "VAULT_TOKEN": token}), {"a": None})
        assert "VAULT_TOKEN cannot be used: it holds a blank or a character" in text
        assert TOKEN not in text


def test_a_value_that_a_broken_connection_carries_is_not_shown() -> None:
    """Half an answer: the library's exception would hold it, and ours does not."""
    half = f'{{"data": {{"data": {{"a": "{VALUE}"'.encode()

    def answer(handler: Any, body: bytes) -> Reply:
        return 200, half, {"Content-Type": "application/json"}

    with vault_proxy(answer) as url:
        text = shown(open_vault({"VAULT_ADDR": url, "VAULT_TOKEN": TOKEN}), {"a": None})
    assert "does not answer as Vault does" in text
    assert not any(hidden in text for hidden in HIDDEN)


def test_a_store_cannot_be_pickled_and_holds_no_client(bao: OpenBao) -> None:
    """The token stays in this process, and no object of hvac or requests outlives a look-up."""
    import hvac.adapters
    import requests

    def alive() -> int:
        gc.collect()
        kinds = (hvac.adapters.Adapter, requests.Session)
        return sum(isinstance(one, kinds) for one in gc.get_objects())

    before = alive()
    store = open_vault({"VAULT_ADDR": bao.url, "VAULT_TOKEN": ROOT_TOKEN})
    found = store.resolve({"a": "vault://secret/secrecy#a"})
    assert found["a"] == Secret(VALUE)
    assert alive() == before
    for one in (store, store._token, store._settings):  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(one)
        assert ROOT_TOKEN not in repr(one)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("identity", [{"VAULT_TOKEN": TOKEN}, ROLE], ids=["token", "role"])
def test_no_redirect_takes_token_or_login_to_another_server(
    status: int, identity: dict[str, str]
) -> None:
    """Another host or port gets no request, and the error names it."""
    seen: list[str] = []

    def listen(handler: Any, body: bytes) -> Reply:
        seen.append(handler.path)
        return 200, b"{}", {"Content-Type": "application/json"}

    with vault_proxy(listen) as other:

        def on(handler: Any, body: bytes) -> Reply:
            return status, b"", {"Location": f"{other}{handler.path}?token={TOKEN}"}

        with vault_proxy(on) as url:
            text = shown(open_vault({"VAULT_ADDR": url, **identity}), {"a": None})
        assert seen == []
        assert f'sends its clients on to "{other}/' in text
        assert not any(hidden in text for hidden in HIDDEN)


def test_no_redirect_takes_the_token_out_of_tls(
    bao: OpenBao, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect from https:// to http:// is not followed, not even on the same host."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)

    def on(handler: Any, body: bytes) -> Reply:
        return 307, b"", {"Location": bao.url + handler.path}

    with vault_proxy(on, certificate=bao.certificate) as url:
        variables = {"VAULT_ADDR": url, "VAULT_CACERT": bao.ca, "VAULT_TOKEN": ROOT_TOKEN}
        before = len(bao.requested_paths())
        text = shown(open_vault(variables), {"a": "vault://secret/secrecy#a"})
        assert "which gets neither token nor login" in text
        assert bao.requested_paths()[before:] == []


def test_no_password_of_netrc_goes_to_vault(
    bao: OpenBao, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library underneath would send the entry of ~/.netrc for any host."""
    (here / ".netrc").write_text("default login somebody password FAKE-of-netrc\n")
    monkeypatch.setenv("HOME", str(here))
    seen: list[Any] = []

    def look(handler: Any, body: bytes) -> None:
        seen.append(handler.headers.get("Authorization"))

    with vault_proxy(look, bao.url) as url:
        store = open_vault({"VAULT_ADDR": url, "VAULT_TOKEN": ROOT_TOKEN})
        assert store.resolve({"a": "vault://secret/secrecy#a"})["a"] == Secret(VALUE)
    assert set(seen) == {None}


@pytest.mark.parametrize("piece", ["-eyJ", "eyJ", "-s.", "eyJa.", "hvs.", "AIza", "AQ.", "\u00ff"])
def test_a_huge_answer_is_quoted_quickly(piece: str) -> None:
    """However often parts of it look like the beginning of a token."""
    texts = [piece * (400_000 // len(piece))]
    bodies = [*[text.encode() for text in texts], json.dumps({"errors": texts}).encode()]
    for body in bodies:
        with vault_proxy(lambda handler, sent, body=body: (400, body, {})) as url:  # type: ignore[misc]
            store = open_vault({"VAULT_ADDR": url, "VAULT_TOKEN": TOKEN})
            before = time.thread_time()
            text = shown(store, {"a": None})
            assert time.thread_time() - before < 5  # of a processor: 100 kB took 42 seconds
        assert "refuses the request (400)" in text
        assert len(text) < 5000


def test_half_a_token_at_the_end_of_what_is_read_is_not_shown() -> None:
    """A truncated answer ends without the beginning of a token."""
    for length in range(1_960, 2_010):
        body = json.dumps({"errors": ["hvs." + "x" * (length - 5) + " " + TOKEN]}).encode()
        with vault_proxy(lambda handler, sent, body=body: (400, body, {})) as url:  # type: ignore[misc]
            text = shown(open_vault({"VAULT_ADDR": url, "VAULT_TOKEN": "s.other"}), {"a": None})
        assert "FAKE" not in text
