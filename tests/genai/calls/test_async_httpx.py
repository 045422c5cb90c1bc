"""Without aiohttp, as pip installs the SDK, its async methods use httpx: the same holds."""

from __future__ import annotations

import io
import pickle

import pytest
from google.genai import _api_client, errors, types
from support.key_search import hold_no_key
from support.modes import MODEL, ask_async, calls, run

import keyrot_middleware
from keyrot_middleware import KeyPoolExhausted
from keyrot_middleware.core.model import LeaseOutcome
from keyrot_middleware.testing import Reply

WAYS = pytest.mark.parametrize("mode", ["async", "async_stream"])


@pytest.fixture(autouse=True)
def no_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the SDK find no aiohttp."""
    monkeypatch.setattr(_api_client, "has_aiohttp", False)


@pytest.mark.parametrize("at_once", [1, 32])
@WAYS
def test_sixty_calls_meet_each_bad_key_once(mode, at_once, gemini, pool, connect) -> None:
    """An exhausted and an invalid key cost a request for every caller in flight."""
    pool("A", "B", "C")
    gemini.always("A", Reply.QUOTA_MINUTE)
    gemini.always("B", Reply.KEY_INVALID)
    assert calls(mode, connect(), 60, at_once) == ["ok from C"] * 60
    assert max(gemini.sent("A"), gemini.sent("B")) <= at_once
    assert gemini.sent("C") == 60


@pytest.mark.parametrize("reply", [Reply.BAD_REQUEST, Reply.KEY_SUSPENDED, Reply.NOT_FOUND_HTML])
@WAYS
def test_errors_are_readable_and_without_a_key(mode, reply, gemini, pool, connect) -> None:
    """The SDK's own class, its response readable as before, notes, and no key anywhere."""
    pool("A", "B", max_wait_s=0)
    gemini.always_any(reply)
    client = connect(gemini.add_key("own").value)
    (error,) = calls(mode, client, 1)
    assert isinstance(error, errors.ClientError)
    assert error.__notes__
    assert error.response.status_code == error.code
    assert pickle.loads(pickle.dumps(error)).code == error.code  # noqa: S301 - our own
    hold_no_key(error, gemini, "A", "B", "own")


@WAYS
def test_when_no_key_is_available_the_response_can_be_read(mode, gemini, pool, connect) -> None:
    """KeyPoolExhausted has a response of the client's HTTP library."""
    pool("A", max_wait_s=0)
    gemini.always("A", Reply.QUOTA_DAY)
    _, error = calls(mode, connect(), 2)
    assert isinstance(error, KeyPoolExhausted)
    assert error.response.json() == error.details


@WAYS
def test_lost_connections_are_repeated_and_deadlines_are_not(mode, gemini, pool, connect) -> None:
    """Two repeats after a reset, none after a read timeout; neither penalizes a key."""
    pool("A", "B")
    gemini.script_any(Reply.RESET, Reply.RESET, Reply.OK, Reply.HANG)
    (answer,), (error,) = calls(mode, connect(), 1), calls(mode, connect(timeout=300), 1)
    assert str(answer).startswith("ok from ")
    assert "timeout" in type(error).__name__.lower()
    assert gemini.count() == 4
    assert not any(key["in_cooldown"] for key in keyrot_middleware.status()["keys"].values())


@pytest.mark.parametrize("reply", [Reply.STREAM_OVERLOADED, Reply.STREAM_DROPPED])
def test_a_stream_is_not_restarted(reply, gemini, pool, connect) -> None:
    """After its first chunk the error is raised, with a note, after one request."""
    pool("A", "B")
    gemini.always_any(reply)
    (error,) = calls("async_stream", connect(), 1)
    assert len(error.__notes__) == gemini.count() == 1


def test_an_abandoned_stream_is_settled(pool, connect) -> None:
    """Closed after its first chunk, it counts as abandoned with its usage so far."""
    pool("A")
    client = connect()

    async def leave() -> None:
        stream = await client.aio.models.generate_content_stream(model=MODEL, contents="hello")
        await anext(stream)
        del stream

    run(client, leave)
    pool.ledger.check()
    assert pool.ledger.kinds == [LeaseOutcome.ABANDONED]


def test_a_files_life_is_one_keys(gemini, pool, connect) -> None:
    """Upload, prompt and delete use the home key."""
    pool("A", "B", "C")
    client = connect(gemini.key("B").value)

    async def life() -> None:
        config = types.UploadFileConfig(mime_type="text/plain")
        file = await client.aio.files.upload(file=io.BytesIO(b"hello"), config=config)
        await ask_async("async", client, contents=["look", file])
        await client.aio.files.delete(name=file.name)

    run(client, life)
    assert {request.key for request in gemini.log if request.key} == {"B"}
