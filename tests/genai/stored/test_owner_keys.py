"""Stored resources belong to one project: calls that name them use the owner's key."""

from __future__ import annotations

import io

import pytest
from google import genai
from google.genai import errors, types
from support.modes import MODEL, MODES, ask, ask_sync, calls, run, spread

from keyrot_middleware.testing import Reply

SDK = tuple(int(part) for part in genai.__version__.split(".")[:2])
continues = pytest.mark.skipif(SDK < (2, 0), reason="the SDK continues answers from 2.0 on")


def upload(client) -> types.File:
    """Upload a text."""
    config = types.UploadFileConfig(mime_type="text/plain")
    return client.files.upload(file=io.BytesIO(b"hello"), config=config)


def keys_of(gemini) -> list[str]:
    """Return the key of each request, without requests that have none."""
    return [request.key for request in gemini.log if request.key]


@pytest.fixture
def three(gemini, pool, connect):
    """Install a pool of three projects; return a client whose home key is B's."""
    pool("A", "B", "C")
    return connect(gemini.key("B").value)


@pytest.mark.parametrize(
    ("where", "what", "mode"),
    spread(["client", "request dict", "request object"], ["cache", "file"], MODES),
)
def test_names_in_extra_body_are_read(mode, what, where, gemini, three, connect) -> None:
    """The SDK merges extra_body below us: a cache or a file in it still binds the call."""
    if what == "cache":
        cache = three.caches.create(model=MODEL, config={"contents": "long text " * 40})
        extra = {"cachedContent": cache.name}
    else:
        part = {"fileData": {"fileUri": upload(three).uri, "mimeType": "text/plain"}}
        three.files.get(name=next(iter(three.files.list())).name)
        extra = {"systemInstruction": {"parts": [part]}}
    other = connect(gemini.key("C").value, **({"extra_body": extra} if where == "client" else {}))
    options = {"extra_body": extra}
    http_options = options if where == "request dict" else types.HttpOptions(**options)
    config = None if where == "client" else {"http_options": http_options}
    gemini.reset_log()
    assert calls(mode, other, 6, config=config) == ["ok from B"] * 6
    assert keys_of(gemini) == ["B"] * 6


def test_a_cache_uses_one_key_throughout(gemini, three) -> None:
    """Create, get, use, list, update, delete."""
    cache = three.caches.create(model=MODEL, config={"contents": "long text " * 40})
    three.caches.get(name=cache.name)
    config = types.GenerateContentConfig(cached_content=cache.name)
    assert [ask_sync("sync", three, config=config) for _ in range(6)] == ["ok from B"] * 6
    assert [c.name for c in three.caches.list()] == [cache.name]
    three.caches.update(name=cache.name, config={"ttl": "600s"})
    three.caches.delete(name=cache.name)
    assert set(keys_of(gemini)) == {"B"}


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_is_created_where_there_is_room_for_one(mode, gemini, pool, connect) -> None:
    """The free home project stores none: a paid one creates it and serves its uses."""
    gemini.add_key("free", tier="free")
    pool("free", "paid", strategy="fill")
    client, request = connect(), {"model": MODEL, "config": {"contents": "long text " * 4_000}}
    for _ in range(2):
        if mode.startswith("async"):
            cache = run(client, lambda: client.aio.caches.create(**request))
        else:
            cache = client.caches.create(**request)
    config = types.GenerateContentConfig(cached_content=cache.name)
    assert ask(mode, client, config=config) == "ok from paid"
    assert ask(mode, client) == "ok from free", "and a call without a cache still uses the free one"
    assert keys_of(gemini) == ["free", "paid", "paid", "paid", "free"]


def test_the_pages_of_a_list_use_one_key(gemini, three) -> None:
    """A page token is its key's, from the first page to the last."""
    files = [upload(three).name for _ in range(5)]
    gemini.reset_log()
    assert sorted(f.name for f in three.files.list(config={"page_size": 2})) == sorted(files)
    assert keys_of(gemini) == ["B"] * 3
    models = list(three.models.list(config={"page_size": 2}))
    pages = [request for request in gemini.log if request.verb.startswith("models")]
    assert len(models) > 2
    assert len({request.key for request in pages}) == 1
    assert len(pages) > 1


def test_an_explicit_key_outside_the_pool_keeps_its_own_resources(gemini, pool, connect) -> None:
    """Files of a foreign key use that key; its prompts use the pool."""
    pool("A", "B")
    client = connect(gemini.add_key("own", tier="paid").value)
    file = upload(client)
    assert ask("sync", client, contents=["look", file]) == "ok from own"
    assert ask("sync", client) in ("ok from A", "ok from B")
    gemini.script("own", Reply.KEY_INVALID)
    with pytest.raises(errors.ClientError, match="API key not valid"):
        client.files.get(name=file.name)
    assert client.files.get(name=file.name).name == file.name, "and it is not retired"


def test_text_that_mentions_a_file_does_not_bind_a_call(gemini, three) -> None:
    """A prompt is only a prompt."""
    file = upload(three)
    assert len(set(calls("sync", three, 12, contents=f"read {file.name} please"))) > 1


@continues
@pytest.mark.parametrize("mode", MODES)
def test_all_hops_of_a_continued_answer_use_one_key(mode, gemini, pool, connect) -> None:
    """The token belongs to the key that gave it: three hops, one key, for every call."""
    pool("A", "B", "C")
    client = connect()
    for _ in range(6):
        gemini.reset_log()
        gemini.script_any(Reply.CONTINUATION, Reply.CONTINUATION)
        ask(mode, client)
        keys = keys_of(gemini)
        assert len(keys) == 3
        assert len(set(keys)) == 1


@continues
@pytest.mark.parametrize("mode", MODES)
def test_a_hop_never_changes_its_key(mode, gemini, pool, connect) -> None:
    """A 429 on hop 2 is raised, since no other key can use the token."""
    pool("A", "B", strategy="fill", max_wait_s=0)
    gemini.script("A", Reply.CONTINUATION, Reply.QUOTA_DAY)
    calls(mode, connect(), 1)
    assert keys_of(gemini) == ["A", "A"]
