"""Calls of google-genai inside `workload()`, by the terms that install() gives it."""

from typing import Any

import keyrot_middleware
from keyrot_middleware import KeyPoolExhausted

MODEL = "gemini-3.1-flash-lite"
TERMS: dict[str, Any] = {"chat": {"first": True}, "nightly": {"share": 0.5}}


def calls(client: Any, most: int = 1_000) -> int:
    """Call as often as a key is available at once; return how often."""
    for count in range(most):
        try:
            client.models.generate_content(model=MODEL, contents="hi")
        except KeyPoolExhausted:
            return count
    return most


def test_a_batch_leaves_room_for_a_chat(gemini, clock, pool, connect) -> None:
    """Which has a key at once; the batch has the rest of the minute at its end."""
    pool({"key_id": "a", "rpm": 20}, max_wait_s=0, workloads=TERMS)
    client = connect()
    clock.advance(61 - clock.time() % 60)
    for _ in range(12):
        with keyrot_middleware.workload("chat"):
            assert calls(client, 4) == 4
        clock.advance(60)
    with keyrot_middleware.workload("nightly"):
        assert calls(client) == 10
    with keyrot_middleware.workload("chat"):
        assert calls(client, 4) == 4
    clock.advance(59.9)
    assert calls(client) == 6
    assert gemini.count() == 12 * 4 + 20


def test_terms_come_from_the_environment(pool, connect, monkeypatch) -> None:
    """As JSON."""
    monkeypatch.setenv("KEYROT_WORKLOADS", '{"nightly": {"share": 0.5}}')
    pool({"key_id": "a", "rpm": 20}, max_wait_s=0)
    client = connect()
    with keyrot_middleware.workload("nightly"):
        assert calls(client) == 10


def test_a_workload_stops_at_its_budget(pool: Any, connect: Any) -> None:
    """Others go on with the same key."""
    pool({"key_id": "paid"}, max_wait_s=0, workloads={"nightly": {"usd": {"day": 1e-6}}})
    client = connect()
    with keyrot_middleware.workload("nightly"):
        assert 1 <= calls(client, 20) < 20
    assert calls(client, 2) == 2
