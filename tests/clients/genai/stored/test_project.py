"""`project(name)`: calls, lists and creates go with keys of that project alone."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.genai import types
from support.modes import MODEL, MODES, ask, run

import keyrot_middleware
from keyrot_middleware import KeyPoolExhausted, KeyrotError
from keyrot_middleware.testing import Reply

KEYS = (
    "A",
    {"key_id": "B1", "project": "p"},
    {"key_id": "B2", "project": "p"},
    {"key_id": "C", "project": "other", "priority": 1},
)
pytestmark = pytest.mark.usefixtures("v1beta")
KINDS = ("batches", "files", "caches", "file_search_stores")
OTHER = "project: not the one that this call may use (project)"


@pytest.fixture
def installed(pool, gemini) -> Any:
    """Install a pool of three projects, one of them with two keys."""
    for key in KEYS:
        named = {} if isinstance(key, str) else {"project": key["project"]}
        gemini.add_key(key if isinstance(key, str) else key["key_id"], tier="paid", **named)
    return pool(*KEYS, max_wait_s=0)


def keys_of(gemini: Any) -> set[str | None]:
    return {request.key for request in gemini.log if request.key}


def create(client: Any, kind: str) -> str:
    """Make a batch, file, cache or file search store; return its name."""
    source = [types.InlinedRequest(contents="hello")]
    makers: dict[str, Callable[[], Any]] = {
        "batches": lambda: client.batches.create(model=MODEL, src=source),
        "caches": lambda: client.caches.create(model=MODEL, config={"contents": "long text " * 40}),
        "file_search_stores": client.file_search_stores.create,
        "files": lambda: client.files.upload(file=__file__, config={"mime_type": "text/plain"}),
    }
    return str(makers[kind]().name)


@pytest.mark.parametrize("mode", MODES)
def test_calls_use_keys_of_this_project_only(mode, installed, gemini, connect) -> None:
    gemini.always("B1", Reply.KEY_INVALID)
    gemini.add_key("foreign")
    for client in (connect(), *(connect(gemini.key(key).value) for key in ("A", "foreign"))):
        with keyrot_middleware.project("p"):
            assert [ask(mode, client) for _ in range(3)] == ["ok from B2"] * 3
    assert keys_of(gemini) <= {"B1", "B2"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_over_the_projects_lists_everything_once(kind, installed, gemini, connect) -> None:
    """As the guide has it, sync and async, over the SDK's own pages."""
    client = connect()
    names = []
    for name in ("p", "other", "A"):
        with keyrot_middleware.project(name):
            names += [create(client, kind) for _ in range(2)]
    listed: list[str] = []
    keys = keyrot_middleware.status()["keys"]
    projects = {key["project"] or key_id for key_id, key in keys.items()}
    assert projects == {"A", "p", "other"}
    for name in projects:
        with keyrot_middleware.project(name):
            listed += [x.name for x in getattr(client, kind).list(config={"page_size": 1})]
    assert sorted(listed) == sorted(names)

    async def all_names() -> list[str]:
        found: list[str] = []
        for name in projects:
            with keyrot_middleware.project(name):
                pager = await getattr(client.aio, kind).list(config={"page_size": 1})
                found += [x.name async for x in pager]
        return found

    assert sorted(run(client, all_names)) == sorted(names)


def test_a_create_stays_in_a_project_that_cannot_serve(installed, gemini, connect) -> None:
    """A client without a key of its own would make it elsewhere."""
    for key in ("B1", "B2"):
        gemini.always(key, Reply.QUOTA_DAY)
    with keyrot_middleware.project("p"):
        for make in (lambda: create(connect(), "files"), lambda: create(connect(), "batches")):
            with pytest.raises(KeyPoolExhausted) as raised:
                make()
            assert raised.value.reasons.keys() <= {"B1", "B2"}
    assert keys_of(gemini) == {"B1", "B2"}


def test_what_another_project_owns_is_out_of_reach(installed, gemini, connect) -> None:
    """No request is sent where the owner is known; else the project's own 403, and no search."""
    client = connect()
    file = create(client, "files")
    gemini.reset_log()
    with keyrot_middleware.project("p"), pytest.raises(KeyPoolExhausted) as raised:
        client.files.get(name=file)
    assert (raised.value.code, raised.value.reasons) == (400, {"A": OTHER})
    assert gemini.count() == 0
    installed.state.get_owner = lambda *_: None
    with keyrot_middleware.project("p"), pytest.raises(Exception, match=r"40[34]"):
        client.files.get(name=file)
    assert keys_of(gemini) == {"B1"}
    assert client.files.get(name=file).name == file


def test_inside_another_the_inner_one_holds(installed, connect) -> None:
    client = connect()
    with keyrot_middleware.project("p"):
        with pytest.raises(ZeroDivisionError), keyrot_middleware.project("other"):
            assert ask("sync", client) == "ok from C"
            raise ZeroDivisionError
        assert ask("sync", client).startswith("ok from B")


def test_an_unknown_project_is_an_error_that_names_the_known_ones(installed) -> None:
    with (
        pytest.raises(KeyError, match=r"no project 'x' in pool .* A, p, other"),
        keyrot_middleware.project("x"),
    ):
        pytest.fail("the block ran")


def test_without_a_pool_there_is_no_project() -> None:
    with pytest.raises(KeyrotError, match="no pool is installed"), keyrot_middleware.project("p"):
        pytest.fail("the block ran")


@pytest.fixture(autouse=True)
def _uninstalled() -> Iterator[None]:
    yield
    keyrot_middleware.uninstall()
