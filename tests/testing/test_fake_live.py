"""FakeGemini's websockets: Live, Live music, live interactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google import genai
from google.genai import errors, types
from support.modes import MODEL

from keyrot_middleware.testing import FakeGemini, Reply, plain_websockets

Connect = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore:.*experimental"
)


@pytest.fixture(autouse=True)
def _no_tls() -> Any:
    """Let the SDK ask for no TLS on loopback."""
    with plain_websockets():
        yield


@pytest.fixture
def connect(gemini: FakeGemini) -> Iterator[Connect]:
    """Make clients with a key and HTTP options."""
    clients: list[Any] = []

    def make(value: str, **options: Any) -> Any:
        clients.append(genai.Client(api_key=value, http_options={**gemini.http_options, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@asynccontextmanager
async def session(client: Any, **config: Any) -> AsyncIterator[Any]:
    """Open a Live session."""
    async with client.aio.live.connect(model=MODEL, config=config or None) as live:
        yield live


async def say(live: Any, text: str) -> list[Any]:
    """Say something; return what comes back in the turn."""
    await live.send_client_content(turns={"role": "user", "parts": [{"text": text}]})
    return [message async for message in live.receive()]


def test_a_turn_is_answered_with_its_usage(gemini: FakeGemini, connect: Connect) -> None:
    """Each turn reads the conversation again, so its prompt is longer than the one before."""
    client = connect(gemini.add_key("a").value)

    async def talk() -> list[list[Any]]:
        async with session(client) as live:
            assert (gemini.sessions("a"), gemini.log[0].status) == (1, 101)
            return [await say(live, "hello there"), await say(live, "and again")]

    first, second = asyncio.run(talk())
    assert "".join(m.text or "" for m in first) == "ok from a"
    prompts = [turn[-1].usage_metadata.prompt_token_count for turn in (first, second)]
    assert 0 < prompts[0] < prompts[1]
    assert gemini.wait_idle()
    [entry] = gemini.log
    assert (entry.key, entry.verb, entry.model) == ("a", "bidiGenerateContent", MODEL)
    assert (gemini.sessions("a"), gemini.peak("a")) == (0, 1)
    assert gemini.used("a", MODEL).requests == 1
    assert gemini.used("a", MODEL).tokens == sum(prompts)


@pytest.mark.parametrize(
    ("reply", "code"), [(Reply.EXHAUSTED.as_close(1011, after=1), 1011), (Reply.dropped(1), 1006)]
)
def test_a_session_ends_after_some_messages(reply, code, gemini, connect) -> None:
    """By a close frame, or by a connection that breaks."""
    client = connect(gemini.add_key("a").value)
    gemini.script("a", reply)
    seen: list[Any] = []

    async def talk() -> None:
        async with session(client) as live:
            await live.send_client_content(turns={"role": "user", "parts": [{"text": "hello"}]})
            async for message in live.receive():
                seen.append(message)

    with pytest.raises(errors.APIError) as closed:
        asyncio.run(talk())
    assert (closed.value.code, len(seen)) == (code, 1)
    assert gemini.wait_idle()


def test_a_session_is_resumed_by_keys_of_its_project(gemini: FakeGemini, connect: Connect) -> None:
    """A handle comes with the setup and with each turn; another project does not have it."""
    one, same = (gemini.add_key(label, project="p") for label in "ab")
    other = gemini.add_key("c")

    async def first() -> str:
        async with session(connect(one.value), session_resumption={}) as live:
            [update] = [await live._receive()]
            return str(update.session_resumption_update.new_handle)

    async def resume(value: str, handle: str) -> None:
        async with session(connect(value), session_resumption={"handle": handle}):
            pass

    handle = asyncio.run(first())
    asyncio.run(resume(same.value, handle))
    with pytest.raises(errors.APIError, match="not found"):
        asyncio.run(resume(other.value, handle))


def test_a_tool_is_called_and_answered(gemini: FakeGemini, connect: Connect) -> None:
    """The first turn is a call of the declared function, the next one a text."""
    client = connect(gemini.add_key("a").value)
    tools = [{"function_declarations": [{"name": "look"}]}]

    async def talk() -> str:
        async with session(client, tools=tools) as live:
            await live.send_client_content(turns={"role": "user", "parts": [{"text": "hello"}]})
            call = await live._receive()
            [asked] = call.tool_call.function_calls
            answer = types.FunctionResponse(id=asked.id, name=asked.name, response={"seen": 1})
            await live.send_tool_response(function_responses=answer)
            return "".join([m.text or "" async for m in live.receive()])

    assert asyncio.run(talk()) == "ok from a"
