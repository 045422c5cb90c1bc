"""The variables of the Vault store: mistakes are errors at once, and nothing is sent."""

from __future__ import annotations

import socket
import sys
from typing import NoReturn

import pytest

from keyrot_middleware.errors import ConfigError, MissingExtraError
from keyrot_middleware.secrets.vault import open_vault
from keyrot_middleware.secrets.vault_settings import read_settings

ADDRESS = {"VAULT_ADDR": "https://vault.example:8200/"}
TOKEN = "hvs.FAKE" + "t" * 20


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"VAULT_ADDR": ""}, "VAULT_ADDR: found nothing; allowed: the address of the server"),
        ({"VAULT_ADDR": "vault:8200"}, 'VAULT_ADDR: found "vault:8200"; allowed'),
        ({"VAULT_ADDR": "unix:///x"}, "VAULT_ADDR: found"),
        ({"VAULT_ADDR": "https://h/?x=1"}, "VAULT_ADDR: found"),
        (
            {"VAULT_ADDR": "http://vault:8200"},
            "allowed: https://. Over http:// everyone on the way",
        ),
        ({"VAULT_ADDR": "HTTP://127.0.0.1.example"}, "KEYROT_VAULT_ALLOW_HTTP=true allows it"),
        ({"VAULT_ADDR": "http://[::2]"}, "KEYROT_VAULT_ALLOW_HTTP=true allows it"),
        ({"VAULT_ADDR": "http://127.0.0.1@vault"}, "KEYROT_VAULT_ALLOW_HTTP=true allows it"),
        ({"KEYROT_VAULT_ALLOW_HTTP": "maybe", "VAULT_ADDR": "http://vault"}, "_HTTP: found"),
        ({"VAULT_SKIP_VERIFY": "maybe"}, 'VAULT_SKIP_VERIFY: found "maybe"; allowed: true, false'),
        ({"VAULT_CLIENT_TIMEOUT": "1m"}, 'VAULT_CLIENT_TIMEOUT: found "1m"; allowed: seconds'),
        ({"VAULT_CLIENT_TIMEOUT": "0"}, "VAULT_CLIENT_TIMEOUT: found"),
        ({"VAULT_CLIENT_CERT": "c.pem"}, "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY: set both"),
        ({"KEYROT_VAULT_PLACE": "keyrot"}, 'KEYROT_VAULT_PLACE: found "keyrot"; allowed: MOUNT/'),
        ({"KEYROT_VAULT_PLACE": "secret/k#a"}, "KEYROT_VAULT_PLACE: found"),
        ({"VAULT_SECRET_ID": TOKEN}, "VAULT_SECRET_ID is set and VAULT_ROLE_ID is not"),
        ({"VAULT_JWT_FILE": "x"}, "VAULT_JWT is set and VAULT_JWT_ROLE is not"),
        ({"VAULT_JWT_ROLE": "ci"}, "VAULT_JWT_ROLE is set and VAULT_JWT is not: set it (or"),
    ],
)
def test_a_wrong_variable_is_an_error(variables: dict[str, str], message: str) -> None:
    """Name, value and what is allowed; never a secret."""
    with pytest.raises(ConfigError) as caught:
        open_vault({**ADDRESS, **variables})
    assert message in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_password_in_the_address_is_not_shown() -> None:
    """Neither in an error nor in a repr."""
    store = open_vault({"VAULT_ADDR": "https://user:hidden@vault.example:8200"})
    with pytest.raises(ConfigError) as caught:
        open_vault({"VAULT_ADDR": "ftp://user:hidden@vault.example"})
    for text in (repr(store), str(caught.value)):
        assert "hidden" not in text
        assert "vault.example" in text


def test_empty_variables_are_unset_and_the_rest_have_defaults() -> None:
    """A secret's path, a token file, five seconds, and verified TLS."""
    empty = dict.fromkeys(("VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_CACERT", "VAULT_ROLE_ID"), " ")
    settings = read_settings({**ADDRESS, **empty})
    assert settings.address == "https://vault.example:8200"
    assert settings.place == "secret/keyrot"
    assert (settings.namespace, settings.verify, settings.certificate) == (None, True, None)
    assert settings.timeout_s == 5
    (source,) = settings.login.credentials.values()
    assert source.name.endswith("/.vault-token")


def test_usual_variables_are_read_as_vault_reads_them() -> None:
    """A CA file beats a directory; a client certificate has a key; a namespace no slash."""
    more = {
        "VAULT_CACERT": "ca.pem",
        "VAULT_CAPATH": "cas",
        "VAULT_CLIENT_CERT": "c.pem",
        "VAULT_CLIENT_KEY": "k.pem",
        "VAULT_NAMESPACE": "/a/b/",
        "VAULT_CLIENT_TIMEOUT": "2.5s",
        "VAULT_SKIP_VERIFY": "0",
    }
    settings = read_settings({**ADDRESS, **more})
    assert (settings.verify, settings.certificate) == ("ca.pem", ("c.pem", "k.pem"))
    assert (settings.namespace, settings.timeout_s) == ("a/b", 2.5)
    assert read_settings({**ADDRESS, "VAULT_CAPATH": "cas"}).verify == "cas"


def test_opening_sends_and_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look-up is the first request, so a store that is down stops no program."""

    def refuse(*args: object, **options: object) -> NoReturn:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    store = open_vault({**ADDRESS, "VAULT_ROLE_ID": "role-FAKE", "VAULT_SECRET_ID_FILE": "nowhere"})
    assert store.scheme == "vault"


def test_without_hvac_the_error_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    monkeypatch.setitem(sys.modules, "hvac", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'keyrot-middleware\[vault\]'"):
        open_vault(ADDRESS)
