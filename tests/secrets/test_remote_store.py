"""A store over the network that plugs in: the one of docs/secrets.md, against a server."""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.docs_blocks import ROOT, blocks
from support.json_server import JsonServer, Request, Response
from support.plugged_in import write_distribution
from support.stores import resolve_all

from keyrot_middleware import secrets
from keyrot_middleware.errors import ConfigError, SecretError
from keyrot_middleware.keys_file import GROUP
from keyrot_middleware.secrets import Secret
from keyrot_middleware.secrets.stores import open_secret_cache, open_store
from keyrot_middleware.settings import load

PAGE = ROOT / "docs" / "secrets.md"
TOKEN = "FAKE-token-of-the-chest"


class Chest:
    """A server of secrets with versions."""

    def __init__(self) -> None:
        self.versions: dict[str, list[dict[str, str]]] = {}
        self.status: dict[str, int] = {}
        self.ten = threading.Barrier(10, timeout=20)
        """Answers for `together…` come when ten have been asked for."""

    def answer(self, request: Request) -> Response:
        _, _, name, *rest = request.path.split("/")
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Response(500, {"error": TOKEN})
        if (status := self.status.get(name)) or name not in self.versions:
            return Response(status or 404, {"error": TOKEN})
        if name.startswith("together"):
            self.ten.wait()
        found = self.versions[name]
        if request.method == "PUT":
            given = json.loads(request.body)
            if int(given["replaces"]) != len(found):
                return Response(409, {})
            found.append(given["fields"])
            return Response(200, {})
        number = len(found) if rest[1] == "latest" else int(rest[1])
        return Response(200, {"fields": found[number - 1], "version": number})


@pytest.fixture
def chest() -> Chest:
    return Chest()


@pytest.fixture
def server(chest: Chest) -> Iterator[JsonServer]:
    with JsonServer(chest.answer) as made:
        yield made


@pytest.fixture
def open_chest(
    server: JsonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Any]]:
    """Return what opens the store of the page by its entry point, as a program does."""
    (block,) = [one for one in blocks(PAGE) if one.file == "chest_store.py"]
    (tmp_path / "chest_store.py").write_text(block.code)
    write_distribution(tmp_path, "chest-keyrot", GROUP, chest="chest_store:open_chest")
    monkeypatch.delitem(sys.modules, "chest_store", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CHEST_URL", server.url)
    monkeypatch.setenv("CHEST_TOKEN", TOKEN)
    made = import_module("chest_store").ChestStore
    connect = made.connect
    with ExitStack() as clients:
        monkeypatch.setattr(made, "connect", lambda one: clients.enter_context(connect(one)))
        yield partial(open_store, "chest")


def test_a_secret_with_several_keys_is_read_once(
    open_chest: Callable[[], Any], chest: Chest, server: JsonServer, here: Path
) -> None:
    """By its default place and by those of keys.json, as the stores of this package are."""
    chest.versions = {"keyrot": [{"a": "FAKE-a", "b": "FAKE-b"}], "team": [{"x": "FAKE-x"}]}
    found = resolve_all(open_chest(), a=None, b=None, c="chest://team#x", d="chest://team#y")
    assert found == {
        "a": "FAKE-a",
        "b": "FAKE-b",
        "c": "FAKE-x",
        "d": "key d: chest://team#y: it has no field y with a text",
    }
    assert len(server.requests) == 2
    (here / "keys.json").write_text('[{"key_id": "a"}, {"key_id": "b", "secret": "chest://gone"}]')
    cache = open_secret_cache(load(secret_store="chest"))
    assert cache.value("a") == Secret("FAKE-a")
    assert cache.unresolved == {"b": "key b: chest://gone: 404"}


def test_secrets_are_read_ten_at_once(open_chest: Callable[[], Any], chest: Chest) -> None:
    """After the first one, which shows whether the server answers."""
    names = ["first", *(f"together{number}" for number in range(10))]
    chest.versions = {name: [{"k": f"FAKE-{name}"}] for name in names}
    found = resolve_all(open_chest(), **{name: f"chest://{name}#k" for name in names})
    assert found == {name: f"FAKE-{name}" for name in names}


def test_an_error_has_a_class_or_a_code_and_no_text(
    open_chest: Callable[[], Any], chest: Chest, server: JsonServer
) -> None:
    """What is said of one secret is about that one; else the server is asked once in a look-up."""
    chest.versions = {"one": [{"k": "FAKE"}]}
    chest.status = {"secret": 403}
    places = {"a": "chest://secret#k", "b": "chest://one#k"}
    assert resolve_all(open_chest(), **places) == {
        "a": "key a: chest://secret#k: 403",
        "b": "FAKE",
    }
    chest.status = {"secret": 500}
    before, found = len(server.requests), resolve_all(open_chest(), **places)
    assert found == {
        name: f"key {name}: {place}: HTTPStatusError" for name, place in places.items()
    }
    assert len(server.requests) == before + 1
    assert TOKEN not in repr(found)


def test_a_value_is_replaced_where_it_is_still_the_value(
    open_chest: Callable[[], Any], chest: Chest
) -> None:
    """`keyrot rotate` writes it, and finds the one before."""
    chest.versions = {"keyrot": [{"a": "FAKE-old", "b": "FAKE-b"}]}
    store = open_chest()
    old, new = Secret("FAKE-old"), Secret("FAKE-new")
    store.replace("a", None, old, new)
    assert chest.versions["keyrot"][-1] == {"a": "FAKE-new", "b": "FAKE-b"}
    assert store.previous("a", None, new) == old
    with pytest.raises(SecretError, match=r"^key a: chest://keyrot#a: it has another value mean"):
        store.replace("a", None, old, new)
    assert len(chest.versions["keyrot"]) == 2


def test_a_missing_library_is_found_when_the_store_is_opened(
    open_chest: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the first look-up, in a thread."""
    monkeypatch.setattr(type(open_chest()), "libraries", ("no_such_library",))
    with pytest.raises(ConfigError, match=r"store chest cannot be opened: ModuleNotFoundError"):
        open_chest()


def test_what_a_store_needs_is_in_one_public_place() -> None:
    """docs/secrets.md names all of it, and its examples import it from nowhere else."""
    text = PAGE.read_text("utf-8").partition("## A store of your own")[2]
    imports = re.findall(r"^from (keyrot_middleware\S*) import (.+)$", text, re.MULTILINE)
    assert {module for module, _ in imports} == {"keyrot_middleware", "keyrot_middleware.secrets"}
    named = {name for module, names in imports if "secrets" in module for name in names.split(", ")}
    assert named <= set(secrets.__all__)
    assert all(hasattr(secrets, name) for name in secrets.__all__)
