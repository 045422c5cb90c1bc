"""openai, unchanged, over a pool: its own errors, retries, and what is counted."""

import asyncio
import base64
import gc
from contextlib import closing
from typing import Any

import openai
import pytest
from support.http_modes import MESSAGES, MODEL, OPENAI
from support.json_server import JsonServer, Response

from keyrot_middleware.testing import Reply

CHATS = [mode for mode in OPENAI if mode != "openai-embeddings"]


def client_of(gemini, key="keyrot-pool", **options) -> openai.OpenAI:
    """Make a client as the docs of Google have it."""
    return openai.OpenAI(api_key=key, base_url=f"{gemini.url}/v1beta/openai/", **options)


def ask(client, **more):
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, **more)


@pytest.mark.parametrize("mode", CHATS)
def test_no_key_is_openais_own_rate_limit_error(mode, gemini, pool) -> None:
    """RateLimitError with our sentence, a Retry-After and no retry, also for a second call."""
    pool("A", "B", max_wait_s=0)
    for key in ("A", "B"):
        gemini.always(key, Reply.QUOTA_MINUTE)
    for _ in range(2):
        with pytest.raises(openai.RateLimitError) as caught:
            OPENAI[mode](gemini.url, "keyrot-pool", 1)
        assert "No Gemini API key of pool 'default' is available." in caught.value.message
        assert "A: quota_minute until 20" in caught.value.message
        assert caught.value.response.headers["retry-after"] == "30"
        assert caught.value.body["status"] == "RESOURCE_EXHAUSTED"
    assert (gemini.sent("A"), gemini.sent("B")) == (1, 1)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply.OVERLOADED, openai.InternalServerError),
        (Reply.RESET, openai.APIConnectionError),
        (Reply.QUOTA_DAY, openai.RateLimitError),
    ],
)
def test_retries_are_not_multiplied(reply, error, gemini, pool) -> None:
    """What openai repeats, twice, the pool does not; a key's failure is the pool's alone."""
    pool("A", max_retries=2, max_wait_s=0)
    gemini.always("A", reply)
    with client_of(gemini) as client, pytest.raises(error):
        ask(client)
    assert gemini.sent("A") == (1 if error is openai.RateLimitError else 3)


def test_the_servers_own_last_refusal_is_not_repeated(gemini, pool) -> None:
    """Openai repeats a 409 twice; the pool has offered it to another key already."""
    error = {"error": {"code": 409, "message": "conflict", "status": "ABORTED"}}
    with closing(JsonServer(lambda _: Response(409, error))) as server:
        pool("A", "B", allowed_hosts=(f"127.0.0.1:{server.port}",), max_wait_s=0, max_retries=0)
        url = f"http://127.0.0.1:{server.port}/v1beta/openai/"
        client = openai.OpenAI(api_key="keyrot-pool", base_url=url)
        with client, pytest.raises(openai.ConflictError):
            ask(client)
        assert len({one.headers["authorization"] for one in server.requests}) == len(
            server.requests
        )


def test_media_count_as_google_counts_them(gemini, pool) -> None:
    """A megabyte of image in base64 fits into a small limit of tokens: an image has about 1,120."""
    installed = pool({"key_id": "A", "tpm": 2_000}, max_wait_s=0)
    image = base64.b64encode(bytes(1_000_000)).decode()
    content = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
    ]
    with client_of(gemini) as client:
        found = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": content}]
        )
    assert found.choices[0].message.content == "ok from A"
    assert 1_000 < installed.token_scale.scaled("another", 1_120) < 2_000


def test_each_text_of_an_embedding_is_a_request(gemini, pool) -> None:
    """Five texts in one request of embeddings count five times in RPM, as Google counts them."""
    installed = pool({"key_id": "A", "rpm": 100})
    with client_of(gemini) as client:
        client.embeddings.create(
            model="gemini-embedding-001", input=["a"] * 5, encoding_format="float"
        )
    key = installed.selector.keys["A"]
    assert installed.state.snapshot([key])["A"].used[0].requests_minute == 5


def test_a_loop_has_nothing_to_say_about_dropped_streams(gemini, pool) -> None:
    """The collector hands it all generators of a stream at once: only one closes the connection."""
    pool("A")
    said: list[Any] = []

    async def drop() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: said.append(what))
        url = f"{gemini.url}/v1beta/openai/"
        async with openai.AsyncOpenAI(api_key="keyrot-pool", base_url=url) as client:
            for _ in range(3):
                stream: Any = await ask(client, stream=True)
                del stream
                gc.collect()
                await asyncio.sleep(0)
                while closing := asyncio.all_tasks() - {asyncio.current_task()}:
                    await asyncio.wait(closing)

    asyncio.run(drop())
    gc.collect()
    assert said == []
