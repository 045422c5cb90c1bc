"""What the bytes of a response report, in whichever pieces they come."""

from __future__ import annotations

import json
from typing import Any

import pytest

from keyrot_middleware.http_clients.ledgers import Ledger
from keyrot_middleware.providers.gemini.replies import InteractionEvents

USAGE = {
    "total_input_tokens": 10,
    "total_tool_use_tokens": 2,
    "total_output_tokens": 5,
    "total_thought_tokens": 3,
    "total_cached_tokens": 4,
}
CREATED = {"event_type": "interaction.created", "interaction": {"id": "v1_a"}}
DELTA = {"event_type": "step.delta", "delta": {"type": "text", "text": 'an "error" is'}}
STATUS = {
    "event_type": "interaction.status_update",
    "interaction_id": "v1_a",
    "continuation_token": "t",
}
COMPLETED = {
    "event_type": "interaction.completed",
    "interaction": {"id": "v1_a", "model": "m", "usage": USAGE},
}
ERROR = {"event_type": "error", "error": {"code": "too_many_requests", "message": "Slow."}}


def sse(*events: Any, end: str = "\n") -> bytes:
    """Write events."""
    return b"".join(
        f"event: {event['event_type']}{end}data: {json.dumps(event)}{end}{end}".encode()
        for event in events
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_stream_is_read_in_any_pieces(size: int, end: str) -> None:
    """Ids, the token of a continuation and the tokens, wherever the bytes are cut."""
    data = sse(CREATED, DELTA, STATUS, DELTA, COMPLETED, end=end)
    ledger = Ledger(InteractionEvents("interactions"))
    for start in range(0, len(data), size):
        ledger.feed(data[start : start + size])
    ledger.finish()
    assert ledger.names == ("interactions/v1_a", "continuation:t")
    assert ledger.usage[:6] == (12, 8, 4, 3, "m", "v1_a")
    assert (ledger.is_over, ledger.error, ledger.failed_at_once) == (True, None, False)


def test_a_stream_is_over_with_its_last_event() -> None:
    """The SDK reads no further, and closes it."""
    ledger = Ledger(InteractionEvents("interactions"))
    ledger.feed(sse(CREATED, DELTA))
    assert not ledger.is_over
    ledger.feed(b"event: done\ndata: [DONE]\n\n")
    assert ledger.is_over


@pytest.mark.parametrize("before", [(), (CREATED,), (DELTA,)])
def test_an_error_in_a_stream(before: Any) -> None:
    """As the first event it is a failed send; behind another one it is not."""
    ledger = Ledger(InteractionEvents("interactions"))
    ledger.feed(b": a comment\n" + sse(*before, ERROR))
    assert ledger.error == ERROR
    assert ledger.failed_at_once == (not before)
    assert ledger.is_over


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_stream_has_begun_with_its_first_event(size: int) -> None:
    """Not with a comment, nor with a part of the event, which may be an error."""
    data = b": a comment\n" + sse(ERROR)
    ledger = Ledger(InteractionEvents("interactions"))
    for start in range(0, len(data), size):
        assert (ledger.has_begun, ledger.failed_at_once) == (False, False)
        ledger.feed(data[start : start + size])
        if b"data: %b\n" % json.dumps(ERROR).encode() in data[: start + size]:
            break
    assert (ledger.has_begun, ledger.failed_at_once) == (True, True)
    ledger = Ledger(InteractionEvents("interactions"))
    ledger.feed(sse(DELTA))
    assert (ledger.has_begun, ledger.failed_at_once) == (True, False)
    assert Ledger().has_begun


def test_a_last_line_without_an_end_is_read() -> None:
    """Some streams end with it."""
    ledger = Ledger(InteractionEvents("interactions"))
    ledger.feed(sse(ERROR).rstrip())
    assert ledger.error is None
    ledger.finish()
    assert ledger.error is not None


@pytest.mark.parametrize("line", [b'data: {"interaction', b'data: ["interaction"]', b"data:"])
def test_lines_that_are_no_events_report_nothing(line: bytes) -> None:
    """Whatever comes, nothing is raised."""
    ledger = Ledger(InteractionEvents("interactions"))
    ledger.feed(line + b"\n\n")
    ledger.finish()
    assert (ledger.names, ledger.error) == ((), None)
