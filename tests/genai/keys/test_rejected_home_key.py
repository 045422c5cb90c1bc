"""The first key is rejected or exhausted: clients without a key create things with another one."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from google.genai import errors, types
from support.modes import MODEL, ask_sync, run, spread

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


@pytest.mark.parametrize(
    ("kind", "mode", "reply", "known"),
    spread(CREATES, ["sync", "async"], [Reply.KEY_INVALID, Reply.QUOTA_MINUTE], [True, False]),
)
def test_a_new_resource_is_created_by_another_key(
    kind, mode, reply, known, gemini, pool, connect
) -> None:
    """No error, one request with the first key, and what was created is found where it is."""
    skip_where_unsupported(kind)
    pool("A", "B", "C", strategy="fill", max_wait_s=0)
    gemini.always("A", reply)
    client = connect()
    if known:
        ask_sync("sync", client)

    async def create() -> Any:
        return await CREATES[kind](client.aio)

    for _ in range(3):
        made = CREATES[kind](client) if mode == "sync" else run(client, create)
    assert made.name
    assert {request.key for request in gemini.log if request.key} == {"A", "B"}
    assert gemini.sent("A") == 1
    if kind == "file":
        assert client.files.get(name=made.name).name == made.name


@pytest.mark.parametrize("kind", ["file", "cache"])
def test_an_exhausted_key_of_the_client_is_not_replaced(kind, gemini, pool, connect) -> None:
    """Its program may expect the new resource in that project."""
    pool("A", "B", strategy="fill", max_wait_s=0)
    gemini.always("A", Reply.QUOTA_MINUTE)
    client = connect(gemini.key("A").value)
    with pytest.raises(errors.ClientError, match="429"):
        CREATES[kind](client)
    assert gemini.sent("B") == 0
