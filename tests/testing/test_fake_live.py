"""FakeGemini's websockets: Live, Live music, live interactions."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google import genai
from support.modes import MODEL
from websockets.exceptions import InvalidStatus

from keyrot_middleware.testing import FakeGemini, plain_websockets

Connect = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore:.*experimental"
)


@pytest.fixture(autouse=True)
def _no_tls(v1beta: None) -> Any:
    with plain_websockets():
        yield


@pytest.fixture
def connect(gemini: FakeGemini) -> Iterator[Connect]:
    clients: list[Any] = []

    def make(value: str, **options: Any) -> Any:
        clients.append(genai.Client(api_key=value, http_options={**gemini.http_options, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@asynccontextmanager
async def session(client: Any, **config: Any) -> AsyncIterator[Any]:
    async with client.aio.live.connect(model=MODEL, config=config or None) as live:
        yield live


async def say(live: Any, text: str) -> list[Any]:
    await live.send_client_content(turns={"role": "user", "parts": [{"text": text}]})
    return [message async for message in live.receive()]


def test_v1_has_no_live(gemini: FakeGemini, connect: Connect) -> None:
    """Its handshake is a wrong path; so it is with what google-genai 3 asks by itself."""
    client = connect(gemini.add_key("a").value, api_version="v1")

    async def talk() -> None:
        async with session(client):
            pass

    with pytest.raises(InvalidStatus, match="404"):
        asyncio.run(talk())


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
