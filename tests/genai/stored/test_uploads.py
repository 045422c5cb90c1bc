"""An upload uses one key from its start, and its file belongs to the project of that key."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from google.genai import types
from support.modes import ask, ask_async, run

from keyrot_middleware.runtime import current_pool

CONFIG = types.UploadFileConfig(mime_type="text/plain")
ALSO_ASYNC = pytest.mark.parametrize("mode", ["sync", "async"])
CHUNK = 8 * 1024 * 1024
"""The SDK's own."""


def upload(mode: str, client: Any, file: Any = None, **config: Any) -> types.File:
    """Upload a file, or a text."""
    request = {
        "file": file or io.BytesIO(b"hello"),
        "config": {"mime_type": "text/plain", **config},
    }
    if mode == "sync":
        return client.files.upload(**request)
    done: types.File = run(client, lambda: client.aio.files.upload(**request))
    return done


@pytest.fixture
def three(gemini, pool, connect):
    """Install a pool of three projects; return a client whose home key is B's."""
    pool("A", "B", "C")
    return connect(gemini.key("B").value)


@pytest.fixture
def other(gemini, three, connect):
    """Return another client of the same process, whose home key is C's."""
    return connect(gemini.key("C").value)


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # aiohttp's
@pytest.mark.parametrize("kind", ["path", "memory"])
@ALSO_ASYNC
def test_start_chunks_and_use_have_one_key(mode, kind, gemini, three, tmp_path) -> None:
    """Start, three chunks, get, prompt, delete: one project's, and no key with the chunks."""
    data = b"x" * (2 * CHUNK + 1)
    path = tmp_path / "large.txt"
    path.write_bytes(data)

    async def life() -> None:
        request = {"file": str(path) if kind == "path" else io.BytesIO(data), "config": CONFIG}
        files = three.files if mode == "sync" else three.aio.files

        async def awaited(what: Any) -> Any:
            return await what if asyncio.iscoroutine(what) else what

        file = await awaited(files.upload(**request))
        assert file.size_bytes == len(data)
        await awaited(files.get(name=file.name))
        assert await ask_async("async", three, contents=["look", file]) == "ok from B"
        await awaited(files.delete(name=file.name))

    run(three, life)
    assert [request.key for request in gemini.log if request.verb == "upload.start"] == ["B"]
    chunks = [request for request in gemini.log if "upload_id" in request.path]
    assert len(chunks) == 3
    assert all("x-goog-api-key" not in request.headers for request in chunks)
    assert {request.key for request in gemini.log if request not in chunks} == {"B"}


@ALSO_ASYNC
def test_any_client_finds_the_file_at_once(mode, gemini, three, other) -> None:
    """Without any request for it by name: the last chunk's answer named its owner."""
    file = upload(mode, three)
    assert ask("sync", other, contents=["look", file]) == "ok from B"
    assert other.files.get(name=file.name).name == file.name
    assert gemini.sent("C") == 0
    key_id, project = current_pool().state.get_owner([file.name])
    assert (key_id, project.partition("@")[0]) == ("B", "key:B")
