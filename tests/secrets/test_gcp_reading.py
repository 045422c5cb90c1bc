"""Secret Manager over REST with google-auth's real login: references, versions, many keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cloud_emulator import ConcurrencyMeter
from support.fake_secret_manager import PROJECT, READER
from support.store_servers.gcp import GcpServer
from support.stores import resolve_all, resolve_one

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.secrets.cloud import MAX_CONCURRENCY
from keyrot_middleware.secrets.gcp import ENDPOINT_VARIABLE, open_gcp

ENV_FILE = "GOOGLE_APPLICATION_CREDENTIALS"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GcpServer]:
    """Start an empty Secret Manager."""
    made = GcpServer(tmp_path)
    yield made
    made.close()


def settings(server: GcpServer, **more: str) -> dict[str, str]:
    """Return the settings of a reader, without a project."""
    file = str(server.manager.credentials(READER))
    return {ENV_FILE: file, ENDPOINT_VARIABLE: server.manager.url, **more}


def test_all_keys_are_in_one_secret_by_default(server: GcpServer) -> None:
    """`keyrot` of the project in GOOGLE_CLOUD_PROJECT, read once for 500 keys."""
    server.put_many({f"key_{n}": f"FAKE-{n}" for n in range(500)})
    store = server.open()
    assert store.place("key_1") == f"gcp://{PROJECT}/keyrot#key_1"
    found = resolve_all(store, **{f"key_{n}": None for n in range(500)})
    assert found == {f"key_{n}": f"FAKE-{n}" for n in range(500)}
    assert server.manager.count(":access") == 1
    assert resolve_one(store, None, "other").endswith(
        f"gcp://{PROJECT}/keyrot#other: the JSON object in it has no field other"
    )


def test_another_secret_may_hold_the_keys(server: GcpServer) -> None:
    """`KEYROT_GCP_SECRET` is its name; a wrong name is an error when the store is opened."""
    server.manager.write("pool", json.dumps({"a": "FAKE-a"}))
    project = {"GOOGLE_CLOUD_PROJECT": PROJECT}
    assert resolve_one(open_gcp(settings(server, KEYROT_GCP_SECRET="pool", **project))) == "FAKE-a"
    with pytest.raises(ConfigError, match=r'KEYROT_GCP_SECRET: found "a/b"; allowed: letters'):
        open_gcp({"KEYROT_GCP_SECRET": "a/b"})


def test_without_a_project_it_is_that_of_the_login(server: GcpServer) -> None:
    """A service account's file names one."""
    server.put("a", "FAKE-a")
    assert resolve_one(open_gcp(settings(server))) == "FAKE-a"


def test_without_any_project_the_error_explains_it(server: GcpServer, tmp_path: Path) -> None:
    """And keys with a full reference are still read."""
    server.manager.write("plain", "FAKE-plain")
    info = json.loads(server.manager.credentials(READER).read_text())
    del info["project_id"]
    file = tmp_path / "no-project.json"
    file.write_text(json.dumps(info))
    store = open_gcp({**settings(server), ENV_FILE: str(file)})
    found = resolve_all(store, a=None, b=f"gcp://{PROJECT}/plain")
    assert "GOOGLE_CLOUD_PROJECT is not set, and the login names no project" in found["a"]
    assert found["b"] == "FAKE-plain"


def test_a_version_can_be_named(server: GcpServer) -> None:
    """Otherwise it is the newest, at each look-up again."""
    old = server.manager.write("key", "FAKE-old")
    store, place = server.open(), f"gcp://{PROJECT}/key"
    assert resolve_one(store, place) == "FAKE-old"
    server.manager.write("key", "FAKE-new")
    assert resolve_one(store, place) == "FAKE-new"
    assert resolve_one(store, f"{place}/{old}") == "FAKE-old"
    assert "there is no such secret in this project" in resolve_one(store, f"{place}/7")


def test_bytes_that_are_text_are_a_key(server: GcpServer) -> None:
    """Others are an error of that key only."""
    server.manager.write("text", b"\xef\xbb\xbfFAKE-text\r\n")
    server.manager.write("binary", b"\xff\xfe\x00\x01")
    found = resolve_all(server.open(), a=f"gcp://{PROJECT}/text", b=f"gcp://{PROJECT}/binary")
    assert found["a"] == "FAKE-text"
    assert found["b"].startswith(f"key b: gcp://{PROJECT}/binary: it is binary, ")


def test_five_hundred_secrets_are_read_concurrently(server: GcpServer) -> None:
    """A request each, as many at once as connections are kept, and one login."""
    for number in range(500):
        server.manager.write(f"key_{number}", f"FAKE-{number}")
    server.manager.odd = slowly = ConcurrencyMeter()
    found = resolve_all(
        server.open(), **{f"key_{n}": f"gcp://{PROJECT}/key_{n}" for n in range(500)}
    )
    assert found == {f"key_{n}": f"FAKE-{n}" for n in range(500)}
    assert 1 < slowly.most <= MAX_CONCURRENCY
    assert server.manager.count("/token") == 1
    assert server.manager.count(":access") == 500


@pytest.mark.parametrize(
    "place",
    [
        "gcp://",
        "gcp://project",
        "gcp://project/",
        "gcp://project/a.b",
        "gcp://project/key/1/2",
        "gcp://project/key#",
        "gcp://Pro ject/key",
        "gcp://project/key/..",
    ],
)
def test_an_invalid_reference_is_an_error_without_a_request(server: GcpServer, place: str) -> None:
    """The error names what is allowed."""
    assert "allowed: gcp://PROJECT/SECRET, " in resolve_one(server.open(), place)
    assert server.requests() == 0


@pytest.mark.parametrize(
    "url",
    ["http://secrets.example", "secrets.example", "https://", "https://u:p@h", "https://h/?q=1"],
)
def test_an_endpoint_that_would_get_the_token_unencrypted_is_refused(url: str) -> None:
    """When the store is opened; plain HTTP is for this machine only."""
    with pytest.raises(ConfigError, match=f"{ENDPOINT_VARIABLE}: found .*; allowed: https://HOST/"):
        open_gcp({ENDPOINT_VARIABLE: url})


def test_the_environment_logs_in(server: GcpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Application default credentials, as google-auth finds them itself."""
    server.put("a", "FAKE-a")
    environ = settings(server)
    monkeypatch.setenv(ENV_FILE, environ[ENV_FILE])
    assert resolve_one(open_gcp(environ)) == "FAKE-a"


def test_a_login_that_appears_later_is_found(
    server: GcpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store without a login at first gets one at a later look-up, without a restart."""
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    server.put("a", "FAKE-a")
    file = tmp_path / "later.json"
    store = open_gcp({**settings(server), ENV_FILE: str(file)})
    assert "no Google login was found: set GOOGLE_APPLICATION_CREDENTIALS" in resolve_one(store)
    file.write_text(server.manager.credentials(READER).read_text())
    assert resolve_one(store) == "FAKE-a"
