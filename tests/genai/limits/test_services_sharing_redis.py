"""Two services on one Redis with the default pool name share neither rejections nor limits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.genai import errors
from support.servers import BINARIES, Server

import keyrot_middleware
from keyrot_middleware import KeyManager, KeyrotWarning

MODEL = "gemini-2.5-flash"


@pytest.fixture
def valkey() -> Iterator[Server]:
    """Start a server of its own."""
    made = Server(BINARIES["valkey"])
    yield made
    made.remove()


def service(valkey: Server, *values: str) -> KeyManager:
    """Open the pool of a service with these key values."""
    with pytest.warns(KeyrotWarning, match="KEYROT_POOL is not set"):
        return KeyManager(keys=list(values), state_url=valkey.url)


INVALID = errors.ClientError(
    401, {"error": {"code": 401, "message": "No.", "status": "UNAUTHENTICATED"}}
)


def test_a_rejection_in_one_service_does_not_affect_the_other(valkey) -> None:
    """Both have a key `key_1`; each has its own value."""
    one, other = service(valkey, "FAKE-value-one"), service(valkey, "FAKE-value-other")
    one.report_error(one.select_key(MODEL).key_id, INVALID)
    with pytest.raises(keyrot_middleware.KeyPoolExhausted):
        one.select_key(MODEL)
    assert other.select_key(MODEL).api_key == "FAKE-value-other"
    assert one.get_health_status()["key_1"]["state"] == "rejected"
    assert other.get_health_status()["key_1"]["state"] == "available"


def test_reset_in_one_process_holds_for_all(valkey) -> None:
    """They share the value, and so the rejection and its end."""
    one, other = service(valkey, "FAKE-value-one"), service(valkey, "FAKE-value-one")
    one.report_error(one.select_key(MODEL).key_id, INVALID)
    with pytest.raises(keyrot_middleware.KeyPoolExhausted):
        other.select_key(MODEL)
    one.reset("key_1")
    assert one.select_key(MODEL).key_id == "key_1"
