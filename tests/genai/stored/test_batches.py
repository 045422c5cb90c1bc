"""Batches over several projects, and stored things that one process makes and another uses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.genai import types
from support.forks import run_fork
from support.interactions import SDK_WARNINGS
from support.modes import MODEL, run
from support.servers import server

import keyrot_middleware
from keyrot_middleware.testing import FakeGemini, Reply

pytestmark = SDK_WARNINGS
ALSO_ASYNC = pytest.mark.parametrize("mode", ["sync", "async"])
SOURCE = [types.InlinedRequest(contents="hello")]


def create(mode: str, client: Any) -> Any:
    """Create a batch."""
    if mode == "sync":
        return client.batches.create(model=MODEL, src=SOURCE)
    return run(client, lambda: client.aio.batches.create(model=MODEL, src=SOURCE))


def keys_of(gemini: FakeGemini) -> list[str | None]:
    """Return whose the requests were."""
    return [request.key for request in gemini.log]


@ALSO_ASYNC
def test_a_failed_key_is_excluded(mode, gemini, pool, connect) -> None:
    """A = 429, B = invalid, C = good: one request each, and all later ones with C."""
    pool("A", "B", "C", strategy="fill")
    gemini.always("A", Reply.QUOTA_MINUTE)
    gemini.always("B", Reply.KEY_INVALID)
    client = connect()
    for _ in range(5):
        create(mode, client)
    assert keys_of(gemini) == ["A", "B", "C", "C", "C", "C", "C"]


def test_googles_own_cap_moves_a_batch_to_another_project(gemini, pool, connect) -> None:
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
with keyrot_middleware.project("B"):
    asked = {"model": "gemini-2.5-flash", "input": "hello"}
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
    assert set(keys_of(gemini)) <= {"B", None}
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
