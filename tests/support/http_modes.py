"""The ways in which programs reach Gemini without google-genai; each sends calls, one by one."""

import asyncio
import importlib
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

MODEL = "gemini-3.1-flash-lite"
TEXT = "hello"
Url = str


def _native(base: Url, verb: str) -> str:
    return f"{base}/v1beta/models/{MODEL}:{verb}"


BODY = {"contents": [{"parts": [{"text": TEXT}]}]}
HEADERS = {"x-goog-api-key": "keyrot-pool"}
PATH = f"/v1beta/models/{MODEL}:generateContent"


def text_of(body: Any) -> str:
    parts = (body.get("candidates") or [{}])[0].get("content", {}).get("parts", [])
    return "".join(part.get("text", "") for part in parts)


def _texts(lines: Iterator[str]) -> str:
    events = (json.loads(line[5:]) for line in lines if line.startswith("data:"))
    return "".join(map(text_of, events))


def send(library: Any, client: Any, base: Url, key: str, *, stream: bool = False) -> str:
    """Send one native call with a client of httpx or httpx2, or a session of requests."""
    headers = {"x-goog-api-key": key}
    if not stream:
        response = client.post(_native(base, "generateContent"), json=BODY, headers=headers)
        response.raise_for_status()
        return text_of(response.json())
    url = _native(base, "streamGenerateContent") + "?alt=sse"
    if library.__name__ == "requests":
        with client.post(url, json=BODY, headers=headers, stream=True) as response:
            response.raise_for_status()
            return _texts(response.iter_lines(decode_unicode=True))
    with client.stream("POST", url, json=BODY, headers=headers) as response:
        response.raise_for_status()
        return _texts(response.iter_lines())


async def send_async(client: Any, base: Url, key: str, *, stream: bool = False) -> str:
    headers = {"x-goog-api-key": key}
    if not stream:
        response = await client.post(_native(base, "generateContent"), json=BODY, headers=headers)
        response.raise_for_status()
        return text_of(response.json())
    url = _native(base, "streamGenerateContent") + "?alt=sse"
    async with client.stream("POST", url, json=BODY, headers=headers) as response:
        response.raise_for_status()
        return _texts(iter([line async for line in response.aiter_lines()]))


Sends = Callable[[Url, str, int], list[str]]
"""Sends so many calls to an address with a key or a placeholder; returns their texts."""


def _httpx(name: str, *, stream: bool) -> Sends:
    def sends(base: Url, key: str, number: int) -> list[str]:
        library = importlib.import_module(name)
        with library.Client() as client:
            return [send(library, client, base, key, stream=stream) for _ in range(number)]

    return sends


def _httpx_async(name: str, *, stream: bool) -> Sends:
    async def sends(base: Url, key: str, number: int) -> list[str]:
        library = importlib.import_module(name)
        async with library.AsyncClient() as client:
            return [await send_async(client, base, key, stream=stream) for _ in range(number)]

    return lambda *args: asyncio.run(sends(*args))


def _requests(*, stream: bool) -> Sends:
    def sends(base: Url, key: str, number: int) -> list[str]:
        import requests

        with requests.Session() as session:
            return [send(requests, session, base, key, stream=stream) for _ in range(number)]

    return sends


def _aiohttp(*, stream: bool) -> Sends:
    async def sends(base: Url, key: str, number: int) -> list[str]:
        import aiohttp

        headers, texts = {"x-goog-api-key": key}, []
        verb = "streamGenerateContent" if stream else "generateContent"
        url = _native(base, verb) + ("?alt=sse" if stream else "")
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            for _ in range(number):
                async with session.post(url, json=BODY, headers=headers) as response:
                    if stream:
                        lines = [line.decode() async for line in response.content]
                        texts.append(_texts(iter(lines)))
                    else:
                        texts.append(text_of(await response.json()))
        return texts

    return lambda *args: asyncio.run(sends(*args))


RAW: dict[str, Sends] = {
    **{f"{name}-sync": _httpx(name, stream=False) for name in ("httpx", "httpx2")},
    **{f"{name}-stream": _httpx(name, stream=True) for name in ("httpx", "httpx2")},
    **{f"{name}-async": _httpx_async(name, stream=False) for name in ("httpx", "httpx2")},
    **{f"{name}-astream": _httpx_async(name, stream=True) for name in ("httpx", "httpx2")},
    **(
        {"aiohttp-async": _aiohttp(stream=False), "aiohttp-astream": _aiohttp(stream=True)}
        if find_spec("aiohttp")
        else {}
    ),
    "requests-sync": _requests(stream=False),
    "requests-stream": _requests(stream=True),
}

# openai --------------------------------------------------------------------------------------


MESSAGES = [{"role": "user", "content": TEXT}]
_CHAT = {"model": MODEL, "messages": MESSAGES}


def _options(base: Url, key: str) -> dict[str, Any]:
    return {"api_key": key, "base_url": f"{base}/v1beta/openai/"}


def _text(found: Any, *, stream: bool) -> str:
    if stream:
        return "".join(one.choices[0].delta.content or "" for one in found)
    return str(found.choices[0].message.content)


async def _async_text(found: Any, *, stream: bool) -> str:
    return _text([one async for one in found] if stream else found, stream=stream)


def _openai(*, stream: bool) -> Sends:
    def sends(base: Url, key: str, number: int) -> list[str]:
        import openai

        with openai.OpenAI(**_options(base, key)) as client:
            create: Any = client.chat.completions.create
            return [_text(create(**_CHAT, stream=stream), stream=stream) for _ in range(number)]

    return sends


async def _openai_async(base: Url, key: str, number: int, *, stream: bool) -> list[str]:
    import openai

    async with openai.AsyncOpenAI(**_options(base, key)) as client:
        create: Any = client.chat.completions.create
        found = (await create(**_CHAT, stream=stream) for _ in range(number))
        return [await _async_text(one, stream=stream) async for one in found]


def _embed(base: Url, key: str, number: int) -> list[str]:
    import openai

    asked = {"model": "gemini-embedding-001", "input": TEXT, "encoding_format": "float"}
    with openai.OpenAI(**_options(base, key)) as client:
        for _ in range(number):
            client.embeddings.create(**asked)  # type: ignore[arg-type]
    return ["ok from C"] * number


OPENAI: dict[str, Sends] = {
    "openai-sync": _openai(stream=False),
    "openai-stream": _openai(stream=True),
    "openai-async": lambda *args: asyncio.run(_openai_async(*args, stream=False)),
    "openai-astream": lambda *args: asyncio.run(_openai_async(*args, stream=True)),
    "openai-embeddings": _embed,
}

# litellm -------------------------------------------------------------------------------------


def _litellm(base: Url, key: str) -> dict[str, Any]:
    return {
        "model": f"gemini/{MODEL}",
        "messages": MESSAGES,
        "api_key": key,
        "api_base": f"{base}/v1beta",
    }


def _complete(base: Url, key: str, number: int, *, stream: bool) -> list[str]:
    import litellm

    found = (litellm.completion(**_litellm(base, key), stream=stream) for _ in range(number))
    return [_text(one, stream=stream) for one in found]


async def _acomplete(base: Url, key: str, number: int, *, stream: bool) -> list[str]:
    import litellm

    found = (await litellm.acompletion(**_litellm(base, key), stream=stream) for _ in range(number))
    texts = [await _async_text(one, stream=stream) async for one in found]
    await litellm.close_litellm_async_clients()  # type: ignore[no-untyped-call]
    return texts


def _embedding(base: Url, key: str, number: int) -> list[str]:
    import litellm

    model, at = "gemini/gemini-embedding-001", f"{base}/v1beta"
    for _ in range(number):
        litellm.embedding(model=model, input=[TEXT], api_key=key, api_base=at)
    return ["ok from C"] * number


def _router(base: Url, key: str, number: int) -> list[str]:
    import litellm

    given = _litellm(base, key)
    messages = given.pop("messages")
    router = litellm.Router(model_list=[{"model_name": "flash", "litellm_params": given}])
    found = [router.completion(model="flash", messages=messages) for _ in range(number)]
    return [one.choices[0].message.content for one in found]


LITELLM: dict[str, Sends] = {
    "litellm-completion": lambda *args: _complete(*args, stream=False),
    "litellm-stream": lambda *args: _complete(*args, stream=True),
    "litellm-acompletion": lambda *args: asyncio.run(_acomplete(*args, stream=False)),
    "litellm-astream": lambda *args: asyncio.run(_acomplete(*args, stream=True)),
    "litellm-embedding": _embedding,
    "litellm-router": _router,
}

call = {**RAW, **OPENAI, **LITELLM}
