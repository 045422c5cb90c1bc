"""No token, login or value leaves the Vault store by a way that nobody asked for."""

from __future__ import annotations

import gc
import json
import logging
import pickle
import traceback
from typing import Any

import pytest
from bao import ROOT_TOKEN, Bao, shared
from front import Reply, front

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
def bao() -> Bao:
    """The shared server, with the key in it."""
    server = shared()
    server.write("secret/data/secrecy", {"a": VALUE, "n": 1})
    return server


def shown(store: SecretStore, refs: dict[str, str | None]) -> str:
    """Show all that a look-up gives: answers, errors, their chains, and the store itself."""
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
    """Be a server that repeats in its error whatever it was sent."""
    said = [*handler.headers.values(), body.decode(), "hvs." + "x" * 30, VALUE]
    return handler.server.status, json.dumps({"errors": said}).encode(), {}


@pytest.mark.parametrize("status", [400, 403, 404, 418, 429, 500, 503])
@pytest.mark.parametrize("identity", [{"VAULT_TOKEN": TOKEN}, ROLE], ids=["token", "role"])
def test_a_server_that_echoes_secrets_is_not_quoted(
    status: int, identity: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Errors quote the server's words without the token, the login, or what looks like either."""
    caplog.set_level(logging.DEBUG)

    def answer(handler: Any, body: bytes) -> Reply:
        handler.server.status = status
        return echo(handler, body)

    with front(answer) as url:
        text = shown(open_vault({"VAULT_ADDR": url, **identity}), {"a": None})
    for hidden in (*HIDDEN, "hvs.xxxx"):
        assert hidden not in text
        assert hidden not in caplog.text


def test_nothing_of_a_good_look_up_is_in_logs_or_reprs(
    bao: Bao, caplog: pytest.LogCaptureFixture
) -> None:
    """With every logger at DEBUG, those of the libraries too."""
    caplog.set_level(logging.DEBUG)
    store = open_vault({"VAULT_ADDR": bao.url, "VAULT_TOKEN": ROOT_TOKEN})
    refs: dict[str, str | None] = {"a": "vault://secret/secrecy#a", "b": "vault://secret/secrecy#n"}
    text = shown(store, refs)
    assert "its value is a number" in text
    assert caplog.records
    assert not any(hidden in text + caplog.text for hidden in HIDDEN)


def test_a_token_that_is_no_header_is_not_shown(bao: Bao) -> None:
    """A line break in a token is refused before a library could quote it."""
    for token in (f"{TOKEN}\nX-Other: {TOKEN}", f"{TOKEN}é"):
        text = shown(open_vault({"VAULT_ADDR": bao.url, "VAULT_TOKEN": token}), {"a": None})
        assert "VAULT_TOKEN is no good: it holds a blank or a character" in text
        assert TOKEN not in text


def test_a_value_that_a_broken_connection_carries_is_not_shown() -> None:
    """Half an answer: the library's exception would hold it, and ours does not."""
    half = f'{{"data": {{"data": {{"a": "{VALUE}"'.encode()

    def answer(handler: Any, body: bytes) -> Reply:
        return 200, half, {"Content-Type": "application/json"}

    with front(answer) as url:
        text = shown(open_vault({"VAULT_ADDR": url, "VAULT_TOKEN": TOKEN}), {"a": None})
    assert "does not answer as Vault does" in text
    assert not any(hidden in text for hidden in HIDDEN)


def test_a_store_cannot_be_pickled_and_holds_no_client(bao: Bao) -> None:
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
    for one in (store, store._desk.held, store._settings):  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(one)
        assert ROOT_TOKEN not in repr(one)


def test_no_redirect_takes_the_token_out_of_tls(bao: Bao, monkeypatch: pytest.MonkeyPatch) -> None:
    """From https:// to http:// is not followed; to another https:// is."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    target = [bao.url]

    def on(handler: Any, body: bytes) -> Reply:
        return 307, b"", {"Location": target[0] + handler.path}

    with front(on, certificate=bao.certificate) as url:
        variables = {"VAULT_ADDR": url, "VAULT_CACERT": bao.ca, "VAULT_TOKEN": ROOT_TOKEN}
        store = open_vault(variables)
        before = len(bao.asked())
        text = shown(store, {"a": "vault://secret/secrecy#a"})
        assert "cannot be asked (InvalidSchema)" in text
        assert bao.asked()[before:] == []
        target[0] = bao.tls_url
        assert store.resolve({"a": "vault://secret/secrecy#a"})["a"] == Secret(VALUE)
