"""Stored resources that the pool has not seen: each project is asked once whether it has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.genai import errors, types
from support.modes import MODEL, ask, run

from keyrot_middleware.testing import FakeGemini

ALSO_ASYNC = pytest.mark.parametrize("mode", ["sync", "async"])


def did(mode: str, client: Any, work: Callable[[Any], Any]) -> Any:
    """Do *work* with the sync client or, awaited, with the async one."""
    if mode == "sync":
        return work(client)
    return run(client, lambda: work(client.aio))


def keys_of(gemini: FakeGemini) -> list[str | None]:
    """Return whose the requests were."""
    return [request.key for request in gemini.log]


@pytest.fixture
def by_c(gemini: FakeGemini, connect: Callable[..., Any]) -> dict[str, str]:
    """Let key C make one of each, without a pool."""
    client = connect(gemini.add_key("C", tier="paid").value)
    source = [types.InlinedRequest(contents="hello")]
    cache = client.caches.create(model=MODEL, config={"contents": "long text " * 40})
    return {
        "batch": client.batches.create(model=MODEL, src=source).name,
        "cache": cache.name,
        "file": gemini.add_file("C", b"film"),
    }


@pytest.fixture
def client(by_c: dict[str, str], gemini: FakeGemini, pool: Any, connect: Callable[..., Any]) -> Any:
    """Install a pool of three projects, which knows nothing of that."""
    pool("A", "B", "C", strategy="fill", max_wait_s=0)
    gemini.reset_log()
    return connect()


@ALSO_ASYNC
@pytest.mark.parametrize("what", ["batch", "cache", "file"])
def test_a_get_finds_the_owner(
    what: str, mode: str, by_c: dict[str, str], gemini: FakeGemini, client: Any
) -> None:
    """One request for each project, once; then it goes there at once."""
    use = {
        "batch": lambda api: api.batches.get(name=by_c["batch"]),
        "cache": lambda api: api.caches.get(name=by_c["cache"]),
        "file": lambda api: api.files.get(name=by_c["file"]),
    }[what]
    assert did(mode, client, use).name == by_c[what]
    assert keys_of(gemini) == ["A", "B", "C"]
    assert did(mode, client, use).name == by_c[what]
    assert keys_of(gemini) == ["A", "B", "C", "C"]


@ALSO_ASYNC
def test_a_download_finds_the_owner(
    mode: str, by_c: dict[str, str], gemini: FakeGemini, client: Any
) -> None:
    """A 403 of the others is not blamed on their keys."""
    for _ in range(2):
        assert did(mode, client, lambda api: api.files.download(file=by_c["file"])) == b"film"
    assert keys_of(gemini) == ["A", "B", "C", "C", "C", "C"]


@ALSO_ASYNC
def test_a_cancel_is_sent_to_the_owner_alone(
    mode: str, by_c: dict[str, str], gemini: FakeGemini, client: Any
) -> None:
    """Home refuses it; the others are asked by a GET."""
    did(mode, client, lambda api: api.batches.cancel(name=by_c["batch"]))
    requests = [(request.key, request.verb) for request in gemini.log]
    assert requests == [
        ("A", "batches.cancel"),
        ("B", "batches.get"),
        ("C", "batches.get"),
        ("C", "batches.cancel"),
    ]
    job = did(mode, client, lambda api: api.batches.get(name=by_c["batch"]))
    assert job.state == types.JobState.JOB_STATE_CANCELLED


@ALSO_ASYNC
def test_a_delete_and_an_update_too(
    mode: str, by_c: dict[str, str], gemini: FakeGemini, client: Any
) -> None:
    """Each finds the owner of what it changes."""
    did(mode, client, lambda api: api.files.delete(name=by_c["file"]))
    did(mode, client, lambda api: api.caches.update(name=by_c["cache"], config={"ttl": "600s"}))
    changed = [(r.key, r.verb) for r in gemini.log if r.status == 200]
    assert changed == [
        ("C", "files.get"),
        ("C", "files.delete"),
        ("C", "cachedContents.get"),
        ("C", "cachedContents.patch"),
    ]


@ALSO_ASYNC
def test_what_nobody_has_is_homes_error(mode: str, gemini: FakeGemini, client: Any) -> None:
    """With a note; the next poll within a minute asks home alone."""
    for _ in range(3):
        with pytest.raises(errors.ClientError) as caught:
            did(mode, client, lambda api: api.batches.get(name="batches/none"))
        assert caught.value.code == 404
    assert keys_of(gemini) == ["A", "B", "C", "A", "A"]
    assert len(caught.value.__notes__) == 1


def test_a_prompt_with_an_unknown_file_is_not_sent_around(
    by_c: dict[str, str], gemini: FakeGemini, client: Any
) -> None:
    """Its 403 comes out: asking would be sending the prompt to every project."""
    part = {
        "fileData": {"fileUri": f"{gemini.url}/v1beta/{by_c['file']}", "mimeType": "text/plain"}
    }
    with pytest.raises(errors.ClientError) as caught:
        ask("sync", client, contents=[{"role": "user", "parts": [part]}])
    assert caught.value.code == 403
    assert keys_of(gemini) == ["A"]
