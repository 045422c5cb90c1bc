"""Batches over several projects, and stored things that one process makes and another uses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.genai import errors, types
from support.forks import run_fork
from support.modes import MODEL, run
from support.servers import Server, server

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply

ALSO_ASYNC = pytest.mark.parametrize("mode", ["sync", "async"])
SOURCE = [types.InlinedRequest(contents="hello")]


def create(mode: str, client: Any) -> Any:
    """Create a batch."""
    if mode == "sync":
        return client.batches.create(model=MODEL, src=SOURCE)
    return run(client, lambda: client.aio.batches.create(model=MODEL, src=SOURCE))


def get(mode: str, client: Any, name: str) -> Any:
    """Get a batch."""
    if mode == "sync":
        return client.batches.get(name=name)
    return run(client, lambda: client.aio.batches.get(name=name))


def keys_of(gemini: FakeGemini, **equal: object) -> list[str | None]:
    """Return whose the requests were."""
    found = gemini.log
    return [r.key for r in found if all(getattr(r, k) == v for k, v in equal.items())]


@ALSO_ASYNC
def test_a_failed_key_is_excluded(
    mode: str, gemini: FakeGemini, pool: Any, connect: Callable[..., Any]
) -> None:
    """A = 429, B = invalid, C = good: one request each, and all later ones with C."""
    pool("A", "B", "C", strategy="fill")
    gemini.always("A", Reply.QUOTA_MINUTE)
    gemini.always("B", Reply.KEY_INVALID)
    client = connect()
    for _ in range(5):
        create(mode, client)
    assert keys_of(gemini) == ["A", "B", "C", "C", "C", "C", "C"]


def test_googles_own_cap_moves_a_batch_to_another_project(
    gemini: FakeGemini, pool: Any, connect: Callable[..., Any]
) -> None:
    """A 429 for a create is the key's for creates alone."""
    pool("A", "B", strategy="fill")
    gemini.script("A", Reply.EXHAUSTED)
    client = connect()
    for _ in range(3):
        create("sync", client)
    assert keys_of(gemini) == ["A", "B", "B", "B"]
    assert keyrot_middleware.status()["keys"]["A"]["state"] == "available"


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
        model="gemini-2.5-flash", config={"contents": "long text " * 40}
    ).name,
    "operation": json.loads(
        api.request("post", "models/veo-3.1:predictLongRunning", {"instances": []}, None).body
    )["name"],
}
made["batch"] = client.batches.create(model="gemini-2.5-flash", src=made["file"]).name
print(json.dumps(made))
keyrot_middleware.uninstall()
"""


@pytest.fixture
def shared() -> Server:
    """Give the server that tests share, emptied."""
    one = server("valkey")
    one.execute("FLUSHALL")
    return one


@pytest.fixture
def made(gemini: FakeGemini, pool: Any, shared: Server, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Let another process make one of each with key B; then install the same pool here."""
    gemini.hold_operations()
    keys = ("A", "B", "C")
    settings = {"state_url": shared.url, "pool": "processes", "allowed_hosts": [gemini.host]}
    pool(*keys, max_wait_s=0, **settings)  # writes the file of keys
    pool.ledger.checked = False
    options = {**gemini.http_options, "key": gemini.key("B").value}
    theirs = {**settings, "keys_file": str(tmp_path / "pool-keys.json")}
    printed = run_fork(MAKER, json.dumps(options), json.dumps(theirs))
    assert set(keys_of(gemini)) <= {"B", None}
    gemini.reset_log()
    yield json.loads(printed)


@ALSO_ASYNC
def test_what_one_process_made_another_uses(
    mode: str, made: dict[str, str], gemini: FakeGemini, connect: Callable[..., Any]
) -> None:
    """A batch, a video operation and its video, a file and a cache: the right key each time."""
    client = connect()
    film = gemini.finish_operation(made["operation"], b"film")

    async def use() -> None:
        aio = client.aio
        await aio.batches.get(name=made["batch"])
        done = await aio.operations.get(types.GenerateVideosOperation(name=made["operation"]))
        assert done.done
        assert await aio.files.download(file=film) == b"film"
        await aio.files.get(name=made["file"])
        await aio.caches.get(name=made["cache"])

    if mode == "async":
        run(client, use)
    else:
        client.batches.get(name=made["batch"])
        assert client.operations.get(types.GenerateVideosOperation(name=made["operation"])).done
        assert client.files.download(file=film) == b"film"
        client.files.get(name=made["file"])
        client.caches.get(name=made["cache"])
    assert keys_of(gemini) == ["B"] * 6
    assert {request.status for request in gemini.log} == {200, 302}


@ALSO_ASYNC
@pytest.mark.parametrize("what", ["batch", "operation", "file", "cache"])
def test_the_error_says_whose_key_was_rejected(
    what: str, mode: str, made: dict[str, str], gemini: FakeGemini, connect: Callable[..., Any]
) -> None:
    """No other project's key is tried: it could not help."""
    gemini.always("B", Reply.KEY_INVALID)
    client = connect()

    def use(api: Any) -> Any:
        name = made[what]
        return {
            "batch": lambda: api.batches.get(name=name),
            "operation": lambda: api.operations.get(types.GenerateVideosOperation(name=name)),
            "file": lambda: api.files.get(name=name),
            "cache": lambda: api.caches.get(name=name),
        }[what]()

    with pytest.raises(errors.ClientError, match="API key not valid") as caught:
        use(client) if mode == "sync" else run(client, lambda: use(client.aio))
    assert "attempt 1 with key B: key_invalid (400), rejected" in caught.value.__notes__[0]
    assert keys_of(gemini) == ["B"]
