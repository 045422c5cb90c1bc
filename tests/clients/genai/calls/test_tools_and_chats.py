"""The user's code runs once: tools and chats over a pool in which keys fail midway."""

import pytest
from google.genai import types
from support.modes import MODEL, MODES, ask, spread

from keyrot_middleware.testing import Reply


@pytest.fixture
def tool():
    """A tool that counts how often it is called."""
    called: list[str] = []

    def get_weather(city: str) -> str:
        """Return the weather of a city.

        Args:
            city: Its name.
        """
        called.append(city)
        return "sunny"

    get_weather.called = called
    return get_weather


@pytest.fixture
def talking(gemini):
    """Call the tool first, then answer from its result."""

    def answer(body: dict) -> object:
        last = body["contents"][-1]["parts"][-1]
        if "functionResponse" in last or "function_response" in last:
            return "it is sunny"
        return {"functionCall": {"name": "get_weather", "args": {"city": "Rome"}}}

    gemini.answer(answer)
    return gemini


@pytest.mark.parametrize(
    ("mode", "replies", "expected"),
    spread(
        MODES,
        [
            ((Reply.OK, Reply.QUOTA_MINUTE), "AAB"),
            ((Reply.OK, Reply.KEY_INVALID), "AAB"),
            ((Reply.OK, Reply.OVERLOADED), "AAB"),
            ((Reply.QUOTA_MINUTE,), "ABB"),
        ],
    ),
)
def test_a_tool_is_called_once(mode, replies, expected, talking, pool, connect, tool) -> None:
    """Each hop is one request of ours: it is sent again, the tool is not run again."""
    pool("A", "B", strategy="fill")
    talking.script("A", *replies)
    config = types.GenerateContentConfig(tools=[tool])
    assert ask(mode, connect(), config=config).endswith("it is sunny")
    assert tool.called == ["Rome"]
    assert "".join(request.key for request in talking.log) == expected


@pytest.mark.parametrize("mode", MODES)
def test_a_tools_own_error_is_the_programs(mode, talking, pool, connect) -> None:
    called = []

    def get_weather(city: str) -> str:
        """Fail."""
        called.append(city)
        raise RuntimeError("out of order")

    pool("A", "B", strategy="fill")
    assert ask(mode, connect(), config={"tools": [get_weather]}).endswith("it is sunny")
    assert called == ["Rome"]


def test_a_chat_keeps_its_history_over_a_failover(gemini, pool, connect) -> None:
    """Three turns over two keys: each turn is in the history once, in order."""
    pool("A", "B", strategy="fill")
    chat = connect().chats.create(model=MODEL)
    assert chat.send_message("one").text == "ok from A"
    gemini.script("A", Reply.QUOTA_MINUTE)
    assert chat.send_message("two").text == "ok from B"
    chunks = [chunk.text or "" for chunk in chat.send_message_stream("three")]
    assert "".join(chunks) == "ok from B"
    texts = [
        "".join(part.text or "" for part in content.parts)
        for content in chat.get_history(curated=True)
        if content.role == "user"
    ]
    assert texts == ["one", "two", "three"]
    assert len(gemini.log[-1].body["contents"]) == 5
