"""The contract of every secret store, against a real server where it has one."""

import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.servers import wait_for
from support.store_servers.base import StoreServer

from keyrot_middleware.errors import SecretError
from keyrot_middleware.secrets import Secret, SecretStore
from keyrot_middleware.secrets.cache import SecretCache, SecretLocation

SERVERS = {
    "env": ("support.store_servers.env", "EnvServer"),
    "file": ("support.store_servers.file", "FileServer"),
    "vault": ("support.store_servers.vault", "VaultServer"),
    "aws": ("support.store_servers.aws", "AwsServer"),
    "azure": ("support.store_servers.azure", "AzureServer"),
    "gcp": ("support.store_servers.gcp", "GcpServer"),
}

NOT_APPLICABLE = "does not apply to that secret store"

A, B = ("AIza" + "FAKE" + letter * 31 for letter in "ab")
ODD = "FAKE-value-of-no-known-shape"
LIMIT_S = 60.0
"""Longer than any store may need to give up."""
MOST_REQUESTS: Mapping[str, int] = {"vault": 6, "aws": 6, "azure": 510, "gcp": 6}
"""For 500 keys in their default secrets: one secret with a field for each, except in Key Vault,
which has no batch. Logins, and requests that detect the version, included."""


@pytest.fixture(params=SERVERS, scope="module")
def build(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    module, name = SERVERS[request.param]
    made: Callable[[Path], Any] = getattr(import_module(module), name)
    return made


@pytest.fixture
def server(build: Callable[[Path], Any], tmp_path: Path) -> Iterator[StoreServer]:
    made = build(tmp_path)
    yield made
    made.close()


def can(server: StoreServer, what: str) -> None:
    if what in getattr(server, "lacks", ()):
        pytest.skip(NOT_APPLICABLE)


def look_up(store: SecretStore, *key_ids: str, **places: str) -> dict[str, str]:
    refs = {**dict.fromkeys(key_ids), **places}
    found = store.resolve(refs)
    assert set(found) == set(refs), "an answer for each key"
    return {
        key_id: answer.reveal() if isinstance(answer, Secret) else f"error: {answer}"
        for key_id, answer in found.items()
    }


def refusal(store: SecretStore, key_id: str = "a", **places: str) -> str:
    text = look_up(store, key_id, **places)[key_id]
    assert text.startswith("error: ")
    assert key_id in text, "it names the key"
    return text


def test_a_key_is_found(server: StoreServer) -> None:
    """Values are returned as they were written, several in one look-up."""
    server.put("a", A)
    server.put("b", ODD)
    store = server.open()
    assert store.scheme == server.scheme
    assert look_up(store, "a", "b") == {"a": A, "b": ODD}


def test_a_missing_key_does_not_hide_the_others(server: StoreServer) -> None:
    """The error names the key and its secret; the others have their values."""
    server.put("a", A)
    server.put("b", B)
    server.remove("b")
    found = look_up(server.open(), "a", "b", "never_there")
    assert found["a"] == A
    assert found["b"].startswith("error: key b: ")
    assert found["never_there"].startswith("error: key never_there: ")


def test_an_open_store_reads_a_new_value(server: StoreServer) -> None:
    """A store caches nothing."""
    server.put("a", A)
    store = server.open()
    assert look_up(store, "a") == {"a": A}
    server.put("a", B)
    assert look_up(store, "a") == {"a": B}


def test_fields_of_one_secret_are_keys_of_their_own(server: StoreServer) -> None:
    """References as in keys.json lead to each of several fields."""
    places = server.put_fields("team", {"first": A, "second": B})
    assert all(place.startswith(f"{server.scheme}://") for place in places.values())
    store = server.open()
    assert look_up(store, **places) == {"first": A, "second": B}
    server.put("a", ODD)
    assert look_up(store, "a", **places) == {"a": ODD, "first": A, "second": B}


@pytest.mark.parametrize("value", ["", " \n", b"\xff\xfe\x00\x01binary"], ids=repr)
def test_an_invalid_value_is_skipped_with_a_reason(server: StoreServer, value: str | bytes) -> None:
    """An empty or binary value affects no other key."""
    server.put("b", B)
    try:
        server.put("a", value)
    except TypeError:
        pytest.skip(NOT_APPLICABLE)
    store = server.open()
    cache = SecretCache({"a": SecretLocation(store), "b": SecretLocation(store)})
    assert cache.resolved == ("b",)
    assert cache.unresolved["a"].startswith("key a: ")
    assert "binary" not in cache.unresolved["a"].replace("it is binary", "")


@pytest.mark.parametrize("state", ["denied", "down"])
def test_a_failing_store_has_a_reason_for_each_key(server: StoreServer, state: str) -> None:
    """Each key has an error with the reason."""
    can(server, state)
    server.put("a", A)
    store: SecretStore = getattr(server, state)()
    began = time.monotonic()
    assert len(refusal(store)) > len("error: key a: ")
    assert time.monotonic() - began < LIMIT_S


def test_a_hanging_store_delays_no_other(server: StoreServer) -> None:
    """Other stores' keys are found, and a rejected key is not waited for while its store hangs."""
    can(server, "hanging")
    server.put("b", B)
    cache = SecretCache(
        {"a": SecretLocation(server.hanging()), "b": SecretLocation(server.open())},
        start_timeout_s=0.2,
    )
    wait_for(lambda: cache.resolved == ("b",), LIMIT_S)
    assert cache.value("b") == Secret(B)
    assert not cache.refresh("a", timeout_s=0.2)
    assert cache.unresolved["a"].startswith("key a: ")


def test_many_keys_take_few_requests(server: StoreServer) -> None:
    """Five hundred keys are read in as few requests as the store allows."""
    can(server, "requests")
    ids = [f"key_{number:03d}" for number in range(500)]
    put_many: Callable[[Mapping[str, str]], None] | None = getattr(server, "put_many", None)
    if put_many is not None:
        put_many({key_id: f"FAKE-value-of-{key_id}" for key_id in ids})
    else:
        for key_id in ids:
            server.put(key_id, f"FAKE-value-of-{key_id}")
    store, before = server.open(), server.requests()
    found = look_up(store, *ids)
    assert found == {key_id: f"FAKE-value-of-{key_id}" for key_id in ids}
    assert server.requests() - before <= MOST_REQUESTS[server.scheme]


def test_no_value_is_in_anything_but_the_answer(server, caplog) -> None:
    """Not in a log line at any level, an error and its causes, a repr or a pickle."""
    caplog.set_level(0)
    server.put("a", A)
    server.put("odd", ODD)
    places = server.put_fields("team", {"first": B})
    stores = [server.open()]
    stores += [getattr(server, s)() for s in ("denied", "down") if s not in _lacks(server)]
    printed: list[str] = []
    for store in stores:
        with ThreadPoolExecutor(1, "keyrot-secrets") as threads:  # as those of the cache
            refs = {"a": None, "odd": None, "none": None, **places}
            found = threads.submit(store.resolve, refs).result()
        errors = [answer for answer in found.values() if isinstance(answer, SecretError)]
        printed += [text for error in errors for text in traceback.format_exception(error)]
        printed += [repr(found), repr(store), _pickled(store)]
    printed.append(caplog.text)
    assert [secret for secret in (A, B, ODD) if secret in "\n".join(printed)] == []


def _lacks(server: StoreServer) -> frozenset[str]:
    return getattr(server, "lacks", frozenset())


def _pickled(thing: object) -> str:
    try:
        return repr(pickle.dumps(thing))
    except Exception as error:
        return repr(error)
