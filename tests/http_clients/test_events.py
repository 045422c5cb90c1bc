"""What the bytes of a response report, in whichever pieces they come."""

import json
from typing import Any

import pytest
from support.modes import spread

from keyrot_middleware import providers
from keyrot_middleware.clients.events import EventReader
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
    return b"".join(
        f"event: {event['event_type']}{end}data: {json.dumps(event)}{end}{end}".encode()
        for event in events
    )


@pytest.mark.parametrize(("size", "end"), spread([1, 7, 64, 10_000], ["\n", "\r\n", "\r"]))
def test_a_stream_is_read_in_any_pieces(size, end) -> None:
    """Ids, the token of a continuation and the tokens, wherever the bytes are cut."""
    data = sse(CREATED, DELTA, STATUS, DELTA, COMPLETED, end=end)
    reader = EventReader(InteractionEvents("interactions"))
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
    reader.finish()
    assert reader.names == ("interactions/v1_a", "continuation:t")
    assert reader.usage[:6] == (12, 8, 4, 3, "m", "v1_a")
    assert (reader.is_over, reader.error, reader.failed_at_once) == (True, None, False)


@pytest.mark.parametrize("before", [(), (CREATED,), (DELTA,)])
def test_an_error_in_a_stream(before) -> None:
    """As the first event it is a failed send; behind another one it is not."""
    reader = EventReader(InteractionEvents("interactions"))
    reader.feed(b": a comment\n" + sse(*before, ERROR))
    assert reader.error == ERROR
    assert reader.failed_at_once == (not before)
    assert reader.is_over


def test_comments_and_pings_are_no_event() -> None:
    """A stream begins with what shows something; anthropic's keep-alive is an event of its own."""
    provider = providers.of("anthropic")
    route = provider.route("POST", "https://api.anthropic.com/v1/messages")
    assert route is not None
    reader, begun = EventReader(provider.events(route)), []
    kinds = ("message_start", "ping", "content_block_start")
    events = (f"data: {json.dumps({'type': kind, 'message': {}})}" for kind in kinds)
    for data in (": busy", "", *events):
        reader.feed(f"{data}\n\n".encode())
        begun.append(reader.has_begun)
    assert begun == [False, False, False, False, True]
