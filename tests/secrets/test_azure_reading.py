"""Key Vault over HTTPS, by the real SecretClient: names, versions, vaults, many keys, logins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from azure.identity import DefaultAzureCredential
from support.cloud_emulator import ConcurrencyMeter
from support.fake_key_vault import READER, SECRET, TENANT
from support.store_servers.azure import AzureServer
from support.stores import resolve_all, resolve_one

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.secrets.azure import AzureLogin, AzureStore, open_azure
from keyrot_middleware.secrets.cloud import MAX_CONCURRENCY

PRINCIPAL = {
    "AZURE_TENANT_ID": TENANT,
    "AZURE_CLIENT_ID": READER,
    "AZURE_CLIENT_SECRET": SECRET,
}


@pytest.fixture
def store_server(tmp_path: Path) -> Iterator[AzureServer]:
    """Start an empty vault."""
    made = AzureServer(tmp_path)
    yield made
    made.close()


class Hosts(AzureLogin):
    """Records the hosts that would be requested."""

    def __init__(self) -> None:
        super().__init__({})
        self.lookups: list[str] = []

    def client(self, host: str) -> Any:
        """Record one, and fail."""
        self.lookups.append(host)
        raise LookupError


def test_a_key_is_in_the_secret_with_its_name(store_server: AzureServer) -> None:
    """With `-` for `_`, which Key Vault does not allow in names."""
    store_server.vault.write("flash-01", "FAKE-flash")
    assert resolve_one(store_server.open(), None, "flash_01") == "FAKE-flash"
    assert store_server.open().place("flash_01") == f"azure://{store_server.vault.host}/flash-01"


def test_two_keys_that_lead_to_one_secret_are_reported(store_server: AzureServer) -> None:
    """Key Vault ignores case; a key with a secret of its own does not collide."""
    store_server.vault.write("flash-01", "FAKE-flash")
    found = resolve_all(store_server.open(), flash_01=None, Flash_01=None)
    assert all("another key's id leads to the secret" in text for text in found.values())
    place = f"azure://{store_server.vault.host}/flash-01"
    found = resolve_all(store_server.open(), flash_01=None, Flash_01=place)
    assert set(found.values()) == {"FAKE-flash"}


def test_a_version_can_be_named(store_server: AzureServer) -> None:
    """Otherwise it is the newest, at each look-up again."""
    old = store_server.vault.write("key", "FAKE-old")
    store, place = store_server.open(), f"azure://{store_server.vault.host}/key"
    assert resolve_one(store, place) == "FAKE-old"
    store_server.vault.write("key", "FAKE-new")
    assert resolve_one(store, place) == "FAKE-new"
    assert resolve_one(store, f"{place}/{old}") == "FAKE-old"
    assert "no such secret, or no such version" in resolve_one(store, f"{place}/{'0' * 32}")


def test_a_json_secret_may_hold_several_keys(store_server: AzureServer) -> None:
    """By the field in the reference, or by the key's id; it is read once."""
    store_server.vault.write("team", json.dumps({"a": "FAKE-a", "b": "FAKE-b"}))
    place = f"azure://{store_server.vault.host}/team"
    before = store_server.vault.count("/secrets/")
    found = resolve_all(store_server.open(), a=place, x=f"{place}#b", y=f"{place}#none")
    assert (found["a"], found["x"]) == ("FAKE-a", "FAKE-b")
    assert found["y"].endswith("/team#none: the JSON object in it has no field none")
    assert store_server.vault.count("/secrets/") - before == 2  # a challenge, and the secret


def test_five_hundred_keys_are_read_concurrently(store_server: AzureServer) -> None:
    """A request each, as many at once as connections are kept, and one login."""
    for number in range(500):
        store_server.put(f"key_{number}", f"FAKE-{number}")
    store_server.vault.odd = slowly = ConcurrencyMeter()
    found = resolve_all(store_server.open(), **{f"key_{n}": None for n in range(500)})
    assert found == {f"key_{n}": f"FAKE-{n}" for n in range(500)}
    assert 1 < slowly.most <= MAX_CONCURRENCY
    assert store_server.vault.count("/token") == 1
    assert store_server.vault.count("/secrets/") == 501


@pytest.mark.parametrize(
    ("place", "host"),
    [
        ("azure://my-vault/key", "my-vault.vault.azure.net"),
        ("azure://my-vault.vault.azure.cn/key", "my-vault.vault.azure.cn"),
        ("azure://pool.privatelink.test:8443/key/0123abcd#f", "pool.privatelink.test:8443"),
    ],
)
def test_a_name_alone_is_a_vault_of_the_public_cloud(place: str, host: str) -> None:
    """For other clouds the whole host is written."""
    login = Hosts()
    resolve_one(AzureStore(login, None), place)
    assert login.lookups == [host]


@pytest.mark.parametrize(
    "place",
    [
        "azure://",
        "azure://vault",
        "azure://vault/",
        "azure://vault/under_score",
        "azure://vault/key/version/more",
        "azure://vault/key#",
        "azure://user@vault/key",
        "azure://vault\\evil/key",
    ],
)
def test_an_invalid_reference_is_an_error_without_a_request(place: str) -> None:
    """The error names what is allowed."""
    login = Hosts()
    assert "allowed: azure://VAULT/SECRET, " in resolve_one(
        AzureStore(login, "v.vault.azure.net"), place
    )
    assert login.lookups == []


def test_a_key_without_a_reference_needs_the_vaults_url() -> None:
    """Other keys do not."""
    login = Hosts()
    store = AzureStore(login, None)
    assert "AZURE_KEY_VAULT_URL is not set; set it" in resolve_one(store)
    assert login.lookups == []


@pytest.mark.parametrize(
    "url", ["http://v.vault.azure.net", "v.vault.azure.net", "https://v/secrets/x", "https://u@v"]
)
def test_a_url_of_no_vault_is_refused(url: str) -> None:
    """When the store is opened, before any token is requested."""
    with pytest.raises(ConfigError, match=r"AZURE_KEY_VAULT_URL: found .*; allowed: https"):
        open_azure({"AZURE_KEY_VAULT_URL": url})


def test_a_vault_that_is_down_does_not_hide_another(store_server: AzureServer) -> None:
    """Each vault is reached, or not, independently."""
    store_server.put("b", "FAKE-b")
    down = store_server.down().place("a")
    found = resolve_all(store_server.open(), a=down, b=None)
    assert "the vault cannot be reached" in found["a"]
    assert found["b"] == "FAKE-b"


def test_the_default_chain_logs_in(
    store_server: AzureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DefaultAzureCredential takes the service principal of the environment."""
    for name, value in PRINCIPAL.items():
        monkeypatch.setenv(name, value)
    here = {"connection_verify": store_server.vault.ca, "disable_instance_discovery": True}
    chain = partial(DefaultAzureCredential, authority=f"https://{store_server.vault.host}", **here)
    options = {"connection_verify": store_server.vault.ca, "verify_challenge_resource": False}
    store_server.put("a", "FAKE-a")
    assert (
        resolve_one(
            AzureStore(AzureLogin({}, credential=chain, **options), store_server.vault.host)
        )
        == "FAKE-a"
    )


def test_a_host_that_is_no_vault_gets_no_token(
    store_server: AzureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store as users open it checks that the login it uses belongs to the vault's host."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", store_server.vault.ca)
    store = open_azure({"AZURE_KEY_VAULT_URL": f"https://{store_server.vault.host}", **PRINCIPAL})
    text = resolve_one(store)
    assert "this is no Key Vault to log in at" in text
    assert store_server.vault.count("/token") == 0
    assert [a for a in store_server.vault.server.requests if "authorization" in a.headers] == []
