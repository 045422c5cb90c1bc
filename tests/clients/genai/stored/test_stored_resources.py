"""Stored things belong to one project: calls that name them go with a key of it."""

import io
import json
from typing import Any

import pytest
from google.genai import errors, types
from support.forks import run_fork
from support.interactions import SDK, SDK_WARNINGS
from support.modes import MODEL, MODES, ask, calls, run, spread
from support.servers import server

import keyrot_middleware
from keyrot_middleware.core.model import Lease
from keyrot_middleware.testing import FakeGemini, Reply

pytestmark = [*SDK_WARNINGS, pytest.mark.usefixtures("v1beta")]
ALSO_ASYNC = pytest.mark.parametrize("mode", ["sync", "async"])
continues = pytest.mark.skipif(SDK < (2, 0), reason="the SDK continues answers from 2.0 on")
TEXT = {"mime_type": "text/plain"}
CHUNK = 8 * 1024 * 1024
"""The SDK's own."""


def either(mode: str, client: Any, work: Any) -> Any:
    """Work with a client, or in a task with the async one."""
    return work(client) if mode == "sync" else run(client, lambda: work(client.aio))


def upload(client: Any) -> types.File:
    return client.files.upload(file=io.BytesIO(b"hello"), config=TEXT)


def keys_of(gemini: FakeGemini) -> list[str]:
    return [request.key for request in gemini.log if request.key]


@pytest.fixture
def three(gemini, pool, connect) -> Any:
    """Install a pool of three projects; return a client whose home key is B's."""
    pool("A", "B", "C", max_wait_s=0)
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


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # aiohttp's
@pytest.mark.parametrize(("mode", "kind"), [("sync", "path"), ("async", "memory")])
def test_start_chunks_and_use_have_one_key(mode, kind, gemini, three, tmp_path) -> None:
    """Start, three chunks, get, prompt, delete: one project's, and no key with the chunks."""
    data = b"x" * (2 * CHUNK + 1)
    path = tmp_path / "large.txt"
    path.write_bytes(data)
    given = {"file": str(path) if kind == "path" else io.BytesIO(data), "config": TEXT}
    file = either(mode, three, lambda api: api.files.upload(**given))
    assert file.size_bytes == len(data)
    either(mode, three, lambda api: api.files.get(name=file.name))
    assert ask(mode, three, contents=["look", file]) == "ok from B"
    either(mode, three, lambda api: api.files.delete(name=file.name))
    assert [request.key for request in gemini.log if request.verb == "upload.start"] == ["B"]
    chunks = [request for request in gemini.log if "upload_id" in request.path]
    assert len(chunks) == 3
    assert all("x-goog-api-key" not in request.headers for request in chunks)
    assert {request.key for request in gemini.log if request not in chunks} == {"B"}


@ALSO_ASYNC
def test_any_client_finds_a_file_at_once(mode, gemini, three, connect) -> None:
    """Without any request for it by name: the last chunk's answer named its owner."""
    file, other = either(mode, three, upload), connect(gemini.key("C").value)
    assert ask("sync", other, contents=["look", file]) == "ok from B"
    assert other.files.get(name=file.name).name == file.name
    assert gemini.sent("C") == 0


# Downloads ---------------------------------------------------------------------------------------


@pytest.fixture
def film(gemini, pool, connect) -> Any:
    """Install a pool in which B has a file, which the pool has seen; return a client of A's."""
    made = pool("A", "B", "C", strategy="fill", max_wait_s=0)
    name = gemini.add_file("B", b"film")
    made.state.set_owner(Lease("B", "key:B", "", "", "", 0, 0, 0.0), [name])
    return connect(), name


@ALSO_ASYNC
def test_a_download_goes_with_the_owners_key(mode, gemini, film) -> None:
    """Also the request to which it is redirected; where it is refused no other key is tried."""
    client, name = film
    assert either(mode, client, lambda api: api.files.download(file=name)) == b"film"
    assert [(request.key, request.status) for request in gemini.log] == [("B", 302), ("B", 200)]
    gemini.always("B", Reply.QUOTA_DAY)
    with pytest.raises(errors.ClientError) as caught:
        either(mode, client, lambda api: api.files.download(file=name))
    assert caught.value.code == 429
    assert "attempt 1 with key B" in caught.value.__notes__[0]
    assert set(keys_of(gemini)) == {"B"}


# One process makes it, another uses it -----------------------------------------------------------


MAKER = """
import io, json, sys
import keyrot_middleware
from google import genai
from google.genai import types

options, settings = json.loads(sys.argv[1]), json.loads(sys.argv[2])
keyrot_middleware.install(**settings)
client = genai.Client(api_key=options.pop("key"), http_options=options)
config = types.UploadFileConfig(mime_type="text/plain")
api = client._api_client
made = {
    "file": client.files.upload(file=io.BytesIO(b"hello"), config=config).name,
    "cache": client.caches.create(
        model="gemini-3.1-flash-lite", config={"contents": "long text " * 40}
    ).name,
    "operation": json.loads(
        api.request("post", "models/veo-3.1:predictLongRunning", {"instances": []}, None).body
    )["name"],
}
made["batch"] = client.batches.create(model="gemini-3.1-flash-lite", src=made["file"]).name
with keyrot_middleware.project("B"):
    asked = {"model": "gemini-3.1-flash-lite", "input": "hello"}
    stream = client.interactions.create(**asked, stream=True)
    events = [event.model_dump(mode="json").get("interaction") or {} for event in stream]
    made["turn"] = next(filter(None, [interaction.get("id") for interaction in events]))
    made["background"] = client.interactions.create(**asked, background=True).id
print(json.dumps(made))
keyrot_middleware.uninstall()
"""


def test_what_one_process_made_another_uses(gemini, pool, connect, tmp_path) -> None:
    """A batch, a video operation and its video, a file, a cache, interactions: the right key.

    Where it is rejected the error says so, and no other project's key is tried: none could help.
    """
    shared = server("valkey")
    shared.execute("FLUSHALL")
    gemini.hold_operations()
    settings = {"state_url": shared.url, "pool": "processes", "allowed_hosts": [gemini.host]}
    pool("A", "B", "C", max_wait_s=0, **settings)
    pool.ledger.checked = False
    options = {**gemini.http_options, "key": gemini.key("B").value}
    theirs = {**settings, "keys_file": str(tmp_path / "pool-keys.json")}
    made = json.loads(run_fork(MAKER, json.dumps(options), json.dumps(theirs)))
    assert set(keys_of(gemini)) <= {"B"}
    gemini.reset_log()
    client = connect()
    film = gemini.finish_operation(made["operation"], b"film")
    operation = types.GenerateVideosOperation(name=made["operation"])
    uses = {
        "batch": lambda api: api.batches.get(name=made["batch"]),
        "operation": lambda api: api.operations.get(operation),
        "film": lambda api: api.files.download(file=film),
        "file": lambda api: api.files.get(name=made["file"]),
        "cache": lambda api: api.caches.get(name=made["cache"]),
        "turn": lambda api: api.interactions.create(
            model=MODEL, input="hello", previous_interaction_id=made["turn"]
        ),
        "background": lambda api: api.interactions.get(made["background"]),
    }

    async def use_all() -> None:
        for use in uses.values():
            use(client)
            await use(client.aio)

    run(client, use_all)
    assert keys_of(gemini) == ["B"] * 16
    assert {request.status for request in gemini.log} == {200, 302}
    gemini.always("B", Reply.KEY_INVALID)
    for use in uses.values():
        gemini.reset_log()
        with pytest.raises(Exception, match="API key not valid") as caught:
            use(client)
        assert "attempt 1 with key B: key_invalid (400), rejected" in caught.value.__notes__[0]
        assert keys_of(gemini) == ["B"]
        keyrot_middleware.reset("B")
