"""status() while calls are made: what it reports as available is what the next call gets."""

from __future__ import annotations

from typing import Any

import pytest

import keyrot_middleware
from keyrot_middleware import KeyPoolExhausted

MODEL = "gemini-2.5-flash"


def send_call(client: Any) -> Any:
    """Send one call."""
    return client.models.generate_content(model=MODEL, contents="hi")


def states() -> dict[str, str]:
    """Return the state of each key."""
    return {i: key["state"] for i, key in keyrot_middleware.status()["keys"].items()}


def test_exhausted_keys_are_limited_while_calls_find_none(pool, connect, clock) -> None:
    """Both windows are full: status() reports it, with the time at which a call succeeds again."""
    pool({"key_id": "A", "rpm": 1}, {"key_id": "B", "rpm": 1}, max_wait_s=0)
    client = connect()
    assert states() == {"A": "available", "B": "available"}
    send_call(client)
    send_call(client)
    assert states() == {"A": "limited", "B": "limited"}
    with pytest.raises(KeyPoolExhausted) as raised:
        send_call(client)
    known = keyrot_middleware.status()["keys"]["A"]
    retry_at = raised.value.retry_at
    assert retry_at is not None
    assert known["available_at"] == retry_at.isoformat().replace("+00:00", "Z")
    assert (known["available"], known["used"][MODEL]["available"]) == (False, False)
    clock.advance(60)
    assert states() == {"A": "available", "B": "available"}
    send_call(client)
