"""Key Vault over HTTPS, by the real SecretClient: names, versions, vaults, many keys, logins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from asking import ask, ask_all
from azure.identity import ClientSecretCredential, DefaultAzureCredential
from emulator import Slowly
from house_azure import AzureHouse
from keyvault import READER, SECRET, TENANT

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.secrets.azure import AzureLogin, AzureStore, open_azure
from keyrot_middleware.secrets.cloud import AT_ONCE

PRINCIPAL = {
    "AZURE_TENANT_ID": TENANT,
    "AZURE_CLIENT_ID": READER,
    "AZURE_CLIENT_SECRET": SECRET,
}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[AzureHouse]:
    """Have an empty vault."""
    made = AzureHouse(tmp_path)
    yield made
    made.close()


class Hosts(AzureLogin):
    """Notes the hosts that would be asked."""

    def __init__(self) -> None:
        super().__init__({})
        self.asked: list[str] = []

    def client(self, host: str) -> Any:
        """Note one, and fail."""
        self.asked.append(host)
        raise LookupError


def test_a_key_is_in_the_secret_of_its_name(house: AzureHouse) -> None:
    """With `-` for `_`, which Key Vault does not allow in names."""
    house.vault.write("flash-01", "FAKE-flash")
    assert ask(house.open(), None, "flash_01") == "FAKE-flash"
    assert house.open().place("flash_01") == f"azure://{house.vault.host}/flash-01"


def test_two_keys_that_lead_to_one_secret_are_told(house: AzureHouse) -> None:
    """Key Vault does not tell case apart; a key with a place of its own is no collision."""
    house.vault.write("flash-01", "FAKE-flash")
    found = ask_all(house.open(), flash_01=None, Flash_01=None)
    assert all("another key's id leads to the secret" in text for text in found.values())
    place = f"azure://{house.vault.host}/flash-01"
    found = ask_all(house.open(), flash_01=None, Flash_01=place)
    assert set(found.values()) == {"FAKE-flash"}


def test_a_version_can_be_named(house: AzureHouse) -> None:
    """Else it is the newest, at each look-up anew."""
    old = house.vault.write("key", "FAKE-old")
    store, place = house.open(), f"azure://{house.vault.host}/key"
    assert ask(store, place) == "FAKE-old"
    house.vault.write("key", "FAKE-new")
    assert ask(store, place) == "FAKE-new"
    assert ask(store, f"{place}/{old}") == "FAKE-old"
    assert "no such secret, or no such version" in ask(store, f"{place}/{'0' * 32}")


def test_a_json_secret_may_hold_several_keys(house: AzureHouse) -> None:
    """By a field that the place names, or by the key's id; it is read once."""
    house.vault.write("team", json.dumps({"a": "FAKE-a", "b": "FAKE-b"}))
    place = f"azure://{house.vault.host}/team"
    before = house.vault.count("/secrets/")
    found = ask_all(house.open(), a=place, x=f"{place}#b", y=f"{place}#none")
    assert (found["a"], found["x"]) == ("FAKE-a", "FAKE-b")
    assert found["y"].endswith("/team#none: the JSON object in it has no field none")
    assert house.vault.count("/secrets/") - before == 2  # a challenge, and the secret


def test_five_hundred_keys_are_read_side_by_side(house: AzureHouse) -> None:
    """A request each, as many at once as connections are kept, and one login."""
    for number in range(500):
        house.put(f"key_{number}", f"FAKE-{number}")
    house.vault.odd = slowly = Slowly()
    found = ask_all(house.open(), **{f"key_{n}": None for n in range(500)})
    assert found == {f"key_{n}": f"FAKE-{n}" for n in range(500)}
    assert 1 < slowly.most <= AT_ONCE
    assert house.vault.count("/token") == 1
    assert house.vault.count("/secrets/") == 501


@pytest.mark.parametrize(
    ("place", "host"),
    [
        ("azure://my-vault/key", "my-vault.vault.azure.net"),
        ("azure://my-vault.vault.azure.cn/key", "my-vault.vault.azure.cn"),
        ("azure://pool.privatelink.test:8443/key/0123abcd#f", "pool.privatelink.test:8443"),
    ],
)
def test_a_name_alone_is_a_vault_of_the_public_cloud(place: str, host: str) -> None:
    """Elsewhere the whole host is written."""
    login = Hosts()
    ask(AzureStore(login, None), place)
    assert login.asked == [host]


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
def test_what_is_no_place_is_told_without_a_request(place: str) -> None:
    """The error says what is allowed."""
    login = Hosts()
    assert "allowed: azure://VAULT/SECRET, " in ask(AzureStore(login, "v.vault.azure.net"), place)
    assert login.asked == []


def test_a_key_without_a_place_needs_the_vaults_url() -> None:
    """Others do not."""
    login = Hosts()
    store = AzureStore(login, None)
    assert "AZURE_KEY_VAULT_URL is not set; set it" in ask(store)
    assert login.asked == []


@pytest.mark.parametrize(
    "url", ["http://v.vault.azure.net", "v.vault.azure.net", "https://v/secrets/x", "https://u@v"]
)
def test_a_url_that_is_no_vaults_is_refused(url: str) -> None:
    """When the store is opened, before any token is asked for."""
    with pytest.raises(ConfigError, match=r"AZURE_KEY_VAULT_URL: found .*; allowed: https"):
        open_azure({"AZURE_KEY_VAULT_URL": url})


def test_a_vault_that_is_down_does_not_hide_another(house: AzureHouse) -> None:
    """Each vault is reached, or not, by itself."""
    house.put("b", "FAKE-b")
    down = house.down().place("a")
    found = ask_all(house.open(), a=down, b=None)
    assert "the vault cannot be reached" in found["a"]
    assert found["b"] == "FAKE-b"


def test_the_default_chain_logs_in(house: AzureHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """DefaultAzureCredential takes the service principal of the environment."""
    for name, value in PRINCIPAL.items():
        monkeypatch.setenv(name, value)
    here = {"connection_verify": house.vault.ca, "disable_instance_discovery": True}
    chain = partial(DefaultAzureCredential, authority=f"https://{house.vault.host}", **here)
    options = {"connection_verify": house.vault.ca, "verify_challenge_resource": False}
    house.put("a", "FAKE-a")
    assert (
        ask(AzureStore(AzureLogin({}, credential=chain, **options), house.vault.host)) == "FAKE-a"
    )


def test_which_credential_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default chain; but a principal that only `.env` has is one that the chain cannot see."""
    assert type(AzureLogin({})._default()) is DefaultAzureCredential
    assert type(AzureLogin(PRINCIPAL)._default()) is ClientSecretCredential
    for name, value in PRINCIPAL.items():
        monkeypatch.setenv(name, value)
    assert type(AzureLogin(PRINCIPAL)._default()) is DefaultAzureCredential


def test_a_host_that_is_no_vault_gets_no_token(
    house: AzureHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store as users open it checks that the login asked for belongs to the vault's host."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", house.vault.ca)
    store = open_azure({"AZURE_KEY_VAULT_URL": f"https://{house.vault.host}", **PRINCIPAL})
    text = ask(store)
    assert "this is no Key Vault to log in at" in text
    assert house.vault.count("/token") == 0
    assert [a for a in house.vault.server.asked if "authorization" in a.headers] == []
