"""Two services on one Redis with the default pool name share neither rejections nor limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


def error(code: int, message: str, *details: dict[str, Any]) -> errors.APIError:
    """Return the SDK's exception for an answer of Google's."""
    body = {
        "error": {
            "code": code,
            "message": message,
            "status": "UNAUTHENTICATED",
            "details": list(details),
        }
    }
    return errors.ClientError(code, body)


def test_a_rejection_in_one_service_does_not_affect_the_other(valkey: Server) -> None:
    """Both have a key `key_1`; each has its own value."""
    one, other = service(valkey, "FAKE-value-one"), service(valkey, "FAKE-value-other")
    one.report_error(one.select_key(MODEL).key_id, error(400, "API key not valid. Please pass"))
    with pytest.raises(keyrot_middleware.KeyPoolExhausted):
        one.select_key(MODEL)
    assert other.select_key(MODEL).api_key == "FAKE-value-other"
    assert one.get_health_status()["key_1"]["state"] == "rejected"
    assert other.get_health_status()["key_1"]["state"] == "available"


def test_a_learned_limit_of_one_service_does_not_affect_the_other(valkey: Server) -> None:
    """Each key without a project is a project of its own, and so is each of its values."""
    one, other = service(valkey, "FAKE-value-one"), service(valkey, "FAKE-value-other")
    quota = {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [
            {
                "quotaMetric": "generativelanguage.googleapis.com/generate_content_requests",
                "quotaId": "GenerateRequestsPerMinutePerProjectPerModel",
                "quotaValue": "1",
            }
        ],
    }
    one.report_error(one.select_key(MODEL).key_id, error(429, "You exceeded", quota))
    assert one.get_health_status()["key_1"]["used"][MODEL]["learned"] == {"rpm": 1}
    for _ in range(5):
        other.report_success(other.select_key(MODEL).key_id)
    assert other.get_health_status()["key_1"]["used"][MODEL]["learned"] == {}


def test_a_restart_with_another_value_has_an_available_key(valkey: Server) -> None:
    """A deployment replaces the value and restarts: no reset is needed."""
    before = service(valkey, "FAKE-value-old")
    before.report_error(before.select_key(MODEL).key_id, error(401, "No."))
    assert before.get_health_status()["key_1"]["state"] == "rejected"
    assert service(valkey, "FAKE-value-new").select_key(MODEL).api_key == "FAKE-value-new"
    with pytest.raises(keyrot_middleware.KeyPoolExhausted):
        service(valkey, "FAKE-value-old").select_key(MODEL)


def test_reset_in_one_process_holds_for_all(valkey: Server) -> None:
    """They share the value, and so the rejection and its end."""
    one, other = service(valkey, "FAKE-value-one"), service(valkey, "FAKE-value-one")
    one.report_error(one.select_key(MODEL).key_id, error(401, "No."))
    with pytest.raises(keyrot_middleware.KeyPoolExhausted):
        other.select_key(MODEL)
    one.reset("key_1")
    assert one.select_key(MODEL).key_id == "key_1"
