"""Lists over all projects: every item once, by the SDK's own pagers, in pages of its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.genai import errors, types
from support.modes import MODEL, run

import keyrot_middleware
from keyrot_middleware import KeyrotWarning
from keyrot_middleware.testing import FakeGemini, Reply

ALSO_ASYNC = pytest.mark.parametrize("mode", ["sync", "async"])
KINDS = ("batches", "files", "caches", "file_search_stores")


def listed(mode: str, client: Any, kind: str, **config: Any) -> list[str]:
    """Iterate a list over all projects; return the names."""
    if mode == "sync":
        with keyrot_middleware.all_projects():
            return [item.name for item in getattr(client, kind).list(config=config)]

    async def names() -> list[str]:
        with keyrot_middleware.all_projects():
            pager = await getattr(client.aio, kind).list(config=config)
            return [item.name async for item in pager]

    return run(client, names)  # type: ignore[no-any-return]


def make(client: Any, kind: str, number: int) -> list[str]:
    """Make so many with the client's own key."""
    source = [types.InlinedRequest(contents="hello")]
    create = {
        "batches": lambda: client.batches.create(model=MODEL, src=source),
        "caches": lambda: client.caches.create(model=MODEL, config={"contents": "long text " * 40}),
        "file_search_stores": client.file_search_stores.create,
    }[kind]
    return [create().name for _ in range(number)]


@pytest.fixture
def fill(gemini: FakeGemini, connect: Callable[..., Any]) -> Callable[..., list[str]]:
    """Make so many of a kind with each key, without a pool; return all names."""

    def made(kind: str, **numbers: int) -> list[str]:
        names: list[str] = []
        for label, number in numbers.items():
            key = gemini.add_key(label, tier="paid")
            if kind == "files":
                names += [gemini.add_file(label, b"data") for _ in range(number)]
            else:
                names += make(connect(key.value), kind, number)
        return names

    return made


def pages(gemini: FakeGemini) -> list[str | None]:
    """Return whose the lists were."""
    return [request.key for request in gemini.log if request.verb.endswith(".list")]


@ALSO_ASYNC
@pytest.mark.parametrize("kind", KINDS)
def test_a_list_goes_over_all_projects(
    kind: str,
    mode: str,
    gemini: FakeGemini,
    pool: Any,
    connect: Callable[..., Any],
    fill: Callable[..., list[str]],
) -> None:
    """In the order of the keys, each item once."""
    names = fill(kind, A=2, B=3, C=1)
    pool("A", "B", "C")
    assert listed(mode, connect(), kind) == names
    assert pages(gemini) == ["A", "B", "C"]


@ALSO_ASYNC
@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_the_size_of_pages_is_respected(
    size: int,
    mode: str,
    gemini: FakeGemini,
    pool: Any,
    connect: Callable[..., Any],
    fill: Callable[..., list[str]],
) -> None:
    """No page has more items, and each is fetched once."""
    names = fill("files", A=5, B=0, C=4)
    pool("A", "B", "C")
    client = connect()
    assert listed(mode, client, "files", page_size=size) == names
    expected = ["A"] * -(-5 // size) + ["B"] + ["C"] * -(-4 // size)
    assert pages(gemini) == expected
    with keyrot_middleware.all_projects():
        pager = client.files.list(config={"page_size": size})
        lengths = [len(pager.page)]
        while pager.config["page_token"]:
            lengths.append(len(pager.next_page()))
    assert max(lengths) <= size
    assert 0 not in lengths


@ALSO_ASYNC
@pytest.mark.parametrize(
    "numbers",
    [
        {"A": 0, "B": 0, "C": 2},
        {"A": 2, "B": 0, "C": 0},
        {"A": 0, "B": 2, "C": 0},
        {"A": 1, "B": 0, "C": 1},
        {"A": 0, "B": 0, "C": 0},
    ],
)
def test_empty_projects_end_nothing_early(
    numbers: dict[str, int],
    mode: str,
    pool: Any,
    connect: Callable[..., Any],
    fill: Callable[..., list[str]],
) -> None:
    """The SDK's pager fails on an empty page in the middle, so it never meets one."""
    names = fill("files", **numbers)
    pool("A", "B", "C")
    assert listed(mode, connect(), "files") == names


@ALSO_ASYNC
def test_an_empty_page_with_a_token_is_passed_over(
    mode: str,
    gemini: FakeGemini,
    pool: Any,
    connect: Callable[..., Any],
    fill: Callable[..., list[str]],
) -> None:
    """Google may answer so; the pages after it are there all the same."""
    names = fill("files", A=1, B=1)
    pool("A", "B")
    gemini.script("A", Reply.custom(200, {"files": [], "nextPageToken": "0"}))
    assert listed(mode, connect(), "files") == names


def test_two_keys_of_one_project_are_asked_once(
    gemini: FakeGemini, pool: Any, connect: Callable[..., Any]
) -> None:
    """A list is of a project; its second key serves where the first cannot."""
    pool({"key_id": "A", "project": "p"}, {"key_id": "B", "project": "p"}, "C")
    names = [gemini.add_file("A", b"data"), gemini.add_file("C", b"data")]
    client = connect()
    assert listed("sync", client, "files") == names
    gemini.always("A", Reply.KEY_INVALID)
    assert listed("sync", client, "files") == names
    assert pages(gemini) == ["A", "C", "A", "B", "C"]


@ALSO_ASYNC
@pytest.mark.parametrize("reply", [Reply.KEY_INVALID, Reply.QUOTA_DAY], ids=["rejected", "full"])
def test_a_project_that_is_not_available_is_skipped_with_a_warning(
    reply: Any,
    mode: str,
    gemini: FakeGemini,
    pool: Any,
    connect: Callable[..., Any],
    fill: Callable[..., list[str]],
) -> None:
    """The warning names it, whether its key fails now or has failed before."""
    names = fill("files", A=1, B=1, C=1)
    pool("A", "B", "C", max_wait_s=0)
    gemini.always("B", reply)
    client = connect()
    for _ in range(2):
        with pytest.warns(KeyrotWarning, match=r"without project key:B \(keys B\)"):
            assert listed(mode, client, "files") == [names[0], names[2]]
    gemini.always("B", None)
    gemini.always("A", Reply.KEY_INVALID)
    keyrot_middleware.reset("B")
    with pytest.warns(KeyrotWarning, match="without project key:A"):
        assert listed(mode, client, "files") == names[1:]


def test_a_project_that_fails_in_the_middle_is_not_silently_cut_off(
    gemini: FakeGemini, pool: Any, connect: Callable[..., Any], fill: Callable[..., list[str]]
) -> None:
    """Its later pages are missing, and the warning says so."""
    names = fill("files", A=4, B=1)
    pool("A", "B", max_wait_s=0)
    client = connect()
    found: list[str | None] = []
    with keyrot_middleware.all_projects(), pytest.warns(KeyrotWarning, match="project key:A"):
        for file in client.files.list(config={"page_size": 2}):
            found.append(file.name)
            gemini.always("A", Reply.KEY_INVALID)
    assert found == [*names[:2], names[4]]


@pytest.mark.filterwarnings("ignore:all_projects")
@ALSO_ASYNC
def test_where_no_project_is_available_the_error_comes_out(
    mode: str, gemini: FakeGemini, pool: Any, connect: Callable[..., Any]
) -> None:
    """Google's at first, then the pool's own."""
    pool("A", "B", max_wait_s=0)
    gemini.always_any(Reply.KEY_INVALID)
    client = connect()
    for _ in range(2):
        with pytest.raises(errors.ClientError, match="API key not valid"):
            listed(mode, client, "files")
    assert pages(gemini) == ["A", "B"]


@ALSO_ASYNC
def test_other_errors_come_out(
    mode: str, gemini: FakeGemini, pool: Any, connect: Callable[..., Any]
) -> None:
    """They are about the request, not about a project."""
    pool("A", "B", max_retries=0)
    gemini.always("A", Reply.BAD_REQUEST)
    with pytest.raises(errors.ClientError) as caught:
        listed(mode, connect(), "files")
    assert caught.value.code == 400
    assert pages(gemini) == ["A"]


def test_outside_a_list_is_of_the_home_project(
    gemini: FakeGemini, pool: Any, connect: Callable[..., Any], fill: Callable[..., list[str]]
) -> None:
    """As it is without a pool; models are no project's."""
    names = fill("files", A=1, B=1)
    pool("A", "B")
    client = connect()
    with keyrot_middleware.all_projects():
        assert listed("sync", client, "files") == names
        models = [model.name for model in client.models.list()]
    assert len(models) == len(set(models))
    assert [file.name for file in client.files.list()] == names[:1]


def test_a_pager_may_be_iterated_after_the_context(
    pool: Any, connect: Callable[..., Any], fill: Callable[..., list[str]]
) -> None:
    """Its page tokens lead to the other projects all the same."""
    names = fill("files", A=3, B=2)
    pool("A", "B")
    with keyrot_middleware.all_projects():
        pager = connect().files.list(config={"page_size": 2})
    assert [file.name for file in pager] == names


def test_a_list_that_was_begun_outside_is_of_its_project(
    pool: Any, connect: Callable[..., Any], fill: Callable[..., list[str]]
) -> None:
    """Its page token is one of Google's."""
    names = fill("files", A=3, B=2)
    pool("A", "B")
    pager = connect().files.list(config={"page_size": 2})
    with keyrot_middleware.all_projects():
        assert [file.name for file in pager] == names[:3]


def test_a_page_that_was_fetched_ahead_elsewhere_is_fetched_again(
    gemini: FakeGemini, pool: Any, connect: Callable[..., Any], fill: Callable[..., list[str]]
) -> None:
    """Another process, or many lists at once: a token needs nothing but itself."""
    names = fill("files", A=1, B=2, C=1)
    installed = pool("A", "B", "C")
    client = connect()
    with keyrot_middleware.all_projects():
        first = client.files.list()
        keyrot_middleware.uninstall()
        pool("A", "B", "C")
        assert [file.name for file in first] == names
    del installed
    assert pages(gemini) == ["A", "B", "B", "C"]


def test_a_token_of_another_process_leads_to_no_page_of_another_list(
    gemini: FakeGemini, pool: Any, connect: Callable[..., Any], fill: Callable[..., list[str]]
) -> None:
    """Two workers that serve pages have both fetched some ahead, each of a list of its own."""
    files, batches = fill("files", A=1, B=2), list[str]()
    for label, number in (("A", 1), ("B", 2)):
        batches += make(connect(gemini.key(label).value), "batches", number)
    pool("A", "B")
    client = connect()
    with keyrot_middleware.all_projects():
        first = client.files.list()
        keyrot_middleware.uninstall()
        pool("A", "B")
        other = client.batches.list()
        assert [file.name for file in first] == files
        assert [batch.name for batch in other] == batches


@pytest.mark.parametrize("token", ["keyrot:", "keyrot:B::", "keyrot:-1::", "keyrot:1"])
def test_a_broken_token_is_refused_by_the_service(
    token: str, gemini: FakeGemini, pool: Any, connect: Callable[..., Any]
) -> None:
    """As every page token that is not its own."""
    pool("A", "B")
    gemini.always_any(Reply.BAD_REQUEST)
    with pytest.raises(errors.ClientError) as refused:
        connect().files.list(config={"page_token": token})
    assert refused.value.code == 400
    assert pages(gemini) == ["A"]


def test_two_lists_at_once_keep_their_pages_apart(
    pool: Any, connect: Callable[..., Any], fill: Callable[..., list[str]]
) -> None:
    """Each has its own size of pages."""
    names = fill("files", A=2, B=4)
    pool("A", "B")
    client = connect()
    with keyrot_middleware.all_projects():
        one = iter(client.files.list(config={"page_size": 2}))
        other = iter(client.files.list(config={"page_size": 3}))
        found = [(next(one).name, next(other).name) for _ in names]
    assert found == [(name, name) for name in names]
