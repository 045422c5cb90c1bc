"""What is read of a large body, and what is not: none may hold an event loop for long."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyrot_middleware import providers
from keyrot_middleware.clients import events as module
from keyrot_middleware.clients import large
from keyrot_middleware.clients.bounded import LONGEST_BODY
from keyrot_middleware.clients.events import EndReader, EventReader
from keyrot_middleware.clients.large import parse_body, shortened, text_of
from keyrot_middleware.core.model import NO_USAGE
from keyrot_middleware.providers.base import text_size, with_named_model
from keyrot_middleware.providers.gemini.bodies import read_body as read_gemini
from keyrot_middleware.providers.openai import read_body as read_openai

READERS = pytest.mark.parametrize("read", [read_openai, read_gemini])
PIXELS = "data:image/png;base64," + "A" * 3_000_000
VALUES = 1_000_001
OPENAI = "https://api.openai.com/v1/"


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def size(body: Any) -> int:
    return len(json.dumps(body))


NORMAL: dict[str, Any] = {
    "a long prompt": {"messages": [user("A sentence, with [1, 2, 3] and {}. " * 100_000)]},
    "a table of numbers in a text": {"messages": [user("1, 2.5, 3\n" * 200_000)]},
    "quotes and escapes": {
        "messages": [
            user('"\\", [1,' * 100_000),
            user("\n\u4f60" * 90_000),
            user("x" * 9_000 + '\\" ' * 9_000),
            user(json.dumps(json.dumps(json.dumps([""] * 9_000)))),
        ]
    },
    "images": {"messages": [user({"type": "image_url", "image_url": {"url": PIXELS}})] * 3},
    "10,000 messages": {"messages": [user(f"Hello, {number}. " * 9) for number in range(10_000)]},
    "messages full of marks": {"messages": [user("f(a[i], {b}), " * 90) for _ in range(9_000)]},
    "arrays of tokens": {"input": [[*range(8_192)] for _ in range(64)]},
    "one array of tokens": {"input": [*range(90_000)]},
    "short arrays of tokens": {"input": [[*range(200)] for _ in range(5_200)]},
    "numbers beside texts": {"input": [[1] * 9_000, "x:", [2.5] * 9_000, "y, ", [-3e-5] * 9_000]},
    "vectors and null": {"values": [[0.125] * 9_000 + [None], [], [True] + [1] * 9_000]},
}


@pytest.mark.parametrize("what", NORMAL)
@pytest.mark.parametrize("indent", [None, 2])
@READERS
def test_a_large_body_has_the_estimate_of_a_parsed_one(read: Any, indent: Any, what: str) -> None:
    """Whether its texts and lists of numbers are cut or not, and its model is read."""
    whole = {"model": "m", **NORMAL[what], "stream": True}
    body = parse_body(json.dumps(whole, indent=indent).encode())
    assert (body["model"], body["stream"]) == ("m", True)
    assert read(body)[0] == pytest.approx(read(whole)[0], rel=0.0001, abs=3)
    assert read(body)[0] > 1_000
    assert size(body) < 4_000_000


def test_a_text_with_many_quotes_takes_few_steps() -> None:
    """A prompt with code in it has thousands of them, and each step holds the loop."""
    text = "A" * 9_000 + 'print("a")\n' * 100_000
    content, steps = json.dumps({"model": "m", "input": text}).encode(), list[str]()
    sys.setprofile(lambda _frame, event, _value: steps.append(event))
    try:
        body = parse_body(content)
    finally:
        sys.setprofile(None)
    assert text_size(body["input"]) == len(text)
    assert len(steps) < 1_000


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]], [["one text"], [3]]])
def test_tokens_in_place_of_a_text_are_counted(tokens: Any) -> None:
    """As LangChain sends a text to embed."""
    assert read_openai({"model": "m", "input": tokens})[0] == 3


def test_an_array_of_tokens_is_one_request() -> None:
    """In the limits of Gemini's, a list of texts is one request for each."""
    gemini = providers.of("gemini_api")
    route = gemini.route(
        "POST", "https://generativelanguage.googleapis.com/v1beta/openai/embeddings"
    )
    assert route is not None
    for given_input, number in (([5, 6, 7], 1), (["a", "b"], 2), ([[5], [6, 7]], 2)):
        info = gemini.read_request(route, {"model": "m", "input": given_input})
        assert info.requests == number


BOMBS = [b"[],", b"{},", b'"",', b'{"a":1},', b'"a,b",', b"[", b'["x",1],', b"true,", b"[1,2],"]


@pytest.mark.parametrize("item", BOMBS)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_body_of_a_million_values_is_not_parsed(
    item: bytes, is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens follow from its length; its model and switches stand at one of its ends."""
    monkeypatch.setattr(large.json, "loads", lambda _: pytest.fail("it is parsed"))
    values = b'"input":[' + item * VALUES + b"0]"
    named = b'"model":"models/\xc3\xa9", "stream" : true, "store":false, "background": true'
    content = b"{" + b", ".join((named, values) if is_first else (values, named)) + b"}"
    body = parse_body(content)
    assert {**body, "input": ""} == {
        **{"model": "models/\u00e9", "stream": True, "background": True},
        "input": "",
    }
    for read in (read_openai, read_gemini):
        assert read(body)[0] == pytest.approx(len(content) / 4, abs=4)


@given(
    st.recursive(
        st.one_of(
            st.integers(-9, 99_999),
            st.just(0.125),
            st.text(st.sampled_from('a\\": ,[]{}1\u00e9\n'), max_size=9),
            st.just("long, 1: " * 1_000),
            st.just([7] * 5_000),
            st.just("\\" * 8_500),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=5),
            st.dictionaries(st.sampled_from(["text", "a:", "b, ", "c"]), inner, max_size=4),
        ),
        max_leaves=12,
    ),
    st.sampled_from([None, 0, 3]),
)
def test_what_is_shortened_stays_the_same_json(value: Any, indent: Any) -> None:
    """Cut texts say how long they were, counted numbers how many; all else is as it was."""
    content = json.dumps({"it": value, "pad": "x" * 70_000}, indent=indent).encode()
    short = shortened(content)
    assert short is not None
    body = json.loads(short)
    whole = read_gemini(json.loads(content))[0]
    assert read_gemini(body)[0] == pytest.approx(whole, rel=0.001, abs=2)


# Replies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_full", [True, False])
def test_a_reply_of_many_floats_has_its_usage(in_full: bool) -> None:
    """A batch of embeddings, of which no number is parsed."""
    data = [{"object": "embedding", "embedding": [-0.012345678] * 3_072} for _ in range(64)]
    reply = {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 7}}
    text, is_whole = text_of(json.dumps(reply).encode())
    assert (len(text) < 9_000, is_whole) == (True, True)
    provider = providers.of("openai")
    route = provider.route("POST", f"{OPENAI}embeddings")
    assert route is not None
    usage, _ = provider.read_reply(route, text, in_full=in_full)
    assert (usage.input_tokens, usage.model) == (7, "m" if in_full else None)


def test_of_a_reply_of_a_million_values_the_end_is_read() -> None:
    """That is where most have their usage."""
    begin = b'{"choices":[' + b'{"a":[]},' * VALUES
    text, is_whole = text_of(begin + b'{}],"usage":{"prompt_tokens":7,"completion_tokens":2}}')
    assert (len(text) < 200_000, is_whole, text[:3]) == (True, False, '{"c')
    provider = providers.of("openai")
    route = provider.route("POST", f"{OPENAI}chat/completions")
    assert route is not None
    usage, _ = provider.read_reply(route, text, in_full=False)
    assert usage[:2] == (7, 2)


def test_only_the_end_of_a_reply_that_is_too_long_is_kept() -> None:
    """Its usage is read there once all of it has come."""
    provider = providers.of("openai")
    route = provider.route("POST", f"{OPENAI}embeddings")
    assert route is not None
    reader = EndReader(lambda text: provider.read_reply(route, text, in_full=False), "flex")
    for piece in (b'{"data":[', *[b"0.5," * 9_000] * 40, b'0],"usage":{"prompt_', b'tokens":7}}'):
        reader.feed(piece)
        assert (reader.usage, len(reader._rest) < 200_000) == (NO_USAGE, True)
    reader.finish()
    assert (reader.usage.input_tokens, reader.usage.service_tier) == (7, "flex")
    assert reader.is_over


# Streams ----------------------------------------------------------------------------------------

CHUNK = {"usageMetadata": {"promptTokenCount": 7}, "candidates": [{"content": {}}]}


def reader_of(*, is_array: bool = False) -> EventReader:
    provider = providers.of("gemini_api")
    url = "https://generativelanguage.googleapis.com/v1beta/models/m:streamGenerateContent"
    route = provider.route("POST", url)
    assert route is not None
    return EventReader(provider.events(route), is_array=is_array)


@pytest.mark.parametrize("is_array", [True, False])
@pytest.mark.parametrize("data", [PIXELS, [0.125] * 90_000])
def test_a_large_event_is_read(data: Any, is_array: bool) -> None:
    """An image, or numbers, in pieces of which each looks like the end of an element."""
    event = json.dumps({"data": data, "more": [{}] * 20_000, **CHUNK})
    text = f"[{event}]" if is_array else f"data: {event}\n\n"
    reader = reader_of(is_array=is_array)
    for begin in range(0, len(text), 9_000):
        reader.feed(text[begin : begin + 9_000].encode() if begin else text[:9_000].encode())
    reader.finish()
    assert (reader.usage.input_tokens, reader.has_begun) == (7, True)


@pytest.mark.parametrize("is_array", [True, False])
def test_an_event_without_end_is_not_kept(is_array: bool) -> None:
    """It goes on to the program, and no more than 32 MiB of it are here."""
    reader = reader_of(is_array=is_array)
    reader.feed(b'[{"a":"' if is_array else b'data: {"a":"')
    for _ in range(40):
        reader.feed(b"A" * 1_048_576)
        assert len(reader._rest) <= LONGEST_BODY
    assert reader.has_begun
    reader.finish()


def test_a_large_element_is_tried_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece may be its end, and to parse all of it at each would be quadratic."""
    decoder, tried = json.JSONDecoder(), list[int]()

    class Counting:
        def raw_decode(self, text: str, begin: int) -> Any:
            tried.append(len(text))
            return decoder.raw_decode(text, begin)

    monkeypatch.setattr(module, "_decoder", Counting())
    reader = reader_of(is_array=True)
    reader.feed(b'[{"parts":[{}')
    for _ in range(300):
        reader.feed(b",{}" * 1_000)
    reader.feed(b'],"usageMetadata":{"promptTokenCount":7}}]')
    reader.finish()
    assert reader.usage.input_tokens == 7
    assert sum(tried) < 6 * 900_000 + 40 * 65_536


@pytest.mark.parametrize("is_array", [True, False])
def test_an_event_of_a_million_values_is_not_parsed(
    is_array: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows something, so the program gets it; what others report is read as before."""
    event = b'{"a":[' + b"[],{}," * (VALUES // 3) + b"[]]}"
    reader = reader_of(is_array=is_array)
    with monkeypatch.context() as patch:
        patch.setattr(module.json, "loads", lambda _: pytest.fail("it is parsed"))
        patch.setattr(module, "_decoder", None)
        reader.feed(b"[" + event + b"]" if is_array else b"data: " + event + b"\n\n")
    assert (reader.has_begun, reader.error) == (True, None)
    if not is_array:
        reader.feed(b"data: " + json.dumps(CHUNK).encode() + b"\n\n")
        assert reader.usage.input_tokens == 7


# Another model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["a", "models/a"])
def test_another_model_is_written_into_a_large_body(before: str) -> None:
    """Without parsing it, and a text that looks like the name of a model stays."""
    text = '{"model": "b"}' + "x" * 2_000_000
    body = {"input": [text], "model": before}
    written = with_named_model(json.dumps(body).encode(), "c")
    assert written is not None
    assert json.loads(written) == {**body, "model": before.replace("a", "c")}


def test_a_large_body_that_names_two_models_goes_to_no_other() -> None:
    """Which of the two is asked is not known without parsing it."""
    body = {"input": "x" * 2_000_000, "tools": [{"model": "b"}], "model": "a"}
    assert with_named_model(json.dumps(body).encode(), "c") is None
    small = with_named_model(json.dumps({**body, "input": ""}).encode(), "c")
    assert small is not None
    assert json.loads(small)["model"] == "c"
