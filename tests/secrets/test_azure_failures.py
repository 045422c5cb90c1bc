"""What each failure of Key Vault and azure-identity becomes: words for people, and no value."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import ask, ask_all, told
from authority import Authority
from emulator import Then
from house_azure import AzureHouse
from json_server import Told
from keyvault import NOBODY, READER, SECRET, failure, forbidden

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets.azure import open_azure


@pytest.fixture
def house(tmp_path: Path) -> Iterator[AzureHouse]:
    """Have a vault with two keys."""
    made = AzureHouse(tmp_path)
    made.put("a", "FAKE-value-a")
    made.put("b", "FAKE-value-b")
    yield made
    made.close()


def test_denied_names_place_and_identity(house: AzureHouse) -> None:
    """The client id as Key Vault tells it, and which role to give."""
    text = ask(house.denied())
    assert text.startswith(f"key a: azure://{house.vault.host}/a: access denied (ForbiddenByRbac)")
    assert f"to the client {NOBODY}: give it the role Key Vault Secrets User" in text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (forbidden("ForbiddenByPolicy", NOBODY), f"(ForbiddenByPolicy) to the client {NOBODY}"),
        (forbidden("ForbiddenByFirewall", NOBODY), "firewall does not let this host in"),
        (forbidden("ForbiddenByConnection", NOBODY), "takes private connections only"),
        (forbidden("SecretDisabled", NOBODY), "it is disabled: enable it"),
        (failure(403, "Forbidden", "no"), f"(Forbidden) to the client {READER}"),
        (failure(400, "BadParameter", "no"), "does not take this name or version (BadParameter)"),
        (failure(404, "SecretNotFound", "no"), "there is no such secret"),
        (failure(409, "Conflict", "no"), "it is being deleted or restored (Conflict)"),
        (failure(418, "Teapot", "no"), "Key Vault refused (Teapot)"),
        (Told(404, b"<html>"), "there is no such secret"),
        (Told(418, {"error": {"code": "<p>odd</p>", "message": "m"}}), "refused (418)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value.status),
)
def test_what_another_try_would_not_change_is_asked_once(
    house: AzureHouse, answer: Told, words: str
) -> None:
    """The words say key, place, reason and what to do; the next key is read all the same."""
    house.vault.odd = then = Then(answer)
    found = ask_all(house.open(), a=None, b=None)
    assert words in found["a"]
    assert found["b"] == "FAKE-value-b"
    assert then.reads == 2


def test_a_revoked_login_is_renewed_once(house: AzureHouse) -> None:
    """Then the value is there; where the new login is refused too, that is the answer."""
    store = house.open()
    assert ask(store) == "FAKE-value-a"
    house.vault.revoke()
    assert ask(store) == "FAKE-value-a"
    house.vault.odd = lambda a: house.vault.challenge() if "/secrets/" in a.path else None
    before = house.vault.count("/token")
    text = ask(store)
    assert "takes the login no longer (Unauthorized): log in again" in text
    assert house.vault.count("/token") - before <= 4


@pytest.mark.parametrize(
    "answer",
    [
        Told(429, {"error": {"code": "Throttled", "message": "m"}}, {"Retry-After": "60"}),
        failure(503, "ServiceUnavailable", "m"),
        Told(500, b"<html>"),
        Told(0, None),
    ],
    ids=["throttled", "unavailable", "broken", "cut off"],
)
def test_a_busy_vault_is_asked_twice(house: AzureHouse, answer: Told) -> None:
    """A moment later, however long it asks us to stay away."""
    house.vault.odd = then = Then(answer)
    began = time.monotonic()
    assert ask(house.open()) == "FAKE-value-a"
    house.vault.odd = Then(answer, answer)
    assert ask(house.open()).startswith(f"key a: azure://{house.vault.host}/a: ")
    assert time.monotonic() - began < 30, "it asks for a minute"
    assert then.reads == 2


def test_a_wrong_client_secret_is_told_by_entras_code(
    house: AzureHouse, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for all keys, with the client and without the secret."""
    caplog.set_level(logging.DEBUG)
    wrong = "FAKE-wrong-secret"
    found = ask_all(house.open(secret=wrong), **{f"key_{n}": None for n in range(50)})
    for text in found.values():
        assert f"the login at Azure failed (AADSTS7000215) for the client {READER}" in text
    assert house.vault.count("/token") == 1
    assert wrong not in str(found) + caplog.text


def test_a_token_endpoint_that_fails_is_told(house: AzureHouse) -> None:
    """Not as the vault's failure."""
    house.vault.odd = lambda a: Told(503, {}) if "/token" in a.path else None
    assert "the login at Azure failed" in ask(house.open())


def test_a_store_that_hangs_is_given_up_in_seconds(house: AzureHouse) -> None:
    """One time limit for 500 secrets, not one each."""
    began = time.monotonic()
    found = ask_all(house.hanging(), **{f"key_{n}": None for n in range(500)})
    assert time.monotonic() - began < 30
    assert all("the vault cannot be reached" in text for text in found.values())


def test_a_certificate_that_nobody_vouches_for_is_told(
    house: AzureHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no token is asked for."""
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(Authority(tmp_path / "other").file))
    text = ask(open_azure({"AZURE_KEY_VAULT_URL": f"https://{house.vault.host}"}))
    assert "certificate is not trusted: set REQUESTS_CA_BUNDLE" in text


@pytest.mark.parametrize("package", ["azure.identity", "azure.keyvault.secrets"])
def test_without_the_library_the_pip_line_is_told(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """When the store is opened, as an error of the configuration."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'keyrot-middleware\[azure\]'") as caught:
        open_azure({})
    assert caught.value.__cause__ is None


def test_no_value_and_no_token_is_in_anything_but_the_answer(
    house: AzureHouse, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the libraries' DEBUG lines either."""
    caplog.set_level(logging.DEBUG)
    refs: dict[str, str | None] = {"a": None, "b": None, "c": None}
    stores = [house.open(), house.denied(), house.down()]
    assert stores[0].resolve(refs)["b"] == Secret("FAKE-value-b")
    secrets = ("FAKE-value", SECRET, *house.vault.tokens)
    house.vault.revoke()
    said = told(stores, refs) + caplog.text
    assert [s for s in (*secrets, *house.vault.tokens) if s in said] == []
