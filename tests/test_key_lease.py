"""`KeyManager.lease()`: in threads and tasks, over memory and over a real Redis."""

import asyncio
import pickle
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from google.genai import errors
from support.fake_settings import write_keys
from support.servers import server

from keyrot_middleware import KeyManager, KeyPoolExhausted
from keyrot_middleware.key_manager import LeasedKey, Report

MODEL = "gemini-3.1-flash-lite"
QUOTA = {"error": {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED"}}


@pytest.fixture(params=["memory", "redis"])
def manager(request, tmp_path, monkeypatch) -> Iterator[KeyManager]:
    """Open a pool of key A, with `max_concurrency` 1, and of key B."""
    entries = [{"key_id": "A", "max_concurrency": 1}, {"key_id": "B"}]
    for name in "AB":
        monkeypatch.setenv(f"GEMINI_KEY_{name}", f"FAKE-value-of-{name}")
    keys_file = write_keys(tmp_path / "keys.json", *entries)
    url = server("valkey").url if request.param == "redis" else "memory://"
    pool = f"test-{uuid.uuid4().hex}"
    with KeyManager(keys_file=keys_file, strategy="fill", state_url=url, pool=pool) as made:
        yield made


def used(manager: KeyManager, key_id: str = "A") -> dict[str, Any]:
    return dict(manager.get_health_status()[key_id]["used"][MODEL])


def test_a_normal_end_is_a_success_with_its_true_tokens(manager) -> None:
    """The key is leased inside the block; afterwards its true tokens are recorded."""
    with manager.lease(MODEL, tokens_needed=500) as key:
        assert (key.key_id, key.api_key) == ("A", "FAKE-value-of-A")
        with manager.lease(MODEL) as other:
            assert other.key_id == "B"  # A has max_concurrency 1
        key.record_usage(120)
    assert key.report is None
    assert (used(manager)["requests_minute"], used(manager)["tokens_minute"]) == (1, 120)
    assert manager.get_health_status()["A"]["success_count"] == 1


def test_an_exception_is_classified_and_raised_unchanged(manager) -> None:
    """A 429 cools the key down; the caller gets the same exception, without the key's value."""
    error = errors.ClientError(429, QUOTA | {"seen": "FAKE-value-of-A"})
    with pytest.raises(errors.ClientError) as caught, manager.lease(MODEL) as key:
        raise error
    assert caught.value is error
    assert isinstance(key.report, Report)
    assert key.report.try_another_key
    assert manager.get_health_status()["A"]["state"] == "cooling_down"
    with manager.lease(MODEL) as other:
        assert other.key_id == "B"


def test_what_is_not_about_the_request_penalizes_no_key(manager) -> None:
    """Ctrl-C is not even counted; an exception of the program leaves the key available."""
    with pytest.raises(KeyboardInterrupt), manager.lease(MODEL) as key:
        raise KeyboardInterrupt
    health = manager.get_health_status()["A"]
    assert (key.report, health["error_count"], health["available"]) == (None, 0, True)
    with pytest.raises(ZeroDivisionError), manager.lease(MODEL):
        _ = 1 / 0
    assert manager.get_health_status()["A"]["available"]


def test_no_key_available_is_raised_at_the_start(manager) -> None:
    """The block does not begin, and `retry_at` and `reasons` explain it."""
    with pytest.raises(KeyPoolExhausted) as caught, manager.lease(MODEL, exclude=("A", "B")):
        pytest.fail("the block began")
    assert set(caught.value.reasons) == {"A", "B"}


async def test_a_task_leases_as_a_thread_does(manager) -> None:
    """`async with` reserves and settles without blocking the loop."""
    async with manager.lease(MODEL, tokens_needed=500) as key:
        assert key.key_id == "A"
        async with manager.lease(MODEL) as other:
            assert other.key_id == "B"
        key.record_usage(120)
    assert used(manager)["tokens_minute"] == 120
    with pytest.raises(errors.ClientError):
        async with manager.lease(MODEL) as key:
            raise errors.ClientError(429, QUOTA)
    assert manager.get_health_status()["A"]["state"] == "cooling_down"


async def test_a_cancelled_task_releases_its_key(manager) -> None:
    """Whether it is cancelled inside the block or at its start, key A is available again."""

    async def hold(begun: asyncio.Event) -> None:
        async with manager.lease(MODEL):
            begun.set()
            await asyncio.sleep(60)

    for wait in (True, False):
        begun = asyncio.Event()
        task = asyncio.create_task(hold(begun))
        await (begun.wait() if wait else asyncio.sleep(0))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _until_available(manager)


async def _until_available(manager: KeyManager) -> None:
    for _ in range(500):
        if manager.get_health_status()["A"]["available"]:
            return
        await asyncio.sleep(0.02)
    pytest.fail("key A was not given back")


def test_a_lease_is_used_once(manager) -> None:
    """A second block with the same object is an error that names what to do."""
    lease = manager.lease(MODEL)
    with lease:
        pass
    with pytest.raises(RuntimeError, match="call lease\\(\\) for each request"), lease:
        pass


def test_a_leased_key_shows_no_value_and_cannot_be_pickled() -> None:
    """Neither its repr nor a pickle holds the value."""
    key = LeasedKey("A", "FAKE-value-of-A")
    assert "FAKE" not in repr(key)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(key)
