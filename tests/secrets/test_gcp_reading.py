"""Secret Manager over REST, by google-auth's real login: places, versions, many keys, logins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import ask, ask_all
from emulator import Slowly
from house_gcp import GcpHouse
from secret_manager import PROJECT, READER

from keyrot_middleware.errors import ConfigError
from keyrot_middleware.secrets.cloud import AT_ONCE
from keyrot_middleware.secrets.gcp import ENDPOINT_VARIABLE, open_gcp

ENV_FILE = "GOOGLE_APPLICATION_CREDENTIALS"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[GcpHouse]:
    """Have an empty Secret Manager."""
    made = GcpHouse(tmp_path)
    yield made
    made.close()


def settings(house: GcpHouse, **more: str) -> dict[str, str]:
    """Give the settings of a reader, without a project."""
    file = str(house.manager.credentials(READER))
    return {ENV_FILE: file, ENDPOINT_VARIABLE: house.manager.url, **more}


def test_all_keys_are_in_one_secret_unless_told_otherwise(house: GcpHouse) -> None:
    """`keyrot` of the project in GOOGLE_CLOUD_PROJECT, read once for 500 keys."""
    house.put_many({f"key_{n}": f"FAKE-{n}" for n in range(500)})
    store = house.open()
    assert store.place("key_1") == f"gcp://{PROJECT}/keyrot#key_1"
    found = ask_all(store, **{f"key_{n}": None for n in range(500)})
    assert found == {f"key_{n}": f"FAKE-{n}" for n in range(500)}
    assert house.manager.count(":access") == 1
    assert ask(store, None, "other").endswith(
        f"gcp://{PROJECT}/keyrot#other: the JSON object in it has no field other"
    )


def test_another_secret_may_hold_the_keys(house: GcpHouse) -> None:
    """`KEYROT_GCP_SECRET` names it; a wrong name is told when the store is opened."""
    house.manager.write("pool", json.dumps({"a": "FAKE-a"}))
    project = {"GOOGLE_CLOUD_PROJECT": PROJECT}
    assert ask(open_gcp(settings(house, KEYROT_GCP_SECRET="pool", **project))) == "FAKE-a"
    with pytest.raises(ConfigError, match=r'KEYROT_GCP_SECRET: found "a/b"; allowed: letters'):
        open_gcp({"KEYROT_GCP_SECRET": "a/b"})


def test_without_a_project_it_is_that_of_the_login(house: GcpHouse) -> None:
    """A service account's file names one."""
    house.put("a", "FAKE-a")
    assert ask(open_gcp(settings(house))) == "FAKE-a"


def test_where_nobody_names_a_project_that_is_told(house: GcpHouse, tmp_path: Path) -> None:
    """And keys with a place are read all the same."""
    house.manager.write("plain", "FAKE-plain")
    info = json.loads(house.manager.credentials(READER).read_text())
    del info["project_id"]
    file = tmp_path / "no-project.json"
    file.write_text(json.dumps(info))
    store = open_gcp({**settings(house), ENV_FILE: str(file)})
    found = ask_all(store, a=None, b=f"gcp://{PROJECT}/plain")
    assert "GOOGLE_CLOUD_PROJECT is not set, and the login names no project" in found["a"]
    assert found["b"] == "FAKE-plain"


def test_a_version_can_be_named(house: GcpHouse) -> None:
    """Else it is the newest, at each look-up anew."""
    old = house.manager.write("key", "FAKE-old")
    store, place = house.open(), f"gcp://{PROJECT}/key"
    assert ask(store, place) == "FAKE-old"
    house.manager.write("key", "FAKE-new")
    assert ask(store, place) == "FAKE-new"
    assert ask(store, f"{place}/{old}") == "FAKE-old"
    assert "there is no such secret in this project" in ask(store, f"{place}/7")


def test_bytes_that_are_text_are_a_key(house: GcpHouse) -> None:
    """Others are an error for people and harm no other key."""
    house.manager.write("text", b"\xef\xbb\xbfFAKE-text\r\n")
    house.manager.write("binary", b"\xff\xfe\x00\x01")
    found = ask_all(house.open(), a=f"gcp://{PROJECT}/text", b=f"gcp://{PROJECT}/binary")
    assert found["a"] == "FAKE-text"
    assert found["b"].startswith(f"key b: gcp://{PROJECT}/binary: it is binary, ")


def test_five_hundred_secrets_are_read_side_by_side(house: GcpHouse) -> None:
    """A request each, as many at once as connections are kept, and one login."""
    for number in range(500):
        house.manager.write(f"key_{number}", f"FAKE-{number}")
    house.manager.odd = slowly = Slowly()
    found = ask_all(house.open(), **{f"key_{n}": f"gcp://{PROJECT}/key_{n}" for n in range(500)})
    assert found == {f"key_{n}": f"FAKE-{n}" for n in range(500)}
    assert 1 < slowly.most <= AT_ONCE
    assert house.manager.count("/token") == 1
    assert house.manager.count(":access") == 500


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
def test_what_is_no_place_is_told_without_a_request(house: GcpHouse, place: str) -> None:
    """The error says what is allowed."""
    assert "allowed: gcp://PROJECT/SECRET, " in ask(house.open(), place)
    assert house.requests() == 0


@pytest.mark.parametrize(
    "url",
    ["http://secrets.example", "secrets.example", "https://", "https://u:p@h", "https://h/?q=1"],
)
def test_an_endpoint_that_would_hear_the_token_in_the_clear_is_refused(url: str) -> None:
    """When the store is opened; plain HTTP is for this machine only."""
    with pytest.raises(ConfigError, match=f"{ENDPOINT_VARIABLE}: found .*; allowed: https://HOST/"):
        open_gcp({ENDPOINT_VARIABLE: url})


def test_the_environment_logs_in(house: GcpHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Application default credentials, as google-auth finds them itself."""
    house.put("a", "FAKE-a")
    environ = settings(house)
    monkeypatch.setenv(ENV_FILE, environ[ENV_FILE])
    assert ask(open_gcp(environ)) == "FAKE-a"


def test_a_login_that_appears_later_is_found(
    house: GcpHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has none at first has one at a later look-up, without a restart."""
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    house.put("a", "FAKE-a")
    file = tmp_path / "later.json"
    store = open_gcp({**settings(house), ENV_FILE: str(file)})
    assert "no Google login was found: set GOOGLE_APPLICATION_CREDENTIALS" in ask(store)
    file.write_text(house.manager.credentials(READER).read_text())
    assert ask(store) == "FAKE-a"
