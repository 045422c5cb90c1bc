"""The first key is rejected or exhausted: clients without a key create things with another one."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from google.genai import errors, types
from support.modes import MODEL, ask_async, ask_sync, run

from keyrot_middleware.testing import Reply

PLAIN = types.UploadFileConfig(mime_type="text/plain")
CACHE = types.CreateCachedContentConfig(contents="a long text " * 500)

CREATES: dict[str, Callable[[Any], Any]] = {
    "file": lambda api: api.files.upload(file=io.BytesIO(b"hello"), config=PLAIN),
    "cache": lambda api: api.caches.create(model=MODEL, config=CACHE),
    "batch": lambda api: api.batches.create(
        model=MODEL, src=[{"contents": [{"parts": [{"text": "hello"}]}]}]
    ),
    "video": lambda api: api.models.generate_videos(
        model="veo-3.0-generate-001", source={"prompt": "a cat"}
    ),
}


def skip_where_unsupported(kind: str) -> None:
    """Skip calls that this SDK refuses before it sends anything."""
    if kind == "video":
        from google.genai import version

        if version.__version__.startswith("3."):
            pytest.skip("this SDK makes no videos with the Gemini API (make sdk-versions)")


@pytest.mark.parametrize("known", [True, False], ids=["known", "found out by the call"])
@pytest.mark.parametrize("kind", CREATES)
def test_a_new_resource_is_created_by_another_key(kind, known, gemini, pool, connect) -> None:
    """No error, and one request at most with the rejected key."""
    skip_where_unsupported(kind)
    pool("A", "B", "C", strategy="fill")
    gemini.always("A", Reply.KEY_INVALID)
    client = connect()
    if known:
        ask_sync("sync", client)
    for _ in range(3):
        assert CREATES[kind](client).name
    assert gemini.sent("A") == 1
    used = {request.key for request in gemini.log if request.key}
    assert used == {"A", "B"}


@pytest.mark.parametrize("kind", CREATES)
def test_the_same_asynchronously(kind, gemini, pool, connect) -> None:
    """In a task."""
    skip_where_unsupported(kind)
    pool("A", "B", strategy="fill")
    gemini.always("A", Reply.KEY_INVALID)
    client = connect()

    async def create() -> None:
        assert (await CREATES[kind](client.aio)).name

    run(client, create)
    assert gemini.sent("A") == 1


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", CREATES)
def test_an_exhausted_first_key_is_replaced_too(kind, mode, gemini, pool, connect) -> None:
    """A 429 of the first key: the next one creates it, and what was created is found there."""
    skip_where_unsupported(kind)
    pool("A", "B", strategy="fill", max_wait_s=0)
    gemini.always("A", Reply.QUOTA_MINUTE)
    client = connect()

    async def create() -> Any:
        return await CREATES[kind](client.aio)

    made = [CREATES[kind](client) if mode == "sync" else run(client, create) for _ in range(2)]
    assert gemini.sent("A") == 1
    gemini.reset_log()
    if kind == "file":
        client.files.get(name=made[0].name)
        assert gemini.log[-1].key == "B"


@pytest.mark.parametrize("kind", ["file", "cache"])
def test_an_exhausted_key_of_the_client_is_not_replaced(kind, gemini, pool, connect) -> None:
    """Its program may expect the new resource in that project."""
    pool("A", "B", strategy="fill", max_wait_s=0)
    gemini.always("A", Reply.QUOTA_MINUTE)
    client = connect(gemini.key("A").value)
    with pytest.raises(errors.ClientError, match="429"):
        CREATES[kind](client)
    assert gemini.sent("B") == 0


def test_the_owner_of_a_new_resource_is_recorded(gemini, pool, connect) -> None:
    """A file that another key uploaded is read, named in a prompt and deleted with that key."""
    pool("A", "B", "C")
    gemini.always("A", Reply.KEY_INVALID)
    client = connect()

    async def life() -> None:
        file = client.files.upload(file=io.BytesIO(b"hello"), config=PLAIN)
        client.files.get(name=file.name)
        for _ in range(4):
            await ask_async("async", client, contents=["look", file])
        client.files.delete(name=file.name)

    run(client, life)
    (owner,) = {request.key for request in gemini.log if request.key} - {"A"}
    assert owner in ("B", "C")


def test_lists_use_an_available_key(gemini, pool, connect) -> None:
    """The home key skips keys that are known to be rejected."""
    pool("A", "B", strategy="fill")
    gemini.always("A", Reply.KEY_INVALID)
    client = connect()
    ask_sync("sync", client)
    assert list(client.files.list()) == []
    assert gemini.sent("A") == 1


@pytest.mark.filterwarnings("ignore:Interactions usage is experimental")  # SDK 1.x says so
@pytest.mark.parametrize("used_before", [True, False])
def test_interactions_use_an_available_key(used_before, gemini, pool, connect) -> None:
    """Also those of a client that has used the first key before it was rejected."""
    pool("A", "B", strategy="fill")
    client = connect()

    def interact() -> str:
        client.interactions.create(model=MODEL, input="hello")
        return gemini.log[-1].key

    if used_before:
        assert interact() == "A"
    gemini.always("A", Reply.KEY_INVALID)
    ask_sync("sync", client)
    assert interact() == "B"


@pytest.mark.parametrize("used_before", [True, False])
def test_live_uses_an_available_key(used_before, gemini, pool, connect, monkeypatch) -> None:
    """The handshake of a session has the first key that is not rejected."""
    seen: list[str] = []

    def connected(*_args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["additional_headers"]["x-goog-api-key"])
        raise ConnectionError("far enough")

    async def session() -> None:
        with pytest.raises(ConnectionError):
            async with client.aio.live.connect(model=MODEL):
                pass

    monkeypatch.setattr("google.genai.live.ws_connect", connected)
    pool("A", "B", strategy="fill")
    client = connect()
    if used_before:
        run(client, session)
    gemini.always("A", Reply.KEY_INVALID)
    ask_sync("sync", client)
    run(client, session)
    assert seen == [gemini.key(label).value for label in "AB"[not used_before :]]


def test_a_home_key_that_was_replaced_is_the_home_key_again(files, gemini, connect) -> None:
    """With a new value the first key is used again, also for stored resources."""
    for key_id in ("A", "B"):
        files.put(key_id)
    files.list("A", "B")
    files.install()
    gemini.always("A", Reply.KEY_INVALID)
    client = connect()
    ask_sync("sync", client)
    assert list(client.files.list()) == []
    files.put("A", "A2")
    for _ in range(200):
        list(client.files.list())
        if gemini.log[-1].key == "A2":
            break
    assert gemini.log[-1].key == "A2"
