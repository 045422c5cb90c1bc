"""Keys that a program leases or selects by hand: spans, metrics and events, as of other calls."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.otel import RecordedMetrics
from support.pool import Rig
from support.pool import key as candidate

from keyrot_middleware import KeyManager
from keyrot_middleware.key_manager import LeasedKey

MODEL = "gemini-3.1-flash-lite"


@pytest.fixture
def metered() -> RecordedMetrics:
    return RecordedMetrics()


@pytest.fixture
def manager(traced: Any, metered: RecordedMetrics) -> Iterator[KeyManager]:
    rig = Rig(candidate("key_1"), pool={"observers": (traced.observer, metered.observer)})
    with KeyManager(rig.pool) as made:
        yield made


Use = Callable[[LeasedKey], None]


def _lease(manager: KeyManager, use: Use) -> None:
    with manager.lease(MODEL) as key:
        use(key)


def _lease_in_a_task(manager: KeyManager, use: Use) -> None:
    async def lease() -> None:
        async with manager.lease(MODEL) as key:
            use(key)

    asyncio.run(lease())


def _select(manager: KeyManager, use: Use) -> None:
    selected = manager.select_key(MODEL)
    try:
        use(selected)
    except Exception as error:
        manager.report_error(selected.key_id, error)
        raise
    manager.report_success(selected.key_id, selected.usage.input_tokens)


WAYS = pytest.mark.parametrize("way", [_lease, _lease_in_a_task, _select])


@WAYS
def test_a_lease_has_a_span_and_counts(way, manager, traced, metered) -> None:
    """One span for the call and one for its attempt, and the metrics of a call with its tokens."""
    way(manager, lambda key: key.record_usage(120))
    call, attempt = traced.named("generate_content")[0], traced.named("attempt")[0]
    assert call.name == f"generate_content {MODEL}"
    assert call.attributes["gen_ai.usage.input_tokens"] == 120
    assert call.attributes["keyrot.key.id"] == "key_1"
    assert attempt.attributes["keyrot.attempt.outcome"] == "success"
    assert traced.parent_of(attempt) == call.name
    assert len(traced.spans) == 2
    assert metered.by("gen_ai.client.operation.duration", "gen_ai.request.model") == {MODEL: 1}
    assert metered.by("keyrot.key.tokens", "keyrot.key.id") == {"key_1": 120}
    assert metered.by("keyrot.call.attempts", "error.type") == {None: 1}
