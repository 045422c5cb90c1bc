"""The error for each failure of Key Vault and azure-identity, always without a value."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificate_authority import CertificateAuthority
from support.cloud_emulator import ScriptedReplies
from support.fake_key_vault import READER, SECRET, UNPRIVILEGED, failure, forbidden
from support.json_server import Response
from support.store_servers.azure import AzureServer
from support.stores import all_output, resolve_all, resolve_one

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets.azure import open_azure


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AzureServer]:
    """Start a vault with two keys."""
    made = AzureServer(tmp_path)
    made.put("a", "FAKE-value-a")
    made.put("b", "FAKE-value-b")
    yield made
    made.close()


def test_denied_names_place_and_identity(server: AzureServer) -> None:
    """The client id from Key Vault's answer, and the role to give."""
    text = resolve_one(server.denied())
    assert text.startswith(f"key a: azure://{server.vault.host}/a: access denied (ForbiddenByRbac)")
    assert f"to the client {UNPRIVILEGED}: give it the role Key Vault Secrets User" in text


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            forbidden("ForbiddenByPolicy", UNPRIVILEGED),
            f"(ForbiddenByPolicy) to the client {UNPRIVILEGED}",
        ),
        (forbidden("ForbiddenByFirewall", UNPRIVILEGED), "firewall does not let this host in"),
        (forbidden("ForbiddenByConnection", UNPRIVILEGED), "takes private connections only"),
        (forbidden("SecretDisabled", UNPRIVILEGED), "it is disabled: enable it"),
        (failure(403, "Forbidden", "no"), f"(Forbidden) to the client {READER}"),
        (failure(400, "BadParameter", "no"), "does not take this name or version (BadParameter)"),
        (failure(404, "SecretNotFound", "no"), "there is no such secret"),
        (failure(409, "Conflict", "no"), "it is being deleted or restored (Conflict)"),
        (failure(418, "Teapot", "no"), "Key Vault refused (Teapot)"),
        (Response(404, b"<html>"), "there is no such secret"),
        (Response(418, {"error": {"code": "<p>odd</p>", "message": "m"}}), "refused (418)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value.status),
)
def test_a_permanent_failure_is_not_retried(
    server: AzureServer, answer: Response, message: str
) -> None:
    """The message has key, secret, reason and what to do; the next key is still read."""
    server.vault.odd = then = ScriptedReplies(answer)
    found = resolve_all(server.open(), a=None, b=None)
    assert message in found["a"]
    assert found["b"] == "FAKE-value-b"
    assert then.reads == 2


def test_a_revoked_login_is_renewed_once(server: AzureServer) -> None:
    """Then the value is there; where the new login is refused too, the error is reported."""
    store = server.open()
    assert resolve_one(store) == "FAKE-value-a"
    server.vault.revoke()
    assert resolve_one(store) == "FAKE-value-a"
    server.vault.odd = lambda a: server.vault.challenge() if "/secrets/" in a.path else None
    before = server.vault.count("/token")
    text = resolve_one(store)
    assert "takes the login no longer (Unauthorized): log in again" in text
    assert server.vault.count("/token") - before <= 4


@pytest.mark.parametrize(
    "answer",
    [
        Response(429, {"error": {"code": "Throttled", "message": "m"}}, {"Retry-After": "60"}),
        failure(503, "ServiceUnavailable", "m"),
        Response(500, b"<html>"),
        Response(0, None),
    ],
    ids=["throttled", "unavailable", "broken", "cut off"],
)
def test_a_busy_vault_is_retried_once(server: AzureServer, answer: Response) -> None:
    """A moment later, however long its Retry-After is."""
    server.vault.odd = then = ScriptedReplies(answer)
    began = time.monotonic()
    assert resolve_one(server.open()) == "FAKE-value-a"
    server.vault.odd = ScriptedReplies(answer, answer)
    assert resolve_one(server.open()).startswith(f"key a: azure://{server.vault.host}/a: ")
    assert time.monotonic() - began < 30, "its Retry-After is a minute"
    assert then.reads == 2


def test_a_wrong_client_secret_is_reported_with_entras_code(
    server: AzureServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for all keys, with the client and without the secret."""
    caplog.set_level(logging.DEBUG)
    wrong = "FAKE-wrong-secret"
    found = resolve_all(server.open(secret=wrong), **{f"key_{n}": None for n in range(50)})
    for text in found.values():
        assert f"the login at Azure failed (AADSTS7000215) for the client {READER}" in text
    assert server.vault.count("/token") == 1
    assert wrong not in str(found) + caplog.text


def test_a_failing_token_endpoint_is_reported(server: AzureServer) -> None:
    """Not as a failure of the vault."""
    server.vault.odd = lambda a: Response(503, {}) if "/token" in a.path else None
    assert "the login at Azure failed" in resolve_one(server.open())


def test_a_store_that_hangs_is_given_up_in_seconds(server: AzureServer) -> None:
    """One time limit for 500 secrets, not one each."""
    began = time.monotonic()
    found = resolve_all(server.hanging(), **{f"key_{n}": None for n in range(500)})
    assert time.monotonic() - began < 30
    assert all("the vault cannot be reached" in text for text in found.values())


def test_an_untrusted_certificate_is_reported(
    server: AzureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no token is requested."""
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CertificateAuthority(tmp_path / "other").file))
    text = resolve_one(open_azure({"AZURE_KEY_VAULT_URL": f"https://{server.vault.host}"}))
    assert "certificate is not trusted: set REQUESTS_CA_BUNDLE" in text


@pytest.mark.parametrize("package", ["azure.identity", "azure.keyvault.secrets"])
def test_without_the_library_the_error_has_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """When the store is opened, as an error of the configuration."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'keyrot-middleware\[azure\]'") as caught:
        open_azure({})
    assert caught.value.__cause__ is None


def test_no_value_and_no_token_is_in_anything_but_the_answer(
    server: AzureServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the libraries' DEBUG lines either."""
    caplog.set_level(logging.DEBUG)
    refs: dict[str, str | None] = {"a": None, "b": None, "c": None}
    stores = [server.open(), server.denied(), server.down()]
    assert stores[0].resolve(refs)["b"] == Secret("FAKE-value-b")
    secrets = ("FAKE-value", SECRET, *server.vault.tokens)
    server.vault.revoke()
    printed = all_output(stores, refs) + caplog.text
    assert [s for s in (*secrets, *server.vault.tokens) if s in printed] == []
