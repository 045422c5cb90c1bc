"""What the bytes of a response report, in whichever pieces they come."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.modes import spread

from keyrot_middleware import providers
from keyrot_middleware.clients.events import EventReader
from keyrot_middleware.clients.signatures import SignedEvents
from keyrot_middleware.providers.base import Events
from keyrot_middleware.providers.gemini.replies import InteractionEvents, StreamEvents
from keyrot_middleware.providers.openai_protocol import ChatEvents
from keyrot_middleware.providers.others import CohereEvents

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


def test_an_error_in_json_alone_is_read_behind_named_events() -> None:
    """The names, ids and comments before it are no part of it."""
    reader = EventReader(InteractionEvents("interactions"))
    reader.feed(b": busy\nid: 1\nretry: 5\n" + sse(DELTA))
    reader.feed(b'{\n  "error": {"message": "busy"}\n}\n')
    assert reader.error == {"error": {"message": "busy"}}


# Events that are not parsed ----------------------------------------------------------------------

TEXTS = st.text(max_size=6) | st.sampled_from(
    [
        'say "error":',
        '"usageMetadata": {"promptTokenCount": 7}',
        "[DONE]",
        "}],",
        "a\n",
        "\ud800",
        "TokenCount",
    ]
)


def gemini(part: Any = None, usage: Any = None, **more: Any) -> dict[str, Any]:
    candidate = {"content": {"parts": [{"text": "hi"} if part is None else part]}}
    count = {"promptTokenCount": 9, "candidatesTokenCount": 2} if usage is None else usage
    chunk = {"candidates": [candidate], "usageMetadata": count}
    return {**chunk, "modelVersion": "m", "responseId": "r", **more}


CALL = {"functionCall": {"args": {"usageMetadata": {"promptTokenCount": 7}}}}
ODD = [
    gemini(usage={"promptTokenCount": 9, "thoughtsTokenCount": 70, "serviceTier": "flex"}),
    gemini(usage={"promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 3}]}),
    gemini(usage={"trafficType": "ON_DEMAND"}),
    gemini(usage={"promptTokenCount": None}),
    gemini({"text": "candidatesTokenCount"}, usage={}),
    gemini(CALL, usage={}),
    {**gemini(), "error": None},
    {**gemini(), "error": {"code": 503}},
    {**gemini(), "candidates": [{"content": {}, "finishReason": "STOP"}]},
    {**gemini(), "candidates": [{"content": {}, "continuationToken": "t"}]},
    {"usageMetadata": {"totalTokenCount": 12}},
    {"name": "files/a"},
    {"candidates": []},
    {},
]
"""What no event of text is."""
GEMINI = st.builds(
    gemini,
    TEXTS.map(lambda text: {"text": text}),
    st.fixed_dictionaries({"promptTokenCount": st.integers(1, 99)}),
) | st.sampled_from(ODD)

DELTAS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": TEXTS | st.none(),
        "reasoning_content": TEXTS | st.none(),
        "image_url": st.fixed_dictionaries({"text": TEXTS}),
        "message": st.fixed_dictionaries({"content": st.fixed_dictionaries({"text": TEXTS})}),
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {"index": st.just(0), "function": st.fixed_dictionaries({"arguments": TEXTS})}
            ),
            max_size=1,
        ),
    },
)
COUNTS = st.none() | st.just({"prompt_tokens": 7, "completion_tokens": 5})
CHAT = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["c", "d"]),
        "choices": st.lists(
            st.fixed_dictionaries({"delta": DELTAS}, optional={"finish_reason": st.just("stop")}),
            max_size=2,
        ),
        "usage": COUNTS,
        "x_groq": st.fixed_dictionaries({"usage": COUNTS}),
        "error": st.sampled_from([None, {"code": "busy"}]),
        "delta": DELTAS,
        "type": st.sampled_from(["content-delta", "message-end"]),
        "obfuscation": st.text("aB3", max_size=3),
    },
)


class Shown(EventReader):
    """A reader of events; *parsed*: it parses each."""

    def __init__(self, events: Events, *, parsed: bool) -> None:
        if parsed:
            kind: Any = type(events)
            events.__class__ = type("Parsed", (kind,), {"__slots__": (), "skim": Events.skim})
        super().__init__(events, estimate=3)

    def shows(self) -> Any:
        """Return all that is known."""
        return self.usage, self.names, self.error, self.is_over, self.has_begun, self.has_event


@pytest.mark.parametrize(
    ("kind", "events"),
    [
        (StreamEvents, GEMINI),
        (ChatEvents, CHAT),
        (lambda: ChatEvents(is_stored=True), CHAT),
        (CohereEvents, CHAT),
    ],
)
@given(data=st.data())
def test_an_event_that_is_not_parsed_reports_the_same(kind: Any, events: Any, data: Any) -> None:
    """Wherever the stream is left: as if each event had been parsed."""
    options = {
        "ensure_ascii": data.draw(st.booleans()),
        "separators": data.draw(st.sampled_from([(", ", ": "), (",", ":"), (" , ", " : ")])),
    }
    some = data.draw(st.lists(events, min_size=2, max_size=4))
    skimming, parsing = Shown(kind(), parsed=False), Shown(kind(), parsed=True)
    asked = data.draw(st.sets(st.integers(0, 12)))
    for place, event in enumerate(data.draw(st.lists(st.sampled_from(some), min_size=3))):
        line = b"data: " + json.dumps(event, **options).encode("utf-8", "replace") + b"\n\n"
        skimming.feed(line)
        parsing.feed(line)
        if place in asked:
            assert skimming.shows() == parsing.shows()
    assert skimming.shows() == parsing.shows()


@given(size=st.integers(1, 147))
def test_of_an_event_that_is_cut_nothing_is_kept(size: int) -> None:
    """The usage is that of the last one that is whole, wherever the connection was lost."""
    reader = EventReader(StreamEvents())
    for count in (1, 800):
        reader.feed(
            b"data: " + json.dumps(gemini(usage={"promptTokenCount": count})).encode() + b"\n\n"
        )
    reader.feed((b"data: " + json.dumps(gemini(usage={"promptTokenCount": 900})).encode())[:size])
    reader.finish()
    assert reader.usage.input_tokens == 800


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_event_of_gemini_is_read(odd: Any) -> None:
    """Behind events with a count, which it may or may not replace."""
    skimming, parsing = Shown(StreamEvents(), parsed=False), Shown(StreamEvents(), parsed=True)
    for event in (gemini(), gemini(usage={"promptTokenCount": 5}), odd):
        line = b"data: " + json.dumps(event).encode() + b"\n\n"
        skimming.feed(line)
        parsing.feed(line)
    assert skimming.shows() == parsing.shows()


def chat_line(text: str, **more: Any) -> bytes:
    event = {"id": "c", "choices": [{"delta": {"content": text}, "finish_reason": None}], **more}
    return b"data: " + json.dumps(event).encode()


def test_chunks_that_differ_in_a_text_are_not_parsed() -> None:
    """Whatever it has in it, and however OpenAI hides its length; all else is parsed."""
    events = ChatEvents()
    first = chat_line("a", obfuscation="x")
    assert not events.skim(first)
    events.feed(json.loads(first[5:]))
    for text in ("bcd", 'a "quote"\n', "\u00e9\ud83d\ude00"):
        assert events.skim(chat_line(text, obfuscation="xyz"))
    assert events.usage.output_tokens == (1 + 3 + 10 + 6 + 1) // 2
    assert not events.skim(chat_line("a", obfuscation="x", usage={"prompt_tokens": 1}))
    assert not events.skim(first), "the one before it was not fed"


def test_of_chunks_with_usage_only_the_last_is_parsed() -> None:
    """That of Gemini is repeated in each, so it is parsed when the usage is asked for."""
    events = StreamEvents()
    chunk = {"candidates": [{"content": {"parts": [{"text": "hi"}]}}], "modelVersion": "m"}
    lines = [
        b"data: " + json.dumps({**chunk, "usageMetadata": {"promptTokenCount": count}}).encode()
        for count in range(3)
    ]
    assert [events.skim(lines[0]), events.feed(chunk)] == [False, False]
    assert [events.skim(line) for line in lines] == [True] * 3
    assert events.usage.input_tokens == 2
    assert events.skim(b'data: {"candidates": [], "usageMetadata": {"trafficType": "ON_DEMAND"}}')
    assert not events.skim(b'data: {"cachedContent": {}}'), "in doubt"
    assert events.skim(b'data: {"usageMetadata": {"promptTokenCount": 3')
    assert events.usage.input_tokens == 2, "it is no JSON"


def test_each_event_of_a_model_that_stands_in_is_noted() -> None:
    """Any of them may have a signature."""
    noted: list[str] = []
    reader = EventReader(SignedEvents(StreamEvents(), noted.append))
    for place in range(3):
        event = gemini({"text": "hi", "thoughtSignature": f"s{place}"})
        reader.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert [f"s{place}" in text for place, text in enumerate(noted)] == [True] * 3
