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
from websockets.exceptions import InvalidStatus

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
    ("reply", "status"),
    [(Reply.EXHAUSTED, 429), (Reply.TOKEN_UNSUPPORTED, 401), (Reply.KEY_SUSPENDED, 403)],
)
def test_a_handshake_is_refused_as_a_request_is(
    reply: Any, status: int, gemini: FakeGemini, connect: Connect
) -> None:
    """Same status, same body."""
    client = connect(gemini.add_key("a").value)
    gemini.script("a", reply)

    async def talk() -> None:
        async with session(client):
            pass

    with pytest.raises(InvalidStatus) as refused:
        asyncio.run(talk())
    assert refused.value.response.status_code == status
    assert b'"error"' in bytes(refused.value.response.body or b"")
    assert gemini.count("a", status=status) == 1


def test_an_unknown_key_is_refused(gemini: FakeGemini, connect: Connect) -> None:
    """Google answers 400 to it."""

    async def talk() -> None:
        async with session(connect("FAKE-unknown")):
            pass

    with pytest.raises(InvalidStatus, match="400"):
        asyncio.run(talk())


@pytest.mark.parametrize("code", [1007, 1008, 1011])
def test_a_session_is_closed_before_its_setup_is_done(
    code: int, gemini: FakeGemini, connect: Connect
) -> None:
    """The close frame has the code and the message of the error."""
    client = connect(gemini.add_key("a").value)
    gemini.script("a", Reply.EXHAUSTED.as_close(code))

    async def talk() -> None:
        async with session(client):
            pass

    with pytest.raises(errors.APIError, match="Resource has been exhausted") as closed:
        asyncio.run(talk())
    assert closed.value.code == code
    assert gemini.count("a", status=code, reply="EXHAUSTED") == 1


@pytest.mark.parametrize(
    ("reply", "code"), [(Reply.EXHAUSTED.as_close(1011, after=1), 1011), (Reply.dropped(1), 1006)]
)
def test_a_session_ends_after_some_messages(
    reply: Any, code: int, gemini: FakeGemini, connect: Connect
) -> None:
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


def test_a_session_counts_in_the_quota(gemini: FakeGemini, connect: Connect) -> None:
    """The second is closed: one request a minute."""
    client = connect(gemini.add_key("a", rpm=1).value)

    async def talk() -> None:
        async with session(client):
            pass

    asyncio.run(talk())
    with pytest.raises(errors.APIError, match="exceeded your current quota") as closed:
        asyncio.run(talk())
    assert closed.value.code == 1011


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


def test_music_is_played(gemini: FakeGemini, connect: Connect) -> None:
    """Its setup names the model, and it plays after a play command."""
    client = connect(gemini.add_key("a").value, api_version="v1alpha")

    async def listen() -> bytes:
        async with client.aio.live.music.connect(model="models/learnlm-music") as music:
            await music.play()
            message = await anext(music.receive())
            return bytes(message.server_content.audio_chunks[0].data)

    assert asyncio.run(listen())
    assert gemini.wait_idle()
    assert [(e.verb, e.model) for e in gemini.log] == [("bidiGenerateMusic", "learnlm-music")]


def test_an_ephemeral_token_stands_for_its_key(gemini: FakeGemini, connect: Connect) -> None:
    """It is made by a request, and opens sessions that count for the key that made it."""
    client = connect(gemini.add_key("a").value, api_version="v1alpha")
    token = client.auth_tokens.create(config={"uses": 1})

    async def talk() -> None:
        async with session(connect(token.name, api_version="v1alpha")):
            pass

    asyncio.run(talk())
    assert [(e.verb, e.key) for e in gemini.log] == [
        ("auth_tokens.create", "a"),
        ("bidiGenerateContent", "a"),
    ]


@pytest.mark.skipif(
    not hasattr(genai.client.AsyncClient, "interactions")
    or tuple(map(int, genai.__version__.split(".")[:2])) < (3, 6),
    reason="this SDK has no live interactions",
)
def test_a_live_interaction_belongs_to_its_project(gemini: FakeGemini, connect: Connect) -> None:
    """Another project's key gets the answer that there is none."""
    a, b = (gemini.add_key(label).value for label in "ab")

    async def talk() -> list[str]:
        made = connect(a).interactions.create(model=MODEL, input="hello")
        async with connect(a).aio.interactions.connect(made.id) as live:
            await live.complete()
            kinds = [event.event_type async for event in live.receive()]
        async with connect(b).aio.interactions.connect(made.id) as live:
            with pytest.raises(Exception, match="1008"):
                await anext(live.receive())
        return kinds

    assert asyncio.run(talk())[-1] == "interaction.completed"


def test_the_server_stops_with_a_session_open() -> None:
    """The session breaks; nothing waits for it."""
    gemini = FakeGemini()
    with gemini:
        client = genai.Client(api_key=gemini.add_key("a").value, http_options=gemini.http_options)

        async def talk() -> None:
            async with session(client) as live:
                await asyncio.to_thread(gemini.stop)
                with pytest.raises(errors.APIError):
                    await live._receive()

        asyncio.run(talk())
    assert gemini.sessions("a") == 0
