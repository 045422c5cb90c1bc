"""The stores of AWS, Azure and Google beyond the contract of all stores."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.fake_secret_manager import PROJECT
from support.store_servers.aws import AwsServer
from support.store_servers.azure import AzureServer
from support.store_servers.gcp import GcpServer
from support.stores import resolve_all, resolve_one

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.secrets.remote import open_aws, open_azure, open_gcp


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[AwsServer]:
    with closing(AwsServer(tmp_path)) as server:
        yield server


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[AzureServer]:
    with closing(AzureServer(tmp_path)) as server:
        yield server


@pytest.fixture
def gcp(tmp_path: Path) -> Iterator[GcpServer]:
    with closing(GcpServer(tmp_path)) as server:
        yield server


# AWS ------------------------------------------------------------------------------------------


def test_aws_names_arns_and_whole_secrets(aws: AwsServer) -> None:
    """A name with slashes or an ARN; a field, the whole text, or the field with the key's id."""
    arn = aws.server.write("prod/team-a", json.dumps({"x": "FAKE-x", "c": "FAKE-c"}))
    aws.server.write("plain", b"\xef\xbb\xbf FAKE-plain\r\n")
    aws.server.write("binary", b"\xff\xfe\x00\x01")
    places = {
        "a": "aws://prod/team-a#x",
        "b": f"aws://{arn}#x",
        "c": f"aws://{arn[:-7]}",
        "d": "aws://plain",
        "e": "aws://binary",
        "f": "aws://prod/none",
    }
    assert resolve_all(aws.open(), **places) == {
        "a": "FAKE-x",
        "b": "FAKE-x",
        "c": "FAKE-c",
        "d": "FAKE-plain",
        "e": "key e: aws://binary: it is no text",
        "f": "key f: aws://prod/none: ResourceNotFoundException",
    }
    assert open_aws({"KEYROT_AWS_SECRET": "prod/pool"}).place("a") == "aws://prod/pool#a"


# Azure ----------------------------------------------------------------------------------------


def test_azure_names_versions_and_fields(azure: AzureServer) -> None:
    """A secret with the key's id, `-` for `_`; a pinned version; a field of a JSON object."""
    host, old = azure.vault.host, azure.vault.write("flash-01", "FAKE-old")
    azure.vault.write("flash-01", "FAKE-new")
    azure.vault.write("team", json.dumps({"x": "FAKE-x", "d": "FAKE-d"}))
    places = {
        "flash_01": None,
        "b": f"azure://{host}/flash-01/{old}",
        "c": f"azure://{host}/team#x",
        "d": f"azure://{host}/team",
        "e": f"azure://{host}/none",
    }
    found = resolve_all(azure.open(), **places)
    assert found.pop("e").endswith("/none: ResourceNotFoundError 404 SecretNotFound")
    assert found == {"flash_01": "FAKE-new", "b": "FAKE-old", "c": "FAKE-x", "d": "FAKE-d"}
    assert "AZURE_KEY_VAULT_URL is not set" in resolve_one(open_azure({}))


@pytest.mark.promise(number=6)
def test_azure_sends_no_token_to_a_host_that_is_no_vault(azure, monkeypatch) -> None:
    """The library checks that the login belongs to the vault's host."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", azure.vault.ca)
    store = open_azure({"AZURE_KEY_VAULT_URL": f"https://{azure.vault.host}"})
    assert resolve_one(store).startswith("key a: ")
    assert azure.vault.count("/token") == 0
    assert [a for a in azure.vault.server.requests if "authorization" in a.headers] == []


@pytest.mark.parametrize("url", ["http://v.vault.azure.net", "v", "https://v/secrets/a"])
def test_azure_refuses_a_url_of_no_vault(url: str) -> None:
    """When the store is opened."""
    with pytest.raises(ConfigError, match=r"AZURE_KEY_VAULT_URL: found .*; allowed: https"):
        open_azure({"AZURE_KEY_VAULT_URL": url})


# Google ---------------------------------------------------------------------------------------


def test_google_versions_projects_and_fields(gcp: GcpServer) -> None:
    """The newest or a named one; of the login's project where none is set."""
    old = gcp.manager.write("key", "FAKE-old")
    gcp.manager.write("key", b"\xef\xbb\xbfFAKE-new\r\n")
    gcp.manager.write("team", json.dumps({"x": "FAKE-x"}))
    gcp.put("a", "FAKE-a")
    place = f"gcp://{PROJECT}/key"
    places = {"b": place, "c": f"{place}/{old}", "d": f"gcp://{PROJECT}/team#x", "e": f"{place}/7"}
    found = resolve_all(gcp.open(), a=None, **places)
    assert found.pop("e").endswith("/key/7: 404 NOT_FOUND")
    assert found == {"a": "FAKE-a", "b": "FAKE-new", "c": "FAKE-old", "d": "FAKE-x"}


@pytest.mark.promise(number=6)
@pytest.mark.parametrize("url", ["http://secrets.example", "secrets.example"])
def test_google_refuses_an_endpoint_that_would_get_the_token_unencrypted(url: str) -> None:
    """When the store is opened; plain HTTP is for this machine only."""
    with pytest.raises(ConfigError, match=r"SECRETMANAGER: found .*; allowed: https://HOST/"):
        open_gcp({"CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": url})


# All ------------------------------------------------------------------------------------------


_HANGS = """
import threading, time
from keyrot_middleware.secrets.cache import SecretCache, SecretLocation
from keyrot_middleware.secrets.remote import RemoteStore

class Store(RemoteStore):
    scheme = "x"
    def connect(self):
        time.sleep(600)
    def read(self, client, name, version=""):
        return "", ""
    def write(self, client, name, stored, version):
        pass

cache = SecretCache({"a": SecretLocation(Store("y"))}, start_timeout_s=0.1)
assert "no answer yet" in cache.unresolved["a"]
"""


def test_the_end_of_a_program_waits_for_no_store() -> None:
    """A look-up that hangs in the background does not delay it."""
    subprocess.run([sys.executable, "-c", _HANGS], timeout=120, check=True)
