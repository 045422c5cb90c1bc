"""Downloads go with a key of the project that owns the file, as the other requests do."""

from __future__ import annotations

import inspect
import io
from typing import Any

import pytest
from google.genai import errors
from google.genai._api_client import BaseApiClient
from support.modes import run
from support.pool import INFO
from support.states import ABANDONED

from keyrot_middleware.core.model import Lease
from keyrot_middleware.runtime import current_pool
from keyrot_middleware.testing import FakeGemini, Reply

ALSO_ASYNC = pytest.mark.parametrize("mode", ["sync", "async"])
has_destination = pytest.mark.skipif(
    "destination" not in inspect.signature(BaseApiClient.download_file).parameters,
    reason="this SDK downloads into memory only",
)


def download(mode: str, client: Any, file: str, **more: Any) -> Any:
    """Download a file, as bytes."""
    if mode == "sync":
        return client.files.download(file=file, **more)
    return run(client, lambda: client.aio.files.download(file=file, **more))


def fetch(mode: str, client: Any, path: str, **more: Any) -> Any:
    """Download a path with the api client's own method."""
    api = client._api_client
    if mode == "sync":
        return api.download_file(path, **more)
    return run(client, lambda: api.async_download_file(path, **more))


def made_by(gemini: FakeGemini, label: str, data: bytes = b"film") -> str:
    """Let the project of a key have a file, which the pool has seen."""
    name = gemini.add_file(label, data)
    pool = current_pool()
    assert pool is not None
    lease = pool.state.acquire(INFO, ((0, pool.selector.keys[label]),), spread=False)
    assert isinstance(lease, Lease)
    pool.state.settle(lease, ABANDONED, [name])
    return name


def keys_of(gemini: FakeGemini) -> list[str | None]:
    """Return whose the requests were."""
    return [request.key for request in gemini.log]


@pytest.fixture
def three(pool, connect) -> Any:
    """Install a pool of three projects; the home key is A's."""
    pool("A", "B", "C", strategy="fill", max_wait_s=0)
    return connect()


@ALSO_ASYNC
def test_a_download_goes_with_the_owners_key(mode, gemini, three) -> None:
    """Also the request to which it is redirected; nothing reaches another project."""
    name = made_by(gemini, "B")
    assert download(mode, three, name) == b"film"
    assert keys_of(gemini) == ["B", "B"]
    assert [request.status for request in gemini.log] == [302, 200]


@ALSO_ASYNC
def test_the_owners_refusal_comes_out(mode, gemini, three) -> None:
    """A 429 goes to no other project's key, and the note says whose it was."""
    name = made_by(gemini, "B")
    gemini.always("B", Reply.QUOTA_DAY)
    with pytest.raises(errors.ClientError) as caught:
        download(mode, three, name)
    assert caught.value.code == 429
    assert keys_of(gemini) == ["B"]
    assert "attempt 1 with key B" in caught.value.__notes__[0]


@has_destination
@ALSO_ASYNC
def test_a_path_and_a_stream_of_the_program(mode, gemini, three, tmp_path) -> None:
    """The bytes are written where the program wants them, with the owner's key."""
    name = made_by(gemini, "B")
    path, stream = tmp_path / "film", io.BytesIO()
    for destination in (path, stream):
        assert fetch(mode, three, f"{name}:download?alt=media", destination=destination) is None
    assert path.read_bytes() == stream.getvalue() == b"film"
    assert set(keys_of(gemini)) == {"B"}
